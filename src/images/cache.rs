//! An LRU cache of prepared pixels, bounded in bytes and in time to live. Errors are never cached.

use super::{ImagesSettings, Key};
use crate::task::PreparedImage;
use crate::telemetry::metrics::Metrics;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use std::sync::Arc;

/// The label of this cache in metrics.
const LABEL: &str = "pixels";

/// Estimated size in bytes of an entry in addition to its pixels: key, image description, the cache's own bookkeeping.
const ENTRY_BYTES: usize = 512;

/// The cache and its metrics. A configured size of 0 disables the cache.
pub(super) struct PixelCache {
    entries: Option<Cache<Key, PreparedImage>>,
    metrics: Arc<Metrics>,
}

/// The outcome of a look-up. It is the value of the label `result` of `cache_requests_total`.
#[derive(Debug, Clone, Copy)]
pub(super) enum CacheResult {
    Hit,
    Miss,
    Joined,
}

impl CacheResult {
    const ALL: [Self; 3] = [Self::Hit, Self::Miss, Self::Joined];

    fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Joined => "joined",
        }
    }
}

impl PixelCache {
    pub(super) fn new(settings: &ImagesSettings, metrics: Arc<Metrics>) -> Self {
        for result in CacheResult::ALL {
            metrics.cache_requests_total.with_label_values(&[LABEL, result.label()]);
        }
        let bytes = metrics.cache_bytes.with_label_values(&[LABEL]);
        let evictions = metrics.cache_evictions_total.with_label_values(&[LABEL]);
        let entries = (settings.pixel_cache_bytes > 0).then(|| {
            Cache::builder()
                .max_capacity(settings.pixel_cache_bytes)
                .time_to_live(settings.pixel_cache_ttl)
                // LRU without an admission policy: an id must be valid right after its image was sent, however rarely
                // the image is used.
                .eviction_policy(EvictionPolicy::lru())
                .weigher(|_, image: &PreparedImage| weight(image))
                .eviction_listener(move |_, image, cause| {
                    bytes.sub(i64::from(weight(&image)));
                    if cause == RemovalCause::Size {
                        evictions.inc();
                    }
                })
                .build()
        });
        Self { entries, metrics }
    }

    pub(super) fn get(&self, key: &Key) -> Option<PreparedImage> {
        self.entries.as_ref()?.get(key)
    }

    /// Inserts an image, and evicts the least recently used images if the cache exceeds its size limit.
    pub(super) fn insert(&self, key: Key, image: PreparedImage) {
        if let Some(entries) = &self.entries {
            let bytes = self.metrics.cache_bytes.with_label_values(&[LABEL]);
            bytes.add(i64::from(weight(&image)));
            entries.insert(key, image);
            // Evict now, on this decoding thread, so that the limit holds at once.
            entries.run_pending_tasks();
        }
    }

    pub(super) fn count(&self, result: CacheResult) {
        self.metrics.cache_requests_total.with_label_values(&[LABEL, result.label()]).inc();
    }
}

fn weight(image: &PreparedImage) -> u32 {
    u32::try_from(image.pixels.as_bytes().len() + ENTRY_BYTES).unwrap_or(u32::MAX)
}
