//! Buffers aligned to cache lines; large buffers use huge pages.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Number of 4-byte values per cache line. A cache line has the size of one AVX-512 register.
pub(in crate::kernels) const LINE: usize = 16;

const LINE_BYTES: usize = 64;

/// Size of a huge page in bytes. A product walks through megabytes of panels; with pages of 4 KB it would wait for an
/// address translation every few hundred values.
const HUGE_PAGE: usize = 2 << 20;

/// Payload of the panic with which a computation ends that cannot allocate a buffer. The sizes of these buffers follow
/// from the rows of a batch, so the caller may try again with fewer rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfMemory {
    /// Size of the failed allocation in bytes.
    pub bytes: usize,
}

impl OutOfMemory {
    /// Unwinds with this payload. The panic hook is not called, because this is no bug and the caller reports it.
    ///
    /// # Panics
    /// Always.
    pub fn unwind(self) -> ! {
        std::panic::resume_unwind(Box::new(self))
    }
}

/// A growable buffer of 4-byte values, aligned to cache lines. A new buffer is filled with zeros.
#[derive(Debug)]
pub(in crate::kernels) struct AlignedBuffer {
    values: NonNull<u32>,
    /// Capacity in cache lines, not in values.
    capacity: usize,
    /// Number of values in use.
    length: usize,
}

#[expect(unsafe_code, reason = "the buffer owns its memory")]
// SAFETY: the buffer owns its memory, as a `Vec` does.
unsafe impl Send for AlignedBuffer {}
#[expect(unsafe_code, reason = "the buffer owns its memory")]
// SAFETY: shared access only reads the memory.
unsafe impl Sync for AlignedBuffer {}

impl Default for AlignedBuffer {
    fn default() -> Self {
        Self { values: NonNull::dangling(), capacity: 0, length: 0 }
    }
}

impl AlignedBuffer {
    /// Creates a buffer of `length` zeros. Weights are stored in such buffers: if there is no memory for them, the process
    /// ends, because it could not serve.
    pub(in crate::kernels) fn zeroed(length: usize) -> Self {
        if length == 0 {
            return Self::default();
        }
        let lines = length.div_ceil(LINE);
        let mut buffer = Self::allocate(lines).unwrap_or_else(|| handle_alloc_error(layout(lines)));
        buffer.length = length;
        buffer
    }

    /// Sets the length to `length` values. Existing values are kept; new values are zero or left over from earlier use.
    ///
    /// # Panics
    /// With [`OutOfMemory`] as payload if the buffer must grow and cannot. The buffer is then as before.
    pub(in crate::kernels) fn resize(&mut self, length: usize) {
        let lines = length.div_ceil(LINE);
        if lines > self.capacity {
            let mut larger = Self::allocate(lines)
                .unwrap_or_else(|| OutOfMemory { bytes: lines * LINE_BYTES }.unwind());
            larger.length = self.length;
            larger.copy_from_slice(self);
            *self = larger;
        }
        self.length = length;
    }

    /// Allocates `lines` cache lines, filled with zeros. Returns `None` if there is no memory for them.
    #[expect(unsafe_code, reason = "allocation with an alignment")]
    fn allocate(lines: usize) -> Option<Self> {
        let layout = layout(lines);
        // SAFETY: `lines` is not 0, so the size of the layout is not 0.
        let values = NonNull::new(unsafe { alloc(layout) })?;
        advise_huge_pages(values, layout);
        // SAFETY: the memory was just allocated with this size. (A page is allocated when it is first written, so only
        // pages that are zeroed after the advice become huge pages.)
        unsafe { values.write_bytes(0, layout.size()) };
        Some(Self { values: values.cast(), capacity: lines, length: 0 })
    }

    /// Returns the values as f32 with the same bits.
    #[expect(unsafe_code, reason = "views the same bytes as f32")]
    pub(in crate::kernels) fn as_f32_mut(&mut self) -> &mut [f32] {
        // SAFETY: every bit pattern is a valid f32, and f32 has the same size and alignment as u32.
        unsafe { std::slice::from_raw_parts_mut(self.values.as_ptr().cast(), self.length) }
    }
}

/// Returns the layout of `lines` cache lines. A buffer of at least the size of a huge page is aligned to a huge page, a
/// smaller one to a cache line.
fn layout(lines: usize) -> Layout {
    let bytes = lines * LINE_BYTES;
    let alignment = if bytes < HUGE_PAGE { LINE_BYTES } else { HUGE_PAGE };
    Layout::from_size_align(bytes, alignment).expect("a buffer is smaller than the address space")
}

/// Requests huge pages, because some systems use them only on request. Without them everything works, but more slowly.
/// Miri does not have this system call.
#[cfg(all(target_os = "linux", not(miri)))]
#[expect(unsafe_code, reason = "madvise on memory that we own")]
fn advise_huge_pages(memory: NonNull<u8>, layout: Layout) {
    use rustix::mm::{Advice, madvise};
    let bytes = layout.size() / HUGE_PAGE * HUGE_PAGE;
    if bytes > 0 {
        // SAFETY: we own the range, and this advice does not change its contents. The result is ignored: a kernel
        // without huge pages rejects the advice, which is harmless.
        let _ = unsafe { madvise(memory.as_ptr().cast(), bytes, Advice::LinuxHugepage) };
    }
}

#[cfg(any(not(target_os = "linux"), miri))]
fn advise_huge_pages(_: NonNull<u8>, _: Layout) {}

impl Drop for AlignedBuffer {
    #[expect(unsafe_code, reason = "the buffer owns its memory")]
    fn drop(&mut self) {
        if self.capacity > 0 {
            // SAFETY: the memory was allocated with this layout.
            unsafe { dealloc(self.values.as_ptr().cast(), layout(self.capacity)) };
        }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u32];

    #[expect(unsafe_code, reason = "views the lines as a slice of values")]
    fn deref(&self) -> &[u32] {
        // SAFETY: `length` is at most the number of values in `capacity` lines, and all of them are initialised.
        unsafe { std::slice::from_raw_parts(self.values.as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBuffer {
    #[expect(unsafe_code, reason = "views the lines as a slice of values")]
    fn deref_mut(&mut self) -> &mut [u32] {
        // SAFETY: as in `deref`; in addition, the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.values.as_ptr(), self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_grows_keeps_what_it_has_and_is_zero_where_new() {
        let mut buffer = AlignedBuffer::default();
        assert!(buffer.is_empty());
        // Miri takes minutes to fill a buffer of huge pages.
        let most = if cfg!(miri) { 20_000 } else { 3 << 20 };
        for length in [1, 16, 17, 10_000, most] {
            let before = buffer.len();
            buffer.resize(length);
            assert_eq!(buffer.as_ptr() as usize % LINE_BYTES, 0);
            assert!(buffer[..before].iter().all(|&value| value == 7));
            assert!(buffer[before..].iter().all(|&value| value == 0));
            buffer.fill(7);
        }
        buffer.resize(2);
        assert_eq!(buffer[..], [7, 7]);
    }

    #[test]
    fn a_buffer_that_no_memory_holds_stays_as_it_was() {
        let mut buffer = AlignedBuffer::default();
        buffer.resize(3);
        buffer.fill(7);
        let grow = std::panic::AssertUnwindSafe(|| buffer.resize(1 << 58));
        let payload = std::panic::catch_unwind(grow).unwrap_err();
        assert_eq!(payload.downcast_ref(), Some(&OutOfMemory { bytes: 1 << 60 }));
        assert_eq!(buffer[..], [7, 7, 7]);
    }
}
