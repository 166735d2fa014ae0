//! The engine's settings and their checks.

use std::time::Duration;

/// Bounds and policy of the engine.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineSettings {
    /// Rows admitted at one time; at least 256 unless the per-call limit is lower too.
    pub capacity_rows: usize,
    /// Bytes of bodies and prepared pixels reserved by admitted requests.
    pub capacity_bytes: u64,
    /// Longest estimated wait at which a request is still admitted.
    pub max_queue_wait: Duration,
    /// Time that one unit may take by estimate; at least one item runs whatever it takes.
    pub unit_time: Duration,
    /// How long a waiting image or row may be held back for company, from its arrival.
    pub linger: Duration,
    /// Vision's share of the worker's time while both stages have work, in percent 1..=99.
    pub vision_share_percent: u8,
    /// Most images in one vision batch.
    pub max_batch_images: usize,
    /// Most rows in one text step.
    pub max_batch_rows: usize,
    /// Most tokens in one text step.
    pub max_batch_tokens: usize,
    /// Bytes of encoded images kept, those that waiting rows pin included; 0 keeps none beyond their rows.
    pub feature_cache_bytes: u64,
    /// How long an encoded image is kept.
    pub feature_cache_ttl: Duration,
    /// Bytes of cross-attention keys and values that decoding rows may hold.
    pub max_kv_bytes: u64,
}

impl Default for EngineSettings {
    /// The defaults of a CPU.
    fn default() -> Self {
        Self {
            capacity_rows: 512,
            capacity_bytes: 512 << 20,
            max_queue_wait: Duration::from_secs(3),
            unit_time: Duration::from_millis(100),
            linger: Duration::ZERO,
            vision_share_percent: 50,
            max_batch_images: 32,
            max_batch_rows: 256,
            max_batch_tokens: 4096,
            feature_cache_bytes: 256 << 20,
            feature_cache_ttl: Duration::from_secs(3600),
            max_kv_bytes: 2 << 30,
        }
    }
}
