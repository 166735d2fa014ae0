//! What the process tells people and machines about itself: logs and metrics.

mod log_queue;
pub mod logging;
pub mod metrics;
mod process;

pub use process::resident_bytes;
