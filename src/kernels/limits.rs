//! Measures upper limits of this machine's speed, with which the speed of the kernels is compared. Only `bench` uses
//! these measurements; the server does not.
//!
//! The limits are measured, not taken from a data sheet. [`read_bandwidth`] is the rate at which all threads of the
//! pool together read from memory. [`operations_per_second`] is the rate that the inner loop of a matrix product
//! reaches if all data is in L1, nothing is packed, and the sums are not used.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::aligned_buffer::{AlignedBuffer, LINE};
use super::context::KernelContext;
use super::gemm::{Bf16, Dot, F32, Format, Int8, Prefetch, Shape, TileProduct, WideBf16, multiply};
use super::isa::{Isa, Kernel};

/// Number of passes per measurement. The fastest pass determines the result, because another process, or a core that
/// was asleep, may slow down the other passes.
const PASSES: usize = 5;

/// Number of values that one part of the job reads: 1 MB.
const CHUNK: usize = 1 << 18;

/// Number of parts per thread into which one measurement of [`operations_per_second`] is split. There are several parts
/// per thread, so that the other threads can take over the work of a thread that starts late.
const PARTS_A_THREAD: usize = 8;

/// Measures how many bytes per second the threads of the pool together read from a buffer of `bytes` bytes. The buffer
/// should be many times larger than the caches.
///
/// # Panics
/// When `bytes` is less than 4.
#[must_use]
pub fn read_bandwidth(context: &mut KernelContext, bytes: usize) -> f64 {
    let mut buffer = AlignedBuffer::zeroed(bytes / size_of::<u32>());
    assert!(!buffer.is_empty(), "there is something to read");
    // Write the buffer, because pages that were never written may all map to a single page of zeros.
    buffer.fill(1);
    let buffer: &[u32] = &buffer;
    let chunks = buffer.len().div_ceil(CHUNK);
    let best = best_of_passes(|| {
        context.pool.run(chunks, &|index| {
            let chunk = &buffer[index * CHUNK..buffer.len().min((index + 1) * CHUNK)];
            black_box(chunk.iter().fold(0u32, |sum, value| sum.wrapping_add(*value)));
        });
    });
    size_of_val(buffer) as f64 / best.as_secs_f64()
}

/// Measures how many multiplications and additions per second all threads of the pool together execute. This is an
/// upper bound for a matrix product at this level in this format. `pass` is the approximate duration of a pass; it
/// should be many times longer than waking a thread takes.
#[must_use]
pub fn operations_per_second(context: &mut KernelContext, format: Format, pass: Duration) -> f64 {
    // With blocks of full length, the tile and the panel of a matrix unit leave no room for the sums in an L1 cache of
    // 48 KB. With blocks of half the length, there is room, but the sums are stored more often. Both lengths are
    // therefore measured, and the higher rate is the bound.
    let block = Shape::of(context.level).k_block;
    let half = (block / 2).next_multiple_of(LINE);
    let rate = |groups| rate(context, format, groups, pass);
    [block, half].map(rate).into_iter().fold(0.0, f64::max)
}

fn rate(context: &mut KernelContext, format: Format, groups: usize, pass: Duration) -> f64 {
    let KernelContext { level, pool, .. } = context;
    let level = *level;
    let shape = Shape::of(level);
    let parts = PARTS_A_THREAD * pool.threads();
    let operations = 2 * shape.rows * shape.columns * groups * format.group() * parts;
    let mut time = |repeats| {
        let start = Instant::now();
        pool.run(parts, &|_| level.run(RepeatedProduct { format, groups, repeats }));
        start.elapsed()
    };
    let mut repeats = 1;
    while time(repeats) < pass {
        repeats *= 2;
    }
    let best = best_of_passes(|| {
        time(repeats);
    });
    operations as f64 * repeats as f64 / best.as_secs_f64()
}

fn best_of_passes(mut pass: impl FnMut()) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..PASSES {
        let start = Instant::now();
        pass();
        best = best.min(start.elapsed());
    }
    // A very short pass may take 0 ns on a coarse clock, and callers divide by this duration.
    best.max(Duration::from_nanos(1))
}

/// Multiplies one tile of ones with one panel of ones, `repeats` times.
struct RepeatedProduct {
    format: Format,
    groups: usize,
    repeats: usize,
}

impl Kernel for RepeatedProduct {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { format, groups, repeats } = self;
        match format {
            Format::F32 => repeated::<I, F32>(isa, 1.0f32.to_bits(), groups, repeats),
            Format::Bf16 if I::WIDENS_BF16 => {
                repeated::<I, WideBf16>(isa, 0x3f80_3f80, groups, repeats);
            }
            Format::Bf16 => repeated::<I, Bf16>(isa, 0x3f80_3f80, groups, repeats),
            Format::Int8 => repeated::<I, Int8>(isa, 0x0101_0101, groups, repeats),
        }
    }
}

/// Multiplies one tile with one panel `repeats` times. Every group of four bytes in both is `one`.
#[inline(always)]
#[expect(unsafe_code, reason = "tile, panel and sums by pointer")]
fn repeated<I: Isa, D: Dot<I>>(isa: I, one: u32, groups: usize, repeats: usize) {
    let columns = I::LANES * I::VECTORS;
    let (mut a, mut b) = (
        AlignedBuffer::zeroed(I::ROWS * groups * D::ROW_LINES),
        AlignedBuffer::zeroed(columns * groups),
    );
    a.fill(one);
    b.fill(one);
    let mut sums = AlignedBuffer::zeroed(I::ROWS * columns);
    for _ in 0..repeats {
        let (a, b, sums) = (black_box(a.as_ptr()), black_box(b.as_ptr()), sums.as_mut_ptr());
        // SAFETY: `a` is a whole tile, `b` a whole panel, and `sums` has room for all their sums. `groups` is a
        // multiple of a line, which is a multiple of every instruction set's `GROUPS`.
        unsafe {
            let sums = black_box(sums);
            multiply::<I, D>(
                isa,
                TileProduct {
                    rows: I::ROWS,
                    a,
                    b,
                    groups,
                    sums,
                    add: false,
                    prefetch: Prefetch::NONE,
                },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::isa::Level;
    use super::super::testing::levels;
    use super::*;

    #[test]
    fn the_limits_are_positive_numbers_at_every_level_in_every_format() {
        let mut context = KernelContext::new(Level::Portable, 2);
        for bytes in [4, 1 << 20, (3 << 20) + 64] {
            let rate = read_bandwidth(&mut context, bytes);
            assert!(rate > 0.0 && rate.is_finite(), "{bytes}: {rate}");
        }
        for level in levels() {
            let mut context = KernelContext::new(level, 2);
            for format in [Format::F32, Format::Bf16, Format::Int8] {
                let pass = Duration::from_micros(20);
                let rate = operations_per_second(&mut context, format, pass);
                assert!(rate > 0.0 && rate.is_finite(), "{level} {format:?}: {rate}");
            }
        }
    }
}
