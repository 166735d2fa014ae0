//! Observability of the process: logs and Prometheus metrics.

pub mod gauge_share;
mod log_queue;
pub mod logging;
pub mod metrics;
mod process;

pub use process::resident_bytes;
