//! The KV cache of text that is being generated: a list of pages for each sequence and layer.
//!
//! A step writes behind the tokens of the cache that it extends, and returns a longer cache. The old cache stays as it
//! is, because it does not look at the rest of its last page. So a step that failed can be run again. When two
//! sequences of a step extend the same cache (beams), the second one gets a copy of the last page.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};

use super::GpuOps;
use crate::engine::backend::{BackendError, DeviceUsage};
use crate::gpu::heap::Buffer;
use crate::gpu::kernels::attention::{PAGE_TOKENS, PagedKv};
use crate::gpu::pages::{Page, PagePool};

/// Keys and values of one sequence in one layer; clones share the pages.
#[derive(Debug, Clone, Default)]
pub struct CachedRows {
    pages: Vec<Arc<Page>>,
    tokens: usize,
}

/// The caches of a step with room for its new rows, and how the kernels find them.
pub(super) struct Step {
    caches: Vec<CachedRows>,
    /// First new row, number of new rows, number of tokens before and first entry in `tables`, for each sequence.
    sequences: Vec<usize>,
    /// The page numbers of all sequences.
    tables: Vec<usize>,
    most_rows: usize,
}

/// Arguments of the kernels, and the buffers that they point to.
pub(super) struct PlacedKv {
    pub(super) arguments: PagedKv,
    _lists: Arc<Buffer>,
}

impl Step {
    /// Extends each cache by its number of new rows. An absent cache is empty.
    pub(super) fn extend(
        pool: &Arc<PagePool>,
        lengths: &[usize],
        caches: &[Option<&CachedRows>],
    ) -> Result<Self, BackendError> {
        let mut step = Self {
            caches: Vec::with_capacity(caches.len()),
            sequences: Vec::with_capacity(4 * caches.len()),
            tables: Vec::new(),
            most_rows: lengths.iter().copied().max().unwrap_or(0),
        };
        let mut row = 0;
        let mut extended = HashSet::new();
        for (&rows, cache) in lengths.iter().zip(caches) {
            let mut cache = cache.cloned().unwrap_or_default();
            let before = cache.tokens;
            let is_partial = before % PAGE_TOKENS != 0;
            if let Some(last) = cache.pages.last_mut().filter(|_| is_partial)
                && !extended.insert(last.number())
            {
                *last = Arc::new(pool.copy_of(last)?);
                extended.insert(last.number());
            }
            cache.tokens += rows;
            while cache.pages.len() * PAGE_TOKENS < cache.tokens {
                cache.pages.push(Arc::new(pool.take()?));
            }
            step.sequences.extend([row, rows, before, step.tables.len()]);
            step.tables.extend(cache.pages.iter().map(|page| page.number() as usize));
            step.caches.push(cache);
            row += rows;
        }
        Ok(step)
    }

    /// Adds sequences without new rows until there are `sequences`. Kernels do nothing for them.
    pub(super) fn fill_up(&mut self, sequences: usize) {
        self.sequences.resize(4 * sequences, 0);
    }

    pub(super) fn into_caches(self) -> Vec<CachedRows> {
        self.caches
    }
}

impl GpuOps {
    /// Allocates the pages of KV caches whose keys have `width` values, unless there are some already.
    pub(super) fn add_page_pool(&self, width: usize) -> Result<(), BackendError> {
        let mut pools = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if pools.contains_key(&width) {
            return Ok(());
        }
        // Kernels take the distance between pages in units of 16 values.
        let page_bytes = 2 * PAGE_TOKENS * width * self.format.bytes();
        let bytes = self.kv_bytes + self.kv_bytes / 8;
        let pages = u32::try_from(bytes / page_bytes as u64).unwrap_or(u32::MAX).max(1);
        let pool = PagePool::try_new(self.memory.device(), page_bytes, pages)?;
        pools.insert(width, Arc::new(pool));
        Ok(())
    }

    /// Returns how the memory of the device is used.
    pub(super) fn usage(&self) -> DeviceUsage {
        let [allocated, used] = self.memory.bytes();
        let mut usage = DeviceUsage {
            total_bytes: self.total_bytes,
            allocated_bytes: allocated as u64,
            used_bytes: used as u64,
            kv_pages_used: 0,
            kv_pages: 0,
            graph_launches: self.replays(),
            lost_graphs: self.lost_graphs(),
        };
        let pools = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        for pool in pools.values() {
            let used = pool.pages() - pool.free_pages();
            usage.kv_pages += pool.pages();
            usage.kv_pages_used += used;
            usage.allocated_bytes += (pool.pages() * pool.page_bytes()) as u64;
            usage.used_bytes += (used * pool.page_bytes()) as u64;
        }
        usage
    }

    pub(super) fn page_pool(&self, width: usize) -> Result<Arc<PagePool>, BackendError> {
        let pools = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = || BackendError::Device(format!("no KV cache for rows of {width} values"));
        pools.get(&width).cloned().ok_or_else(missing)
    }

    /// Copies the lists of a step to the device.
    pub(super) fn paged_kv(
        &self,
        pool: &PagePool,
        step: &Step,
        heads: usize,
        width: usize,
    ) -> Result<PlacedKv, BackendError> {
        let lists = [step.sequences.as_slice(), &step.tables].concat();
        let lists = self.place_ints(&lists)?;
        let arguments = PagedKv {
            pages: pool.slab(),
            page_stride: pool.page_bytes() / self.format.bytes() / 16,
            sequences: lists.address(),
            tables: lists.address().offset(step.sequences.len() * size_of::<i32>()),
            sequence_count: step.sequences.len() / 4,
            most_rows: step.most_rows,
            heads,
            head_width: width / heads,
        };
        Ok(PlacedKv { arguments, _lists: lists })
    }
}
