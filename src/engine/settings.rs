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
    /// Bytes of encoded images that rows may pin; vision starts no image beyond (one may always run).
    pub max_pinned_feature_bytes: u64,
    /// How long an encoded image is kept.
    pub feature_cache_ttl: Duration,
    /// Bytes of keys and values that decoding rows may hold: their images' and their own.
    pub max_kv_bytes: u64,
    /// A worker without a sign of life for this long counts as down; far above the longest call of the backend.
    pub worker_hang_limit: Duration,
    /// A backend that fails again within this time after it was built anew ends the worker.
    pub worker_rebuild_interval: Duration,
}

impl Default for EngineSettings {
    /// The defaults of a CPU.
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

/// A setting that the engine cannot work with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, accepted: {accepted}")]
pub struct SettingsError {
    /// The field's name.
    pub field: &'static str,
    /// Its value.
    pub value: String,
    /// What is accepted.
    pub accepted: &'static str,
}

impl EngineSettings {
    /// Checks every value.
    ///
    /// # Errors
    /// The first field that the engine cannot work with.
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
