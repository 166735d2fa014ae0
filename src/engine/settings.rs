//! The engine's settings and their checks.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::settings::{InvalidSetting, Section, millis, optional_millis, require};
use crate::task::Device;

/// Limits and scheduling policy of the engine: the section `[engine]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineSettings {
    /// Maximum number of rows that admitted calls may reserve at the same time. `config` checks that this is at least
    /// `limits.max_rows`, the maximum for one call (256 by default).
    pub capacity_rows: usize,
    /// Maximum number of bytes that admitted calls may reserve at the same time, for request bodies and prepared
    /// pixels.
    pub capacity_bytes: u64,
    /// Maximum estimated wait of an admitted call. A call that would wait longer is rejected.
    #[serde(rename = "max_queue_wait_ms", with = "millis")]
    pub max_queue_wait: Duration,
    /// Maximum estimated time of one work unit; `None` means the device's default. A unit always holds at least one item,
    /// even if that item alone takes longer. Read it by [`unit_time()`](Self::unit_time).
    #[serde(rename = "unit_time_ms", with = "optional_millis")]
    pub unit_time: Option<Duration>,
    /// How long a waiting image or row may be held back so that others can share its batch, counted from its arrival.
    #[serde(rename = "linger_ms", with = "millis")]
    pub linger: Duration,
    /// Percentage of the worker's time for vision while both vision and text have work, 1..=99.
    pub vision_share_percent: u8,
    /// Number of rows of captions that gather before a decode step runs, while the images of further captions wait. With fewer
    /// than half as many rows and images, and with 1, rows never wait.
    pub gather_rows: usize,
    /// Maximum number of images in one vision batch.
    pub max_batch_images: usize,
    /// Maximum number of rows in one text unit.
    pub max_batch_rows: usize,
    /// Maximum number of tokens in one text unit (a decode step or a batch of single-pass rows).
    pub max_batch_tokens: usize,
    /// Capacity of the feature cache in bytes, including features that are pinned by rows. With 0, features are dropped
    /// as soon as no row needs them.
    pub feature_cache_bytes: u64,
    /// Maximum number of bytes of features that rows may pin. An image that would exceed this limit is not encoded
    /// until there is room or nothing is pinned.
    pub max_pinned_feature_bytes: u64,
    /// Time to live of an entry in the feature cache.
    #[serde(rename = "feature_cache_ttl_ms", with = "millis")]
    pub feature_cache_ttl: Duration,
    /// Maximum number of bytes of KV cache that running groups may hold, for cross-attention to their images and for
    /// their own tokens.
    pub max_kv_bytes: u64,
    /// A worker without a heartbeat for this long counts as down. Set it far above the longest single backend call.
    #[serde(rename = "worker_hang_limit_ms", with = "millis")]
    pub worker_hang_limit: Duration,
    /// If the backend fails again within this time after it was rebuilt, the worker ends.
    #[serde(rename = "worker_rebuild_interval_ms", with = "millis")]
    pub worker_rebuild_interval: Duration,
}

/// Default of `unit_time` on a CPU: a third of what one image of a base model takes on two cores, so that the text steps
/// of other calls wait little.
const CPU_UNIT_TIME: Duration = Duration::from_millis(100);
/// Default of `unit_time` on a GPU, where the same work takes a fraction of the time (estimated; not measured yet).
const GPU_UNIT_TIME: Duration = Duration::from_millis(20);

impl EngineSettings {
    /// Returns the maximum estimated time of one work unit.
    #[must_use]
    pub fn unit_time(&self) -> Duration {
        self.unit_time.unwrap_or(CPU_UNIT_TIME)
    }

    /// Replaces the settings that depend on the device by their defaults for `device`, unless they are set.
    #[must_use]
    pub(super) fn on(self, device: Device) -> Self {
        let default = match device {
            Device::Cpu => CPU_UNIT_TIME,
            Device::Cuda(_) => GPU_UNIT_TIME,
        };
        Self { unit_time: self.unit_time.or(Some(default)), ..self }
    }
}

impl Default for EngineSettings {
    /// The defaults; those that depend on the device are left open.
    fn default() -> Self {
        Self {
            capacity_rows: 512,
            capacity_bytes: 512 << 20,
            max_queue_wait: Duration::from_secs(10),
            unit_time: None,
            linger: Duration::ZERO,
            vision_share_percent: 50,
            gather_rows: 8,
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

impl Section for EngineSettings {
    const NAME: &'static str = "engine";

    fn check(&self) -> Result<(), InvalidSetting> {
        let counts = [
            ("capacity_rows", self.capacity_rows as u64),
            ("capacity_bytes", self.capacity_bytes),
            ("max_batch_images", self.max_batch_images as u64),
            ("max_batch_rows", self.max_batch_rows as u64),
            ("max_batch_tokens", self.max_batch_tokens as u64),
        ];
        for (key, count) in counts {
            require(count > 0, key, count, "1 or more")?;
        }
        let share = self.vision_share_percent;
        require((1..=99).contains(&share), "vision_share_percent", share, "1 to 99")?;
        let times = [
            ("max_queue_wait_ms", self.max_queue_wait),
            ("worker_hang_limit_ms", self.worker_hang_limit),
        ];
        for (key, time) in times {
            require(!time.is_zero(), key, 0, "a positive duration")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_takes_less_time_on_a_gpu_unless_it_is_set() {
        let default = EngineSettings::default();
        let on = |settings: &EngineSettings, device| settings.clone().on(device).unit_time();
        assert_eq!(on(&default, Device::Cpu), default.unit_time());
        assert_eq!(on(&default, Device::Cuda(1)), GPU_UNIT_TIME);
        let set = EngineSettings { unit_time: Some(Duration::from_millis(7)), ..default };
        assert_eq!(on(&set, Device::Cuda(0)), Duration::from_millis(7));
    }

    #[test]
    fn defaults_are_accepted_and_a_bad_share_is_named() {
        assert_eq!(EngineSettings::default().check(), Ok(()));
        let bad = EngineSettings { vision_share_percent: 100, ..EngineSettings::default() };
        assert_eq!(bad.check().unwrap_err().key, "vision_share_percent");
        let empty = EngineSettings { max_batch_rows: 0, ..EngineSettings::default() };
        assert_eq!(empty.check().unwrap_err().key, "max_batch_rows");
    }
}
