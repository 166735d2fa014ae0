#![no_main]

#[path = "../mutators/mod.rs"]
mod mutators;
#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::decode::png(data));

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutators::picture(data, size, max_size, seed)
});
