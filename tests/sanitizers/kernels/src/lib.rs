//! The CPU kernels of the server, built on their own for the sanitizers.

#[path = "../../../../src/kernels/mod.rs"]
pub mod kernels;
