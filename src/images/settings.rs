//! The settings of decoding and of the pixel cache, and their checks.

use std::num::NonZeroU64;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::settings::{InvalidSetting, Section, millis, require, zero_is_none};

/// Limits on the decoding pool and the pixel cache: the section `[images]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImagesSettings {
    /// Number of decoding threads, 1 to 256. In the settings file, 0 stands for the default of this machine.
    #[serde(with = "decode_threads")]
    pub decode_threads: usize,
    /// Maximum number of images that wait for a decoding thread; further images are rejected.
    pub decode_queue: usize,
    /// Maximum total number of bytes that the decodes in progress may use. An image that needs more is decoded alone.
    pub decode_budget_bytes: u64,
    /// High-water mark of the process's resident memory in bytes, above which new pictures are rejected. `None` sets no
    /// mark; `app` replaces `None` with nine tenths of the memory limit.
    #[serde(with = "zero_is_none")]
    pub memory_high_water_bytes: Option<NonZeroU64>,
    /// Size of the pixel cache in bytes. If it is 0, nothing is cached, and no image can be given by its id.
    pub pixel_cache_bytes: u64,
    /// How long prepared pixels stay in the cache.
    #[serde(rename = "pixel_cache_ttl_ms", with = "millis")]
    pub pixel_cache_ttl: Duration,
}

impl Default for ImagesSettings {
    fn default() -> Self {
        Self {
            decode_threads: default_threads(),
            decode_queue: 512,
            decode_budget_bytes: 1 << 30,
            memory_high_water_bytes: None,
            pixel_cache_bytes: 128 << 20,
            pixel_cache_ttl: Duration::from_secs(3600),
        }
    }
}

/// Returns the default number of decoding threads: one per four cores (cgroup quota and affinity respected), but at
/// least two. More threads could starve the models; with a single thread, one large picture would hold up all others.
fn default_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 4).max(2)
}

/// Reads and writes the number of decoding threads. The default depends on the machine, so a settings file represents
/// it as 0.
mod decode_threads {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::default_threads;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference to the field")]
    pub(super) fn serialize<S: Serializer>(
        threads: &usize,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let is_default = *threads == default_threads();
        serializer.serialize_u64(if is_default { 0 } else { *threads as u64 })
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<usize, D::Error> {
        let written = usize::deserialize(deserializer)?;
        Ok(if written == 0 { default_threads() } else { written })
    }
}

impl Section for ImagesSettings {
    const NAME: &'static str = "images";

    fn check(&self) -> Result<(), InvalidSetting> {
        // moka accepts at most 1000 years as time to live. A year is longer than any process lives.
        const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
        let Self { decode_threads, decode_queue, decode_budget_bytes, .. } = *self;
        require((1..=256).contains(&decode_threads), "decode_threads", decode_threads, "1 to 256")?;
        require(decode_queue > 0, "decode_queue", decode_queue, "1 or more")?;
        require(decode_budget_bytes > 0, "decode_budget_bytes", decode_budget_bytes, "1 or more")?;
        let ttl = self.pixel_cache_ttl;
        let is_accepted = !ttl.is_zero() && ttl <= YEAR;
        require(is_accepted, "pixel_cache_ttl_ms", ttl.as_millis(), "above 0 and at most a year")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_pass_their_own_check() {
        assert_eq!(ImagesSettings::default().check(), Ok(()));
    }

    #[test]
    fn each_wrong_setting_is_named() {
        let good = ImagesSettings::default();
        let cases = [
            (ImagesSettings { decode_threads: 0, ..good.clone() }, "decode_threads"),
            (ImagesSettings { decode_queue: 0, ..good.clone() }, "decode_queue"),
            (ImagesSettings { decode_budget_bytes: 0, ..good.clone() }, "decode_budget_bytes"),
            (
                ImagesSettings { pixel_cache_ttl: Duration::ZERO, ..good.clone() },
                "pixel_cache_ttl_ms",
            ),
        ];
        for (settings, name) in cases {
            assert_eq!(settings.check().unwrap_err().key, name);
        }
    }

    #[test]
    fn no_number_of_threads_means_the_default_of_the_machine() {
        let default = ImagesSettings::default();
        let mut written = serde_json::to_value(&default).unwrap();
        assert_eq!(written["decode_threads"], 0);
        let read = |written: &serde_json::Value| ImagesSettings::deserialize(written).unwrap();
        assert_eq!(read(&written), default);
        written["decode_threads"] = 255.into();
        assert_eq!(read(&written).decode_threads, 255);
    }
}
