//! Attention of text being written: few rows of f32 over few, each up to itself.

use super::super::gemm::Shared;
use super::super::isa::{Isa, Level, per_level};
use super::super::memory::{LINE, Lines};
use super::super::pointwise::exp;
use super::super::pool::Pool;
use super::super::rows::Rows;
use super::{Heads, STRIP};

/// One sequence's new rows behind what it has: all of `[rows, heads x width]`, as f32.
#[derive(Debug, Clone, Copy)]
pub struct CausalRun<'a> {
    /// Queries of the new rows.
    pub queries: Rows<'a>,
    /// Keys of old and new rows, the old first.
    pub keys: &'a [f32],
    /// Values of old and new rows.
    pub values: &'a [f32],
}

/// Every new row attends to its sequence's rows up to itself; `out` is `[rows of all runs, heads x width]`.
///
/// # Panics
/// When the lengths do not agree.
pub fn attend_causally(
    level: Level,
    pool: &mut Pool,
    heads: Heads,
    runs: &[CausalRun<'_>],
    out: &mut [f32],
) {
    let width = heads.count * heads.width;
    let starts: Vec<usize> = runs
        .iter()
        .scan(0, |next, run| {
            let start = *next;
            *next += run.queries.rows;
            Some(start)
        })
        .collect();
    let rows: usize = runs.iter().map(|run| run.queries.rows).sum();
    assert_eq!(out.len(), rows * width, "out is [rows, width]");
    let out = Shared(out.as_mut_ptr());
    let part = |index: usize| {
        let run = runs[index];
        #[expect(unsafe_code, reason = "each run's rows are one part's")]
        // SAFETY: runs do not overlap.
        let out = unsafe {
            std::slice::from_raw_parts_mut(
                out.pointer().add(starts[index] * width),
                run.queries.rows * width,
            )
        };
        STRIP.with_borrow_mut(|scratch| causal(level, heads, run, &mut scratch.row, out));
    };
    // A row over 20 tokens takes less time than waking a thread.
    if rows < 8 { (0..runs.len()).for_each(part) } else { pool.run(runs.len(), &part) }
}

per_level! {
    fn causal(heads: Heads, run: CausalRun<'_>, scores: &mut Lines, out: &mut [f32]) = causal_generic;
}

#[inline(always)]
#[expect(unsafe_code, reason = "vectors of slices")]
fn causal_generic<I: Isa>(
    isa: I,
    heads: Heads,
    run: CausalRun<'_>,
    scores: &mut Lines,
    out: &mut [f32],
) {
    let (d, width) = (heads.width, heads.count * heads.width);
    let rows = run.queries.rows;
    let past = run.keys.len() / width - rows;
    let scale = heads.scale();
    scores.resize((past + rows).next_multiple_of(LINE));
    for (r, out) in out.chunks_exact_mut(width).enumerate() {
        let visible = past + r + 1;
        for head in 0..heads.count {
            let query = run.queries.part(r, head * d, d);
            let scores = &mut scores.as_f32_mut()[..visible];
            let mut largest = f32::NEG_INFINITY;
            for (token, score) in scores.iter_mut().enumerate() {
                *score = dot(isa, query, &run.keys[token * width + head * d..][..d]) * scale;
                largest = largest.max(*score);
            }
            let mut sum = 0.0;
            for score in scores.iter_mut() {
                let mut lanes = [0.0f32; 16];
                // SAFETY: the array holds a vector.
                unsafe { isa.store(lanes.as_mut_ptr(), exp(isa, isa.splat(*score - largest))) };
                *score = lanes[0];
                sum += *score;
            }
            let out = &mut out[head * d..][..d];
            out.fill(0.0);
            for (token, score) in scores.iter().enumerate() {
                let values = &run.values[token * width + head * d..][..d];
                for (out, value) in out.iter_mut().zip(values) {
                    *out += score * value;
                }
            }
            for out in out.iter_mut() {
                *out /= sum;
            }
        }
    }
}

#[inline(always)]
#[expect(unsafe_code, reason = "vectors of slices of one length")]
fn dot<I: Isa>(isa: I, a: &[f32], b: &[f32]) -> f32 {
    let whole = a.len() / I::LANES * I::LANES;
    let mut sums = isa.splat(0.0);
    for start in (0..whole).step_by(I::LANES) {
        // SAFETY: within both slices.
        unsafe {
            sums =
                isa.mul_add(isa.load(a.as_ptr().add(start)), isa.load(b.as_ptr().add(start)), sums);
        }
    }
    let mut sum = isa.sum(sums);
    for index in whole..a.len() {
        sum += a[index] * b[index];
    }
    sum
}
