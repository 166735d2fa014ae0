//! Activations: rows of f32 in buffers that are used again.
//!
//! A layer's results are megabytes that live for microseconds. Fresh memory for each would cost a page fault every
//! 4 KB: about as long as a layer norm over it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::kernels::attention::Memory;

/// `[rows, width]` f32 values; clones share.
#[derive(Debug, Clone)]
pub struct Act {
    rows: usize,
    width: usize,
    buffer: Arc<Buffer>,
}

/// Buffers that wait for their next use.
#[derive(Debug, Default)]
pub(super) struct Arena {
    free: Mutex<Vec<Vec<f32>>>,
}

/// Buffers that wait at most: more than the activations that a layer has at a time.
const MOST_FREE: usize = 12;
/// Bytes that wait at most: what a layer over eight images of base size has at a time.
const MOST_FREE_BYTES: usize = 192 << 20;

#[derive(Debug)]
struct Buffer {
    values: Vec<f32>,
    /// Where it goes when nobody needs it; nowhere for what is kept for long.
    home: Weak<Arena>,
    /// The rows as attention reads them; lives as long as someone attends to them.
    packed: Mutex<Weak<Memory>>,
}

impl Arena {
    /// A buffer of `length` values, left over from earlier use.
    pub(super) fn take(&self, length: usize) -> Vec<f32> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        // The smallest that is large enough: they are sorted.
        let fitting = free.iter().position(|values| values.capacity() >= length);
        let mut values = match fitting {
            Some(index) => free.remove(index),
            None => Vec::with_capacity(length),
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
        // A single unit of unusual size does not keep its memory for ever.
        while bytes(&free) > MOST_FREE_BYTES {
            free.pop();
        }
    }
}

impl Act {
    /// Values `[rows, width]` in a buffer that returns to `home`.
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

    /// Values `[rows, width]` in memory of their own size, to be kept.
    pub(super) fn kept(rows: usize, width: usize, values: Vec<f32>) -> Self {
        Self {
            rows,
            width,
            buffer: Arc::new(Buffer { values, home: Weak::new(), packed: Mutex::default() }),
        }
    }

    /// The rows packed for attention: what someone holds already, or what `pack` makes.
    pub(super) fn packed(&self, pack: impl FnOnce() -> Memory) -> Arc<Memory> {
        let mut held = self.buffer.packed.lock().unwrap_or_else(PoisonError::into_inner);
        held.upgrade().unwrap_or_else(|| {
            let packed = Arc::new(pack());
            *held = Arc::downgrade(&packed);
            packed
        })
    }

    /// How many rows.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// All values, row by row.
    pub(super) fn values(&self) -> &[f32] {
        &self.buffer.values
    }

    /// One row.
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
