//! Buffers that start at a cache line.

use std::ops::{Deref, DerefMut};

/// One cache line, which is also one AVX-512 register.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; LINE]);

/// Groups (or f32) in a line.
pub(in crate::kernels) const LINE: usize = 16;

/// A growing buffer of 4-byte values on whole cache lines, zero when new.
#[derive(Debug, Default)]
pub(in crate::kernels) struct Lines {
    lines: Vec<Line>,
    length: usize,
}

impl Lines {
    pub(in crate::kernels) fn zeroed(length: usize) -> Self {
        let mut buffer = Self::default();
        buffer.resize(length);
        buffer
    }

    /// Makes it `length` values long; what was there stays, what is new is zero or left over from earlier use.
    pub(in crate::kernels) fn resize(&mut self, length: usize) {
        let lines = length.div_ceil(LINE);
        if lines > self.lines.len() {
            self.lines.resize(lines, Line([0; LINE]));
        }
        self.length = length;
    }

    /// As f32.
    #[expect(unsafe_code, reason = "the same bytes as f32")]
    pub(in crate::kernels) fn as_f32_mut(&mut self) -> &mut [f32] {
        // SAFETY: every bit pattern is an f32, of the same size and a smaller alignment.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.length) }
    }
}

impl Deref for Lines {
    type Target = [u32];

    #[expect(unsafe_code, reason = "lines as their values")]
    fn deref(&self) -> &[u32] {
        // SAFETY: `length` is at most the values in `lines`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.length) }
    }
}

impl DerefMut for Lines {
    #[expect(unsafe_code, reason = "lines as their values")]
    fn deref_mut(&mut self) -> &mut [u32] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.length) }
    }
}
