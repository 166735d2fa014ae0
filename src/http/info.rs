//! What `/info` tells of batching; `app` fills it from the engine's settings, which `http` does not know.

use serde::Serialize;
use utoipa::ToSchema;

/// How work is batched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct BatchingInfo {
    /// Rows admitted at one time.
    pub capacity_rows: usize,
    /// Bytes of bodies and prepared pixels that admitted requests may hold.
    pub capacity_bytes: u64,
    /// Longest estimated wait at which a request is still admitted, in milliseconds.
    pub max_queue_wait_ms: u64,
    /// Time that one unit of work may take by estimate, in milliseconds.
    pub unit_time_ms: u64,
    /// How long work may be held back for company, in milliseconds.
    pub linger_ms: u64,
    /// Most images in one vision batch.
    pub max_batch_images: usize,
    /// Most rows in one text step.
    pub max_batch_rows: usize,
    /// Most tokens in one text step.
    pub max_batch_tokens: usize,
}
