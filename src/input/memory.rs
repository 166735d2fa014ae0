//! Buffers whose size a client's file decides. Each is asked for in a way that can fail: the picture is then refused,
//! where an ordinary allocation would end the process.
//!
//! Buffers of fixed size, and those of a few hundred kilobytes at most (tables, one row), are allocated as usual.

use super::InputError;
use super::stop::{self, Stop, Stopped};

/// The system has no memory for a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OutOfMemory {
    /// Bytes that were asked for.
    pub(super) bytes: u64,
}

impl From<OutOfMemory> for InputError {
    fn from(OutOfMemory { bytes }: OutOfMemory) -> Self {
        Self::OutOfMemory { bytes }
    }
}

/// Stays free beside every large buffer, for all that cannot fail softly: the rest of the process allocates too. Above
/// 32 MiB, from where on glibc maps every allocation, so that asking for it and giving it back touches no memory.
const HEADROOM_BYTES: u64 = 40 << 20;
/// Buffers from this size on are large.
const LARGE_BYTES: u64 = 1 << 20;

/// An empty buffer with room for so many values.
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
    if bytes >= LARGE_BYTES && !is_free(HEADROOM_BYTES) {
        return Err(OutOfMemory { bytes });
    }
    #[cfg(test)]
    tally::reserved(bytes);
    Ok(buffer)
}

/// A buffer of so many equal values.
///
/// # Errors
/// [`OutOfMemory`].
pub(super) fn filled<T: Clone>(value: T, length: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut buffer = with_capacity(length)?;
    buffer.resize(length, value);
    Ok(buffer)
}

/// Bytes that are written between two questions whether the picture is still wanted. Where memory is new, writing it the
/// first time is slow.
const PIECE_BYTES: usize = 4 << 20;

/// As [`filled`], for the largest buffers: filling one takes a part of a second.
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

/// Gives a large buffer back before the work goes on. Dropping it does the same; tests count what is given back here.
pub(super) fn release<T>(buffer: Vec<T>) {
    #[cfg(test)]
    tally::released((buffer.capacity() * size_of::<T>()) as u64);
    drop(buffer);
}

/// Checks that so many bytes could be had, for decoders of others, whose allocations end the process when they fail.
/// Another thread may take them meanwhile.
///
/// # Errors
/// [`OutOfMemory`].
pub(super) fn check_free(bytes: u64) -> Result<(), OutOfMemory> {
    let wanted = if bytes >= LARGE_BYTES { bytes.saturating_add(HEADROOM_BYTES) } else { bytes };
    if is_free(wanted) { Ok(()) } else { Err(OutOfMemory { bytes }) }
}

fn is_free(bytes: u64) -> bool {
    let mut trial: Vec<u8> = Vec::new();
    let reserved = usize::try_from(bytes).is_ok_and(|bytes| trial.try_reserve_exact(bytes).is_ok());
    // Without this the compiler may leave out an allocation that nobody uses.
    std::hint::black_box(&trial);
    reserved
}

/// Counts the buffers of this module, by thread: tests compare their peak with what a header announced.
#[cfg(test)]
pub(super) mod tally {
    use std::cell::Cell;

    thread_local! {
        static LIVE: Cell<u64> = const { Cell::new(0) };
        static PEAK: Cell<u64> = const { Cell::new(0) };
        /// Buffers that were asked for.
        static ASKED: Cell<u64> = const { Cell::new(0) };
        /// The one of these that cannot be had.
        static DENIED: Cell<Option<u64>> = const { Cell::new(None) };
    }

    pub(super) fn is_denied() -> bool {
        let asked = ASKED.get();
        ASKED.set(asked + 1);
        DENIED.get() == Some(asked)
    }

    /// How many buffers `work` asks for.
    pub(in super::super) fn count<T>(work: impl FnOnce() -> T) -> (u64, T) {
        ASKED.set(0);
        let result = work();
        (ASKED.get(), result)
    }

    /// Does `work` where the buffer of this number, from 0, cannot be had.
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

    /// Most bytes of buffers that `work` held at a time. A buffer counts until it is released, so the truth is never above.
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
        assert_eq!(check_free(bytes), Err(OutOfMemory { bytes }));
        assert_eq!(filled(7_u16, 3), Ok(vec![7; 3]));
        assert_eq!(check_free(1 << 10), Ok(()));
    }
}
