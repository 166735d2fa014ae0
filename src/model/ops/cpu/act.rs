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
        let fitting = (0..free.len())
            .filter(|&index| free[index].capacity() >= length)
            .min_by_key(|&index| free[index].capacity());
        let mut values = match fitting {
            Some(index) => free.swap_remove(index),
            None => Vec::with_capacity(length),
        };
        values.resize(length, 0.0);
        values
    }

    fn give_back(&self, values: Vec<f32>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(values);
        if free.len() > MOST_FREE {
            let smallest = (0..free.len()).min_by_key(|&index| free[index].capacity());
            free.swap_remove(smallest.unwrap_or_default());
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
