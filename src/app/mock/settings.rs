//! [`MockSettings`]: the settings of the mock models, which come from the command line.

use std::num::NonZeroUsize;
use std::time::Duration;

/// Latencies, sizes and the deliberate memory leak of the mock models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MockSettings {
    /// Number of workers, each with models of its own, like those of several GPUs.
    pub workers: NonZeroUsize,
    /// Fixed time that every backend call takes.
    pub unit_time: Duration,
    /// Additional time per encoded image.
    pub image_time: Duration,
    /// Additional time per token in a backend call.
    pub token_time: Duration,
    /// Width and height in pixels of the input images of the vision tower.
    pub image_size: u32,
    /// Number of tokens in every generated text, within the limits of the request.
    pub text_length: usize,
    /// Number of bytes to leak per encoded image. A test uses this leak to show that the leak tests detect leaks.
    pub leak_bytes: usize,
}
