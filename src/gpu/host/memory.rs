//! Memory of the host device. Kernels get plain addresses; everything else checks that an access lies in one allocation.

#![expect(unsafe_code, reason = "memory by address, as a device has it")]

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;

use crate::gpu::device::{Address, DeviceError};

/// Alignment that [`Device::allocate`](crate::gpu::device::Device::allocate) promises.
const ALIGNMENT: usize = 256;

/// Bytes before and after each allocation that no kernel may change.
const GUARD: usize = ALIGNMENT;

/// Value of the guards' bytes.
const GUARD_BYTE: u8 = 0xa5;

/// Value of bytes that were never written. In every format they are NaN, so that a result shows that they were read.
const UNDEFINED: u8 = 0xff;

/// The allocations of a device.
#[derive(Default)]
pub(super) struct Memory {
    /// Largest sum of the allocations' sizes.
    pub(super) limit: u64,
    /// Size of the allocation at each address.
    allocations: BTreeMap<u64, usize>,
}

impl Memory {
    pub(super) fn with_limit(limit: u64) -> Self {
        Self { limit, allocations: BTreeMap::new() }
    }

    /// Returns the number of allocated bytes.
    pub(super) fn used(&self) -> u64 {
        self.allocations.values().map(|&bytes| bytes as u64).sum()
    }

    pub(super) fn allocate(&mut self, bytes: usize) -> Result<Address, DeviceError> {
        let free = self.limit.saturating_sub(self.used());
        if bytes as u64 > free {
            return Err(DeviceError::OutOfMemory(format!("{bytes} bytes asked for, {free} free")));
        }
        let layout = layout(bytes);
        // SAFETY: the guards make the size of the layout positive.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            return Err(DeviceError::OutOfMemory("the CPU's memory is used up".into()));
        }
        // SAFETY: `start` is the start of `layout.size()` bytes, of which the middle `bytes` are between the guards.
        unsafe {
            start.write_bytes(GUARD_BYTE, layout.size());
            start.add(GUARD).write_bytes(UNDEFINED, bytes);
        }
        let address = start as u64 + GUARD as u64;
        self.allocations.insert(address, bytes);
        Ok(Address(address))
    }

    /// Frees an allocation. An address that is none is ignored, as a GPU's driver would only report it.
    pub(super) fn free(&mut self, address: Address) {
        if let Some(bytes) = self.allocations.remove(&address.0) {
            // SAFETY: `allocate` got this memory with the same layout, and it has just been removed.
            unsafe { dealloc(pointer(address).sub(GUARD), layout(bytes)) };
        }
    }

    /// Checks that a range lies in one allocation.
    pub(super) fn check(&self, address: Address, bytes: usize) -> Result<(), DeviceError> {
        let inside =
            self.allocations.range(..=address.0).next_back().is_some_and(|(start, size)| {
                address.0 - start <= *size as u64
                    && bytes as u64 <= *size as u64 - (address.0 - start)
            });
        if inside {
            Ok(())
        } else {
            Err(DeviceError::Failed(format!("{bytes} bytes at {:#x} are not allocated", address.0)))
        }
    }

    pub(super) fn write(&self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.check(to, bytes.len())?;
        // SAFETY: `check` has found the range in an allocation, which Rust code accesses only here and by pointer.
        unsafe { pointer(to).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    pub(super) fn read(&self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.check(from, bytes.len())?;
        // SAFETY: as in `write`; `allocate` has initialised all bytes.
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(pointer(from), bytes.len()) };
        Ok(())
    }

    pub(super) fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        self.check(from, bytes)?;
        self.check(to, bytes)?;
        if from.0.abs_diff(to.0) < bytes as u64 {
            return Err(DeviceError::Failed("the ranges of a copy overlap".into()));
        }
        // SAFETY: both ranges lie in allocations, and do not overlap.
        unsafe { pointer(to).copy_from_nonoverlapping(pointer(from), bytes) };
        Ok(())
    }

    /// Checks that `writer` has written nowhere beside the allocations.
    pub(super) fn check_guards(&self, writer: &str) -> Result<(), DeviceError> {
        for (&start, &bytes) in &self.allocations {
            // SAFETY: the guards are the bytes before and after the allocation, which `allocate` has initialised.
            let (before, after) = unsafe {
                let start = pointer(Address(start));
                (
                    std::slice::from_raw_parts(start.sub(GUARD), GUARD),
                    std::slice::from_raw_parts(start.add(bytes), GUARD),
                )
            };
            if before.iter().chain(after).any(|&byte| byte != GUARD_BYTE) {
                let message = format!("{writer} wrote beside the {bytes} bytes at {start:#x}");
                return Err(DeviceError::Failed(message));
            }
        }
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let addresses: Vec<u64> = self.allocations.keys().copied().collect();
        for address in addresses {
            self.free(Address(address));
        }
    }
}

fn pointer(address: Address) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(address.0 as usize)
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes + 2 * GUARD, ALIGNMENT)
        .expect("the limit is below the address space")
}
