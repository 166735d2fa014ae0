//! Observability of the process: logs, Prometheus metrics, and traces.

pub mod gauge_share;
mod log_queue;
pub mod logging;
pub mod metrics;
mod process;
pub mod trace;

pub use process::resident_bytes;
