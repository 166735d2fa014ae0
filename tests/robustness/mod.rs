//! Overload, faults and hostile input: the runs whose figures stand in `docs/reliability.md`.
//!
//! Every run has a short form, a test of seconds that `cargo test` runs, and a long form of the same code with more
//! rounds, an ignored test named `long`:
//!
//! ```text
//! cargo test --release --test it -- --ignored --nocapture robustness::<module>::long
//! ```
//!
//! A long form prints what it sent and what came back to standard error.

mod auth_timing;
mod bombs;
mod cardinality;
mod false_claims;
mod fetch;
pub(crate) mod fuzz;
mod images;
mod load;
mod many_chunks;
mod memory;
mod no_memory;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod nth_failure;
mod random;
mod smuggling;
mod ssrf;
mod wire;
