//! Activations, which are rows of f32 in reused buffers.
//!
//! The results of a layer take megabytes, but live only for microseconds. Fresh memory for each result would cost a
//! page fault per 4 KB, which takes about as long as a layer norm over those 4 KB.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::kernels::OutOfMemory;
use crate::kernels::attention::PackedKv;

/// Activations `[rows, width]` in f32; clones share the buffer.
#[derive(Debug, Clone)]
pub struct CpuActivations {
    rows: usize,
    width: usize,
    buffer: Arc<Buffer>,
}

/// Pool of free buffers, for reuse.
#[derive(Debug, Default)]
pub(super) struct Arena {
    free: Mutex<Vec<Vec<f32>>>,
}

/// Maximum number of free buffers. One layer uses fewer buffers than this at the same time.
const MOST_FREE: usize = 12;
/// Maximum total size of the free buffers in bytes. One layer of a base-size model needs this much for a batch of eight
/// images.
const MOST_FREE_BYTES: usize = 192 << 20;

#[derive(Debug)]
struct Buffer {
    values: Vec<f32>,
    /// Arena to which the buffer returns when it is dropped; empty for long-lived activations.
    home: Weak<Arena>,
    /// A copy of the rows, packed for attention. Its users own it, and it is freed when the last of them drops it.
    packed: Mutex<Weak<PackedKv>>,
}

impl Arena {
    /// Returns a buffer of `length` values: zeros, or values left over from earlier use.
    ///
    /// # Panics
    /// With [`OutOfMemory`] as payload.
    pub(super) fn take(&self, length: usize) -> Vec<f32> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        // The list is sorted, so this is the smallest buffer that is large enough.
        let fitting = free.iter().position(|values| values.capacity() >= length);
        let mut values = if let Some(index) = fitting {
            free.remove(index)
        } else {
            let mut fresh = Vec::new();
            let reserved = fresh.try_reserve_exact(length);
            reserved.unwrap_or_else(|_| out_of_memory(length));
            fresh
        };
        values.resize(length, 0.0);
        values
    }

    fn give_back(&self, values: Vec<f32>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(values);
        free.sort_unstable_by_key(Vec::capacity);
        if free.len() > MOST_FREE {
            free.remove(0);
        }
        let bytes = |free: &[Vec<f32>]| {
            free.iter().map(|values| values.capacity() * size_of::<f32>()).sum::<usize>()
        };
        // Free the largest buffers, so that memory for one unusually large work unit is not kept for ever.
        while bytes(&free) > MOST_FREE_BYTES {
            free.pop();
        }
    }
}

/// Returns a copy of `values` that the caller owns.
///
/// # Panics
/// With [`OutOfMemory`] as payload.
pub(super) fn copy_of(values: &[f32]) -> Vec<f32> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(values.len()).unwrap_or_else(|_| out_of_memory(values.len()));
    copy.extend_from_slice(values);
    copy
}

fn out_of_memory(values: usize) -> ! {
    OutOfMemory { bytes: values.saturating_mul(size_of::<f32>()) }.unwind()
}

impl CpuActivations {
    /// Creates activations `[rows, width]` in a buffer that returns to `home` when it is dropped.
    pub(super) fn from_arena(
        home: &Arc<Arena>,
        rows: usize,
        width: usize,
        values: Vec<f32>,
    ) -> Self {
        debug_assert_eq!(values.len(), rows * width);
        Self {
            rows,
            width,
            buffer: Arc::new(Buffer {
                values,
                home: Arc::downgrade(home),
                packed: Mutex::default(),
            }),
        }
    }

    /// Creates long-lived activations `[rows, width]`, in memory of exactly their size.
    pub(super) fn kept(rows: usize, width: usize, values: Vec<f32>) -> Self {
        Self {
            rows,
            width,
            buffer: Arc::new(Buffer { values, home: Weak::new(), packed: Mutex::default() }),
        }
    }

    /// Returns the rows packed for attention: the copy that is already in use or, if there is none, the result of
    /// `pack`.
    pub(super) fn packed(&self, pack: impl FnOnce() -> PackedKv) -> Arc<PackedKv> {
        let mut held = self.buffer.packed.lock().unwrap_or_else(PoisonError::into_inner);
        held.upgrade().unwrap_or_else(|| {
            let packed = Arc::new(pack());
            *held = Arc::downgrade(&packed);
            packed
        })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Returns all values in row-major order.
    pub(super) fn values(&self) -> &[f32] {
        &self.buffer.values
    }

    pub(super) fn row(&self, index: usize) -> &[f32] {
        &self.buffer.values[index * self.width..][..self.width]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            home.give_back(std::mem::take(&mut self.values));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_large_ones_are_not_kept_for_ever() {
        let arena = Arena::default();
        let buffer = arena.take(1000);
        let place = buffer.as_ptr();
        arena.give_back(buffer);
        let again = arena.take(10);
        assert_eq!(again.as_ptr(), place);
        for _ in 0..3 {
            arena.give_back(Vec::with_capacity(MOST_FREE_BYTES / 8));
        }
        let free = arena.free.lock().unwrap();
        let bytes: usize = free.iter().map(|values| values.capacity() * 4).sum();
        assert!(bytes <= MOST_FREE_BYTES, "{bytes}");
    }
}
