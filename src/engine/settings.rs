//! The engine's settings and their checks.

use std::time::Duration;

/// Limits and scheduling policy of the engine. `config` fills it from the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineSettings {
    /// Rows admitted at one time. At least 256, unless the per-call limit is lower as well.
    pub capacity_rows: usize,
    /// Bytes of request bodies and prepared pixels that admitted calls may reserve.
    pub capacity_bytes: u64,
    /// Longest estimated wait with which a call is still admitted.
    pub max_queue_wait: Duration,
    /// Estimated time that one work unit may take. A unit always holds at least one item, however long that takes.
    pub unit_time: Duration,
    /// How long a waiting image or row may be held back so that others can share its batch, counted from its arrival.
    pub linger: Duration,
    /// Share of the worker's time for vision while both stages have work, in percent, 1..=99.
    pub vision_share_percent: u8,
    /// Most images in one vision batch.
    pub max_batch_images: usize,
    /// Most rows in one text step.
    pub max_batch_rows: usize,
    /// Most tokens in one text step.
    pub max_batch_tokens: usize,
    /// Capacity of the feature cache in bytes, features pinned by waiting rows included; 0 caches nothing beyond the
    /// rows' life.
    pub feature_cache_bytes: u64,
    /// Bytes of features that rows may pin. Vision encodes no image that would exceed this, but one image may always
    /// run.
    pub max_pinned_feature_bytes: u64,
    /// Time to live of an entry in the feature cache.
    pub feature_cache_ttl: Duration,
    /// Bytes of KV cache that running groups may hold: cross-attention over their images, and their own tokens.
    pub max_kv_bytes: u64,
    /// A worker without a heartbeat for this long counts as down. Set it far above the longest single backend call.
    pub worker_hang_limit: Duration,
    /// A backend that fails again within this time after it was rebuilt ends the worker.
    pub worker_rebuild_interval: Duration,
}

impl Default for EngineSettings {
    /// The defaults for a CPU.
    fn default() -> Self {
        Self {
            capacity_rows: 512,
            capacity_bytes: 512 << 20,
            max_queue_wait: Duration::from_secs(10),
            unit_time: Duration::from_millis(100),
            linger: Duration::ZERO,
            vision_share_percent: 50,
            max_batch_images: 32,
            max_batch_rows: 256,
            max_batch_tokens: 4096,
            feature_cache_bytes: 256 << 20,
            max_pinned_feature_bytes: 256 << 20,
            feature_cache_ttl: Duration::from_secs(3600),
            max_kv_bytes: 2 << 30,
            worker_hang_limit: Duration::from_secs(60),
            worker_rebuild_interval: Duration::from_secs(600),
        }
    }
}

/// A setting whose value the engine does not accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, accepted: {accepted}")]
pub struct SettingsError {
    /// Name of the field, as in [`EngineSettings`].
    pub field: &'static str,
    /// The rejected value, as text.
    pub value: String,
    /// The accepted range, in words.
    pub accepted: &'static str,
}

impl EngineSettings {
    /// Checks all values.
    ///
    /// # Errors
    /// Returns the first value that the engine does not accept.
    pub fn check(&self) -> Result<(), SettingsError> {
        let positive = [
            ("capacity_rows", self.capacity_rows as u64),
            ("capacity_bytes", self.capacity_bytes),
            ("max_batch_images", self.max_batch_images as u64),
            ("max_batch_rows", self.max_batch_rows as u64),
            ("max_batch_tokens", self.max_batch_tokens as u64),
        ];
        for (field, value) in positive {
            if value == 0 {
                return Err(SettingsError { field, value: "0".into(), accepted: "1 or more" });
            }
        }
        if !(1..=99).contains(&self.vision_share_percent) {
            return Err(SettingsError {
                field: "vision_share_percent",
                value: self.vision_share_percent.to_string(),
                accepted: "1 to 99",
            });
        }
        let positive = [
            ("max_queue_wait", self.max_queue_wait),
            ("unit_time", self.unit_time),
            ("worker_hang_limit", self.worker_hang_limit),
        ];
        for (field, value) in positive {
            if value.is_zero() {
                return Err(SettingsError {
                    field,
                    value: "0".into(),
                    accepted: "a positive duration",
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_accepted_and_a_bad_share_is_named() {
        assert_eq!(EngineSettings::default().check(), Ok(()));
        let bad = EngineSettings { vision_share_percent: 100, ..EngineSettings::default() };
        assert_eq!(bad.check().unwrap_err().field, "vision_share_percent");
        let empty = EngineSettings { max_batch_rows: 0, ..EngineSettings::default() };
        assert_eq!(empty.check().unwrap_err().field, "max_batch_rows");
    }
}
