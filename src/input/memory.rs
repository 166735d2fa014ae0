//! Allocates the buffers whose size a client determines: those of bodies, image values, files and pixels. If such an
//! allocation fails, the request or the picture is rejected. A failed ordinary allocation would abort the process.
//!
//! Buffers of fixed size, and buffers of at most a few hundred kilobytes (tables, one row), are allocated as usual.

use super::InputError;
use super::stop::{self, Stop, Stopped};

/// Error: the system cannot allocate a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OutOfMemory {
    /// Size of the failed allocation in bytes.
    pub(super) bytes: u64,
}

impl From<OutOfMemory> for InputError {
    fn from(OutOfMemory { bytes }: OutOfMemory) -> Self {
        Self::OutOfMemory { bytes }
    }
}

/// Number of bytes that must remain available after every large allocation, because the rest of the process also
/// allocates memory and aborts if that fails. It is above 32 MiB, the size from which glibc always uses mmap. A trial
/// allocation of this size therefore touches no memory.
const HEADROOM_BYTES: u64 = 40 << 20;
/// Size in bytes from which a buffer is large: its allocation must leave [`HEADROOM_BYTES`] available.
const LARGE_BYTES: u64 = 1 << 20;

/// Returns an empty buffer with capacity for `length` values.
///
/// # Errors
/// [`OutOfMemory`].
pub(super) fn with_capacity<T>(length: usize) -> Result<Vec<T>, OutOfMemory> {
    let bytes = (length as u64).saturating_mul(size_of::<T>() as u64);
    if crate::faults::at("input::reserve") {
        return Err(OutOfMemory { bytes });
    }
    #[cfg(test)]
    if tally::is_denied() {
        return Err(OutOfMemory { bytes });
    }
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(length).map_err(|_| OutOfMemory { bytes })?;
    if bytes >= LARGE_BYTES && !can_allocate(HEADROOM_BYTES) {
        return Err(OutOfMemory { bytes });
    }
    #[cfg(test)]
    tally::reserved(bytes);
    Ok(buffer)
}

/// Makes room in `buffer` for `additional` more bytes. Like `Vec::reserve`, it doubles the capacity if that is more.
///
/// # Errors
/// `OutOfMemory`.
pub(crate) fn reserve(buffer: &mut Vec<u8>, additional: usize) -> Result<(), InputError> {
    if buffer.capacity() - buffer.len() >= additional {
        return Ok(());
    }
    let needed = OutOfMemory { bytes: (buffer.len() as u64).saturating_add(additional as u64) };
    if crate::faults::at("input::reserve") {
        return Err(needed.into());
    }
    buffer.try_reserve(additional).map_err(|_| needed)?;
    if buffer.capacity() as u64 >= LARGE_BYTES && !can_allocate(HEADROOM_BYTES) {
        return Err(needed.into());
    }
    Ok(())
}

/// Checks that a JSON text of `length` bytes can be parsed: the parser copies strings, some of them twice.
///
/// # Errors
/// `OutOfMemory`.
pub(crate) fn probe_for_json(length: usize) -> Result<(), InputError> {
    let bytes = length as u64 * 2;
    if bytes >= LARGE_BYTES { Ok(probe_available(bytes)?) } else { Ok(()) }
}

/// Returns a buffer of `length` copies of `value`.
///
/// # Errors
/// [`OutOfMemory`].
pub(super) fn filled<T: Clone>(value: T, length: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut buffer = with_capacity(length)?;
    buffer.resize(length, value);
    Ok(buffer)
}

/// Number of bytes written between two polls of `stop`. The first write to a fresh page is slow.
const PIECE_BYTES: usize = 4 << 20;

