//! The batching settings that `/info` shows. `app` fills them in from the engine's settings, which `http` must not
//! import.

use serde::Serialize;
use utoipa::ToSchema;

/// Settings of admission control and batching.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct BatchingInfo {
    /// Most rows admitted at a time; a row is one sequence, beam, candidate, image-text pair or text.
    pub capacity_rows: usize,
    /// Most bytes of request bodies and prepared pixels that admitted requests may hold.
    pub capacity_bytes: u64,
    /// Requests with a longer estimated wait are rejected, in milliseconds.
    pub max_queue_wait_ms: u64,
    /// Estimated time that one work unit (a vision batch or text step) may take, in milliseconds.
    pub unit_time_ms: u64,
    /// How long an image or row may wait for a larger batch, in milliseconds.
    pub linger_ms: u64,
    /// Most images in one vision batch.
    pub max_batch_images: usize,
    /// Most rows in one step of the text model.
    pub max_batch_rows: usize,
    /// Most tokens in one step of the text model.
    pub max_batch_tokens: usize,
}
