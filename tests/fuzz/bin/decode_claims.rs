#![no_main]

#[path = "../mutators/mod.rs"]
mod mutators;
#[path = "../targets/mod.rs"]
mod targets;

use std::time::{Duration, Instant};

use targets::claims;

#[global_allocator]
static ALLOCATOR: targets::allocations::Counting = targets::allocations::Counting;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    claims::claims(data);
    if let Some(header) = claims::accepted(data) {
        work(data, &header);
    }
});

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutators::picture(data, size, max_size, seed)
});

/// Compares the CPU time of a decode with the announced work. Other programs may slow down one decode, so the fastest of
/// up to four counts.
fn work(data: &[u8], header: &blip_server::input::ImageHeader) {
    let mut fastest = Duration::MAX;
    for _ in 0..4 {
        let (start, before) = (Instant::now(), cpu_time());
        std::hint::black_box(claims::picture(data, header));
        if start.elapsed() < claims::SHORT {
            return;
        }
        fastest = fastest.min(cpu_time().saturating_sub(before));
        if claims::slower_than_announced(header, fastest).is_none() {
            return;
        }
    }
    if let Some(contradiction) = claims::slower_than_announced(header, fastest) {
        panic!("{contradiction}: {header:?}");
    }
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = statistics.split_whitespace().next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}