/// Like [`filled`], but polls `stop`. It is for the largest buffers, which take a fraction of a second to fill.
///
/// # Errors
/// [`OutOfMemory`], [`Stopped`].
pub(super) fn filled_until<T, E>(value: T, length: usize, stop: Stop<'_>) -> Result<Vec<T>, E>
where
    T: Clone,
    E: From<OutOfMemory> + From<Stopped>,
{
    let mut buffer = with_capacity(length)?;
    let piece = (PIECE_BYTES / size_of::<T>()).max(1);
    while buffer.len() < length {
        stop::check(stop)?;
        buffer.resize((buffer.len() + piece).min(length), value.clone());
    }
    Ok(buffer)
}

/// Frees a large buffer before the work continues. It does the same as a plain drop, except that tests count the bytes
/// that it frees.
pub(super) fn release<T>(buffer: Vec<T>) {
    #[cfg(test)]
    tally::released((buffer.capacity() * size_of::<T>()) as u64);
    drop(buffer);
}

/// Checks that `bytes` could be allocated now. Call it before a decoder of another crate runs, because a failed
/// allocation in such a decoder aborts the process. Another thread may still take the memory in the meantime.
///
/// # Errors
/// [`OutOfMemory`].
pub(super) fn probe_available(bytes: u64) -> Result<(), OutOfMemory> {
    let wanted = if bytes >= LARGE_BYTES { bytes.saturating_add(HEADROOM_BYTES) } else { bytes };
    if can_allocate(wanted) { Ok(()) } else { Err(OutOfMemory { bytes }) }
}

fn can_allocate(bytes: u64) -> bool {
    let mut trial: Vec<u8> = Vec::new();
    let reserved = usize::try_from(bytes).is_ok_and(|bytes| trial.try_reserve_exact(bytes).is_ok());
    // Without this call, the compiler may optimise away an unused allocation.
    std::hint::black_box(&trial);
    reserved
}

/// Counts the bytes that this module allocates, per thread. Tests compare the peak with `ImageHeader::working_bytes`.
#[cfg(test)]
pub(super) mod tally {
    use std::cell::Cell;

    thread_local! {
        static LIVE: Cell<u64> = const { Cell::new(0) };
        static PEAK: Cell<u64> = const { Cell::new(0) };
        /// Number of allocations so far.
        static ASKED: Cell<u64> = const { Cell::new(0) };
        /// Index of the allocation that must fail, for tests.
        static DENIED: Cell<Option<u64>> = const { Cell::new(None) };
    }

    pub(super) fn is_denied() -> bool {
        let asked = ASKED.get();
        ASKED.set(asked + 1);
        DENIED.get() == Some(asked)
    }

    /// Runs `work`. Returns the number of buffers that it allocates, and its result.
    pub(in super::super) fn count<T>(work: impl FnOnce() -> T) -> (u64, T) {
        ASKED.set(0);
        let result = work();
        (ASKED.get(), result)
    }

    /// Runs `work` and makes one of its allocations fail: the one with the index `denied`, counted from 0.
    pub(in super::super) fn without<T>(denied: u64, work: impl FnOnce() -> T) -> T {
        DENIED.set(Some(denied));
        let (_, result) = count(work);
        DENIED.set(None);
        result
    }

    pub(super) fn reserved(bytes: u64) {
        let live = LIVE.get() + bytes;
        LIVE.set(live);
        PEAK.set(PEAK.get().max(live));
    }

    pub(super) fn released(bytes: u64) {
        LIVE.set(LIVE.get().saturating_sub(bytes));
    }

    /// Runs `work`. Returns the peak size in bytes of its buffers, and its result. A buffer counts until it is passed
    /// to `release`, even if it is dropped earlier, so the true peak is never higher.
    pub(in super::super) fn peak<T>(work: impl FnOnce() -> T) -> (u64, T) {
        LIVE.set(0);
        PEAK.set(0);
        let result = work();
        (PEAK.get(), result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_no_memory_holds_is_an_error() {
        let bytes = 1 << 60;
        assert_eq!(with_capacity::<u64>(1 << 57).unwrap_err(), OutOfMemory { bytes });
        assert_eq!(filled(0_u8, 1 << 60).unwrap_err(), OutOfMemory { bytes });
        assert_eq!(probe_available(bytes), Err(OutOfMemory { bytes }));
        assert_eq!(reserve(&mut vec![1, 2], 1 << 60), Err(OutOfMemory { bytes: bytes + 2 }.into()));
        assert_eq!(filled(7_u16, 3), Ok(vec![7; 3]));
        assert_eq!(probe_available(1 << 10), Ok(()));
    }
}
