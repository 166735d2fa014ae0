//! Memory of a device that is allocated in large chunks, kept, and handed out in buffers.
//!
//! Allocating memory of a GPU waits for all its work, so the operations may not do it for each result. All work runs in
//! one stream, in order. So a buffer may be handed out again as soon as it is dropped: the work that still uses it runs
//! first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::{Address, Device, DeviceError};

/// Sizes are multiples of this number of bytes, so every buffer is aligned for every kernel.
const ALIGNMENT: usize = 256;

/// Size in bytes of a chunk, unless a larger buffer is wanted.
const CHUNK_BYTES: usize = 64 << 20;

/// Hands out buffers, from the first free range that is large enough. Chunks come in the order in which they were
/// allocated, whatever their addresses are. So the same requests in the same order, from a heap without buffers, get the
/// same addresses, even if other requests have added chunks in between. Recorded graphs depend on this.
#[derive(Debug)]
pub struct Heap {
    device: Arc<dyn Device>,
    chunk_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    chunks: Vec<Address>,
    /// Sizes of the free ranges. Adjacent ranges are merged, but not across chunks.
    free: BTreeMap<Place, usize>,
    used_bytes: usize,
    allocated_bytes: usize,
}

/// Start of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// Index of the chunk. The first field, so that ranges are ordered by it.
    chunk: usize,
    address: u64,
}

impl Place {
    /// Returns the place `bytes` further, in the same chunk.
    fn offset(self, bytes: usize) -> Self {
        Self { address: self.address + bytes as u64, ..self }
    }
}

/// Memory on the device, which returns to its heap when it is dropped.
#[derive(Debug)]
pub struct Buffer {
    place: Place,
    bytes: usize,
    heap: Arc<Heap>,
}

impl Heap {
    /// Creates a heap that holds no memory yet.
    #[must_use]
    pub fn new(device: Arc<dyn Device>) -> Self {
        Self::with_chunks(device, CHUNK_BYTES)
    }

    /// Creates a heap that allocates at least `chunk_bytes` at once.
    #[must_use]
    pub fn with_chunks(device: Arc<dyn Device>, chunk_bytes: usize) -> Self {
        Self { device, chunk_bytes, state: Mutex::default() }
    }

    /// Returns a buffer of at least `bytes` bytes, with undefined contents.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] if the device has no memory left.
    pub fn buffer(self: &Arc<Self>, bytes: usize) -> Result<Buffer, DeviceError> {
        let bytes = bytes.max(1).next_multiple_of(ALIGNMENT);
        let mut state = self.state();
        let fitting = state.free.iter().find(|(_, free)| **free >= bytes);
        let (place, free) = match fitting {
            Some((&place, &free)) => (place, free),
            None => self.grow(&mut state, bytes)?,
        };
        state.free.remove(&place);
        if free > bytes {
            state.free.insert(place.offset(bytes), free - bytes);
        }
        state.used_bytes += bytes;
        drop(state);
        Ok(Buffer { place, bytes, heap: Arc::clone(self) })
    }

    /// Returns the number of bytes that the heap has allocated.
    #[must_use]
    pub fn allocated_bytes(&self) -> usize {
        self.state().allocated_bytes
    }

    /// Returns the number of bytes in buffers.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.state().used_bytes
    }

    /// Overwrites all memory that is not in buffers, so that a test sees whether work reads it.
    ///
    /// # Errors
    /// See [`DeviceError`].
    #[cfg(test)]
    pub fn fill_free(&self, byte: u8) -> Result<(), DeviceError> {
        let free = self.state().free.clone();
        free.into_iter().try_for_each(|(place, bytes)| {
            self.device.upload(Address(place.address), &vec![byte; bytes])
        })
    }

    /// Allocates a chunk for a buffer of `bytes`, and returns it as a free range.
    fn grow(&self, state: &mut State, bytes: usize) -> Result<(Place, usize), DeviceError> {
        let size = bytes.max(self.chunk_bytes).next_multiple_of(ALIGNMENT);
        // Near the end of the memory, a chunk of exactly the wanted size may still fit.
        let (address, size) = match self.device.allocate(size) {
            Ok(address) => (address, size),
            Err(DeviceError::OutOfMemory(_)) if size > bytes => {
                (self.device.allocate(bytes)?, bytes)
            }
            Err(error) => return Err(error),
        };
        let place = Place { chunk: state.chunks.len(), address: address.0 };
        state.chunks.push(address);
        state.allocated_bytes += size;
        state.free.insert(place, size);
        Ok((place, size))
    }

    fn give_back(&self, mut place: Place, mut bytes: usize) {
        let mut state = self.state();
        state.used_bytes -= bytes;
        if let Some((&before, &free)) = state.free.range(..place).next_back()
            && before.offset(free) == place
        {
            state.free.remove(&before);
            bytes += free;
            place = before;
        }
        if let Some(free) = state.free.remove(&place.offset(bytes)) {
            bytes += free;
        }
        state.free.insert(place, bytes);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        for &chunk in &self.state().chunks {
            self.device.free(chunk);
        }
    }
}

impl Buffer {
    /// Returns the address of the first byte.
    #[must_use]
    pub fn address(&self) -> Address {
        Address(self.place.address)
    }

    /// Returns the size in bytes, at least what was asked for.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.heap.give_back(self.place, self.bytes);
    }
}
