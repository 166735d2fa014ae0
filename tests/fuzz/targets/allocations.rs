//! An allocator that counts the bytes that each thread holds. It counts every allocation, also those inside the decoders
//! of other crates, whereas the tally of `input::memory` counts only the buffers that the server allocates itself.
//!
//! The program `decode_claims` and the test binary install [`Counting`] as their global allocator. Without it,
//! [`peak`] returns 0.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Size in bytes from which an allocation may be a trial. `input::memory` makes trial allocations of at least 40 MiB to
/// see whether memory is available, writes nothing to them and frees them at once. The limits in `claims` allow no
/// picture that needs as much.
const TRIAL_BYTES: usize = 40 << 20;

thread_local! {
    /// Bytes that this thread has allocated minus the bytes that it has freed. Negative if it frees what other threads
    /// have allocated.
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
    /// Size of an allocation that counts as a trial if the next event is that it is freed; 0 if there is none.
    static TRIAL: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, with counters.
pub(crate) struct Counting;

/// Runs `work`. Returns the peak of the bytes that it held, beyond those that the thread held before, and its result.
pub(crate) fn peak<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = work();
    (u64::try_from(PEAK.get() - before).unwrap_or(0), result)
}

fn allocated(bytes: usize) {
    let live = LIVE.get() + TRIAL.replace(0).cast_signed() as i64 + bytes.cast_signed() as i64;
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

fn freed(bytes: usize) {
    let trial = TRIAL.replace(0);
    if trial == bytes {
        return;
    }
    if trial > 0 {
        allocated(trial);
    }
    LIVE.set(LIVE.get() - bytes.cast_signed() as i64);
}

// SAFETY: every method passes its arguments to `System` unchanged and returns what `System` returns. The counters need
// no allocation: they are thread-local constants without a destructor.
#[expect(unsafe_code, reason = "implementing an allocator is unsafe")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= TRIAL_BYTES {
            // Counts an earlier trial that is still there.
            allocated(0);
            TRIAL.set(layout.size());
        } else {
            allocated(layout.size());
        }
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`, which is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        freed(layout.size());
        // SAFETY: `memory` comes from this allocator, hence from `System`, with this layout.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if new_size > layout.size() {
            // If the block has to move, the old and the new one exist together.
            allocated(new_size);
            freed(layout.size());
        } else {
            freed(layout.size());
            allocated(new_size);
        }
        // SAFETY: as in `dealloc`; the caller guarantees that `new_size` is valid.
        unsafe { System.realloc(memory, layout, new_size) }
    }
}
