#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

#[global_allocator]
static ALLOCATOR: targets::allocations::Counting = targets::allocations::Counting;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::checkpoint::h5(data));
