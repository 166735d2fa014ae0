//! The one integration binary; each module says what it holds.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests: by panicking")]

mod access;
mod annotate;
mod architecture;
#[cfg(feature = "demo")]
mod bench;
mod bodies;
mod broken_checkpoints;
mod cli;
mod config;
mod connections;
mod full_listener;
mod hub;
mod malformed;
mod openapi;
mod preprocessors;
mod process;
mod real;
#[path = "../robustness/mod.rs"]
mod robustness;
mod routes;
mod second_attack;
mod service_manager;
mod support;
mod tensorflow;
mod third_attack;
mod torch;
mod tracing;
mod workflows;
