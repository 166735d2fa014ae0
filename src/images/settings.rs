//! The settings of decoding and of the pixel cache, and their checks.

use std::time::Duration;

/// Limits on the decoding pool and the pixel cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagesSettings {
    /// Number of decoding threads, 1 to 256.
    pub decode_threads: usize,
    /// Maximum number of images that wait for a decoding thread; further images are rejected.
    pub decode_queue: usize,
    /// Maximum number of bytes that all decodes in progress hold together. An image that needs more is decoded alone.
    pub decode_budget_bytes: u64,
    /// High-water mark of the process's resident memory in bytes, above which new pictures are rejected; `None`
    /// disables it.
    pub memory_high_water_bytes: Option<u64>,
    /// Size of the pixel cache in bytes. If it is 0, nothing is cached, and no image can be given by its id.
    pub pixel_cache_bytes: u64,
    /// How long prepared pixels are kept.
    pub pixel_cache_ttl: Duration,
}

impl Default for ImagesSettings {
    /// Sets one decoding thread per four cores (cgroup quota and affinity respected), so that decoding does not starve
    /// the models, but at least two, so that one large picture does not hold up all others.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            decode_threads: (cores / 4).max(2),
            decode_queue: 512,
            decode_budget_bytes: 1 << 30,
            memory_high_water_bytes: None,
            pixel_cache_bytes: 128 << 20,
            pixel_cache_ttl: Duration::from_secs(3600),
        }
    }
}

/// A setting whose value is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} = {value} is not accepted: it must be {accepted}")]
pub struct InvalidImagesSetting {
    /// Name of the field in [`ImagesSettings`].
    pub name: &'static str,
    /// The rejected value as text.
    pub value: String,
    /// The accepted values, in words.
    pub accepted: &'static str,
}

impl ImagesSettings {
    /// Checks every value against its accepted range.
    ///
    /// # Errors
    /// The first setting whose value is not accepted.
    pub fn check(&self) -> Result<(), InvalidImagesSetting> {
        // moka accepts at most 1000 years as time to live. A year is longer than any process lives.
        const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
        let refuse = |name, value, accepted| Err(InvalidImagesSetting { name, value, accepted });
        if !(1..=256).contains(&self.decode_threads) {
            return refuse("decode_threads", self.decode_threads.to_string(), "1 to 256");
        }
        if self.decode_queue == 0 {
            return refuse("decode_queue", self.decode_queue.to_string(), "1 or more");
        }
        if self.decode_budget_bytes == 0 {
            return refuse("decode_budget_bytes", "0".to_owned(), "1 or more");
        }
        if self.pixel_cache_ttl.is_zero() || self.pixel_cache_ttl > YEAR {
            let value = format!("{:?}", self.pixel_cache_ttl);
            return refuse("pixel_cache_ttl", value, "above 0 and at most a year");
        }
        Ok(())
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
            (ImagesSettings { pixel_cache_ttl: Duration::ZERO, ..good.clone() }, "pixel_cache_ttl"),
        ];
        for (settings, name) in cases {
            assert_eq!(settings.check().unwrap_err().name, name);
        }
    }
}
