//! Buffers of heaps and pages of KV caches.

use std::sync::Arc;

use super::scripted::ScriptedDevice;
use super::support::{Numbers, download_ints};
use crate::gpu::device::{Device, DeviceError};
use crate::gpu::heap::{Buffer, Heap};
use crate::gpu::host::HostDevice;
use crate::gpu::pages::{Page, PagePool};

const CHUNK: usize = 4096;

/// Returns a heap on a device of `most_bytes`, whose allocations get these addresses.
fn heap(addresses: &[u64], most_bytes: usize) -> (Arc<ScriptedDevice>, Arc<Heap>) {
    let device = Arc::new(ScriptedDevice::default());
    device.plan_memory(addresses, most_bytes);
    let heap = Arc::new(Heap::with_chunks(Arc::clone(&device) as Arc<dyn Device>, CHUNK));
    (device, heap)
}

fn buffers(heap: &Arc<Heap>, sizes: &[usize]) -> Vec<Buffer> {
    sizes.iter().map(|&bytes| heap.buffer(bytes).unwrap()).collect()
}

fn addresses(buffers: &[Buffer]) -> Vec<u64> {
    buffers.iter().map(|buffer| buffer.address().0).collect()
}

#[test]
fn the_first_free_range_that_is_large_enough_is_used() {
    let (_, heap) = heap(&[0x10000], CHUNK);
    let mut held = buffers(&heap, &[256, 512, 256, 256]);
    assert_eq!(addresses(&held), [0x10000, 0x10100, 0x10300, 0x10400]);
    held.remove(2);
    held.remove(1);
    assert_eq!(heap.buffer(768).unwrap().address().0, 0x10100, "neighbours are merged");
    held.remove(0);
    assert_eq!(heap.buffer(1024).unwrap().address().0, 0x10000);
    assert_eq!(heap.used_bytes(), 256);
    drop(held);
    assert_eq!(heap.buffer(CHUNK).unwrap().address().0, 0x10000, "all is one range again");
}

#[test]
fn sizes_are_rounded_up_and_no_buffer_is_empty() {
    let (_, heap) = heap(&[0x10000], CHUNK);
    let held = buffers(&heap, &[0, 1, 255, 257]);
    assert_eq!(addresses(&held), [0x10000, 0x10100, 0x10200, 0x10300]);
    assert_eq!(held[3].bytes(), 512);
}

#[test]
fn adjacent_chunks_are_not_merged() {
    let (device, heap) = heap(&[0x10000, 0x11000, 0x12000], 1 << 20);
    drop(buffers(&heap, &[CHUNK, CHUNK]));
    let large = heap.buffer(2 * CHUNK).unwrap();
    assert_eq!(large.address().0, 0x12000);
    assert_eq!(device.allocations().len(), 3);
}

/// Graphs contain addresses, so a pass must get them again after the heap has grown, even if the driver returned a lower
/// address for the new chunk.
#[test]
fn the_same_requests_get_the_same_addresses_after_the_heap_has_grown() {
    let (_, heap) = heap(&[0x50000, 0x10000, 0x30000], 1 << 20);
    let requests = [1024, 2048, 512, 2048, 256];
    let first = addresses(&buffers(&heap, &requests));
    assert_eq!(first, [0x50000, 0x50400, 0x50c00, 0x10000, 0x50e00]);
    assert_eq!(addresses(&buffers(&heap, &requests)), first);
    drop(buffers(&heap, &[3 * CHUNK]));
    assert_eq!(addresses(&buffers(&heap, &requests)), first);
}

#[test]
fn near_the_end_of_the_memory_a_chunk_of_the_wanted_size_is_tried() {
    let (device, heap) = heap(&[], CHUNK + 768);
    let first = heap.buffer(CHUNK).unwrap();
    let second = heap.buffer(700).unwrap();
    assert_eq!(second.bytes(), 768);
    let full = heap.buffer(1).unwrap_err();
    assert!(matches!(full, DeviceError::OutOfMemory(_)), "{full:?}");
    drop(second);
    heap.buffer(512).unwrap();
    let sizes: Vec<usize> = device.allocations().into_iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(sizes, [CHUNK, 768]);
    drop((first, heap));
    assert_eq!(device.allocations(), []);
}

