//! Pages of KV caches: equal pieces of one slab. Kernels address them by number, so a cache can grow without being
//! copied.

use std::sync::{Arc, Mutex, PoisonError};

use super::device::{Address, Device, DeviceError};

/// A slab of pages.
#[derive(Debug)]
pub struct PagePool {
    device: Arc<dyn Device>,
    slab: Address,
    page_bytes: usize,
    pages: u32,
    /// Numbers of the pages that nobody holds. The last one is handed out first.
    free: Mutex<Vec<u32>>,
}

/// A page, which returns to its pool when it is dropped.
#[derive(Debug)]
pub struct Page {
    number: u32,
    pool: Arc<PagePool>,
}

impl PagePool {
    /// Allocates a slab of `pages` pages of `page_bytes` each.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] if the device has no memory left.
    pub fn try_new(
        device: Arc<dyn Device>,
        page_bytes: usize,
        pages: u32,
    ) -> Result<Self, DeviceError> {
        let slab = device.allocate(page_bytes * pages as usize)?;
        Ok(Self { device, slab, page_bytes, pages, free: Mutex::new((0..pages).rev().collect()) })
    }

    /// Takes a page, with undefined contents.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] if all pages are taken.
    pub fn take(self: &Arc<Self>) -> Result<Page, DeviceError> {
        let number = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let exhausted =
            || DeviceError::OutOfMemory("all pages of the KV cache are taken".to_owned());
        Ok(Page { number: number.ok_or_else(exhausted)?, pool: Arc::clone(self) })
    }

    /// Takes a page with the contents of `page`, which is of the same pool.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn copy_of(self: &Arc<Self>, page: &Page) -> Result<Page, DeviceError> {
        let copy = self.take()?;
        self.device.copy(self.address(page.number), self.address(copy.number), self.page_bytes)?;
        Ok(copy)
    }

    /// Returns the address of page 0.
    #[must_use]
    pub fn slab(&self) -> Address {
        self.slab
    }

    /// Returns the size of a page in bytes.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// Returns the number of pages.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages as usize
    }

    /// Returns the number of pages that nobody holds.
    #[must_use]
    pub fn free_pages(&self) -> usize {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Overwrites all pages that nobody holds, so that a test sees whether work reads them.
    ///
    /// # Errors
    /// See [`DeviceError`].
    #[cfg(test)]
    pub fn fill_free(&self, byte: u8) -> Result<(), DeviceError> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).clone();
        free.into_iter().try_for_each(|number| {
            self.device.upload(self.address(number), &vec![byte; self.page_bytes])
        })
    }

    fn address(&self, number: u32) -> Address {
        self.slab.offset(number as usize * self.page_bytes)
    }
}

impl Drop for PagePool {
    fn drop(&mut self) {
        self.device.free(self.slab);
    }
}

impl Page {
    /// Returns the number of the page in its slab.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.number);
    }
}
