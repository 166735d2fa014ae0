//! The settings of decoding and of the pixel cache, and their checks.

use std::time::Duration;

/// Bounds of the decoding pool and the pixel cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagesSettings {
    /// Decoding threads, 1 to 256.
    pub decode_threads: usize,
    /// Images that may wait for a thread; above, calls are refused.
    pub decode_queue: usize,
    /// Bytes that all decodes in progress may hold together; one image alone may exceed it.
    pub decode_budget_bytes: u64,
    /// Resident memory of the process above which pictures are refused; `None` sets no mark.
    pub memory_high_water_bytes: Option<u64>,
    /// Bytes of prepared pixels kept; 0 keeps none, and no image can be named by its id.
    pub pixel_cache_bytes: u64,
    /// How long prepared pixels are kept.
    pub pixel_cache_ttl: Duration,
}

impl Default for ImagesSettings {
    /// A quarter of the cores (cgroup quota and affinity respected): decoding must not starve the models. Two at least: one
    /// large picture must not hold up all others.
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

/// A setting whose value cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} = {value} is not accepted: it must be {accepted}")]
pub struct InvalidImagesSetting {
    /// The field's name.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// What is accepted.
    pub accepted: &'static str,
}

impl ImagesSettings {
    /// Checks every value.
    ///
    /// # Errors
    /// The first setting that cannot work.
    pub fn check(&self) -> Result<(), InvalidImagesSetting> {
        // moka refuses to keep anything longer than 1000 years; a year is more than any process lives.
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