#[test]
fn an_error_other_than_too_little_memory_is_returned_at_once() {
    let (device, heap) = heap(&[], CHUNK);
    let failed = DeviceError::Failed("injected".to_owned());
    device.fail_call(0, failed.clone());
    assert_eq!(heap.buffer(1).unwrap_err(), failed);
    assert_eq!(device.take_calls(), ["allocate"]);
    heap.buffer(1).unwrap();
}

#[test]
fn buffers_never_overlap_and_return_completely() {
    let (device, heap) = heap(&[0x90000, 0x20000, 0x60000], 1 << 24);
    let mut numbers = Numbers::new(3);
    let mut held: Vec<Buffer> = Vec::new();
    for _ in 0..2000 {
        if numbers.below(5) < 2 && !held.is_empty() {
            held.swap_remove(numbers.below(held.len()));
        } else if held.len() < 40 {
            held.push(heap.buffer(numbers.below(1500)).unwrap());
        }
        let mut ranges: Vec<_> =
            held.iter().map(|buffer| (buffer.address().0, buffer.bytes() as u64)).collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        assert_eq!(heap.used_bytes(), held.iter().map(Buffer::bytes).sum::<usize>());
    }
    held.clear();
    let chunks = device.allocations().len();
    let whole: Vec<_> = (0..chunks).map(|_| heap.buffer(CHUNK).unwrap()).collect();
    assert_eq!(device.allocations().len(), chunks, "each chunk is one free range again");
    drop((whole, heap));
    assert_eq!(device.allocations(), []);
}

#[test]
fn pages_are_exhausted_and_return() {
    let device = Arc::new(ScriptedDevice::default());
    let pool = PagePool::try_new(Arc::clone(&device) as Arc<dyn Device>, 512, 3).unwrap();
    let pool = Arc::new(pool);
    assert_eq!(device.allocations()[0].1, 3 * 512);
    let mut pages: Vec<Page> = (0..3).map(|_| pool.take().unwrap()).collect();
    assert_eq!(pages.iter().map(Page::number).collect::<Vec<_>>(), [0, 1, 2]);
    for full in [pool.take(), pool.copy_of(&pages[0])] {
        assert!(matches!(full, Err(DeviceError::OutOfMemory(_))), "{full:?}");
    }
    pages.remove(1);
    assert_eq!((pool.free_pages(), pool.take().unwrap().number()), (1, 1));
    device.fail_call(0, DeviceError::Failed("injected".to_owned()));
    pool.copy_of(&pages[0]).unwrap_err();
    assert_eq!(pool.free_pages(), 1, "a copy that failed holds no page");
    drop(pages);
    assert_eq!(pool.free_pages(), 3);
    // A page keeps its pool.
    let last = pool.take().unwrap();
    drop(pool);
    assert_eq!(device.allocations().len(), 1);
    drop(last);
    assert_eq!(device.allocations(), []);
}

#[test]
fn a_pool_that_does_not_fit_is_out_of_memory() {
    let device = Arc::new(ScriptedDevice::default());
    device.plan_memory(&[], 1000);
    let pool = PagePool::try_new(device, 512, 2);
    assert!(matches!(pool, Err(DeviceError::OutOfMemory(_))), "{pool:?}");
}

#[test]
fn a_copied_page_has_the_contents_of_its_original() {
    let Some(device) = HostDevice::try_new() else { return };
    let device = Arc::new(device);
    let pool = PagePool::try_new(Arc::clone(&device) as Arc<dyn Device>, 256, 4).unwrap();
    let pool = Arc::new(pool);
    let address = |page: &Page| pool.slab().offset(page.number() as usize * pool.page_bytes());
    let (other, page) = (pool.take().unwrap(), pool.take().unwrap());
    for (page, byte) in [(&other, 1), (&page, 2)] {
        device.upload(address(page), &[byte; 256]).unwrap();
    }
    let copy = pool.copy_of(&page).unwrap();
    device.upload(address(&page), &[3; 256]).unwrap();
    let first = |page: &Page| download_ints(&device, address(page), 64);
    assert_eq!(first(&copy), [0x0202_0202; 64]);
    assert_eq!(first(&other), [0x0101_0101; 64]);
}
