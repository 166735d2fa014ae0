//! The one integration binary; each module says what it holds.

mod architecture;
mod cli;
mod config;
mod connections;
mod hub;
mod openapi;
mod real;
mod routes;
mod support;
