//! The batching settings that `/info` shows. `app` fills them in from the engine's settings, which `http` must not
//! import.

use serde::Serialize;
use utoipa::ToSchema;

/// Settings of admission control and batching.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct BatchingInfo {
    /// Maximum rows admitted at once; a row is a sequence, beam, candidate, image-text pair or text.
    pub capacity_rows: usize,
    /// Maximum bytes of request bodies and prepared pixels held by admitted requests.
    pub capacity_bytes: u64,
    /// Maximum estimated wait of an admitted request, in milliseconds.
    pub max_queue_wait_ms: u64,
    /// Maximum estimated time of one work unit (a vision batch or text step), in milliseconds.
    pub unit_time_ms: u64,
    /// How long an image or row may wait for a larger batch, in milliseconds.
    pub linger_ms: u64,
    /// Maximum images per vision batch.
    pub max_batch_images: usize,
    /// Maximum rows per step of the text model.
    pub max_batch_rows: usize,
    /// Maximum tokens per step of the text model.
    pub max_batch_tokens: usize,
}
