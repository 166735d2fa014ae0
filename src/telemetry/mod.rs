//! What the process tells people and machines about itself: logs and metrics.

pub mod logging;
pub mod metrics;
mod process;
