//! Causal attention for text generation, in f32 and for few rows: each new row attends to the rows of its sequence up
//! to and including itself.

use super::super::aligned_buffer::{AlignedBuffer, LINE};
use super::super::context::KernelContext;
use super::super::disjoint::DisjointMutPtr;
use super::super::isa::{Isa, Kernel};
use super::super::pointwise::exp;
use super::super::rows::Rows;
use super::Heads;
use super::strips::BUFFERS;

/// New rows of one sequence and its KV cache, all in f32.
#[derive(Debug, Clone, Copy)]
pub struct CausalRun<'a> {
    /// Queries of the new rows: `[rows, heads x width]`.
    pub queries: Rows<'a>,
    /// Keys and values of all rows of the sequence, old and new, in order: `[rows, 2 x heads x width]`. Each decode
    /// step has appended one piece.
    pub memory: &'a [Rows<'a>],
}

/// Computes causal attention: every new row attends to the rows of its sequence up to and including itself. `out` is
/// `[rows of all runs, heads x width]`.
///
/// # Panics
/// When the lengths do not match.
pub fn attend_causally(
    context: &mut KernelContext,
    heads: Heads,
    runs: &[CausalRun<'_>],
    out: &mut [f32],
) {
    let KernelContext { level, pool, .. } = context;
    let level = *level;
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
    let out = DisjointMutPtr(out.as_mut_ptr());
    let part = |index: usize| {
        let run = runs[index];
        #[expect(unsafe_code, reason = "each run's rows are written by one part")]
        // SAFETY: the rows of different runs do not overlap.
        let out = unsafe {
            std::slice::from_raw_parts_mut(
                out.pointer().add(starts[index] * width),
                run.queries.rows * width,
            )
        };
        BUFFERS.with_borrow_mut(|buffers| {
            level.run(AttendCausally { heads, run, scores: &mut buffers.scores, out });
        });
    };
    // The attention of one row to 20 tokens takes less time than waking a thread, so if there are only a few rows, this
    // thread computes all of them.
    if rows < 8 { (0..runs.len()).for_each(part) } else { pool.run(runs.len(), &part) }
}

struct AttendCausally<'a> {
    heads: Heads,
    run: CausalRun<'a>,
    /// Buffer for the scores of one head of one row.
    scores: &'a mut AlignedBuffer,
    /// Result of the run, `[rows, heads x width]`.
    out: &'a mut [f32],
}

impl Kernel for AttendCausally<'_> {
    type Output = ();

    #[inline(always)]
    #[expect(unsafe_code, reason = "vectors of slices")]
    fn run<I: Isa>(self, isa: I) {
        let Self { heads, run, scores, out } = self;
        let (d, width) = (heads.width, heads.count * heads.width);
        let rows = run.queries.rows;
        let all: usize = run.memory.iter().map(|piece| piece.rows).sum();
        let past = all - rows;
        let scale = heads.scale();
        let padded = all.next_multiple_of(LINE);
        scores.resize(padded);
        let scores = scores.as_f32_mut();
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            let visible = past + r + 1;
            for head in 0..heads.count {
                let query = run.queries.part(r, head * d, d);
                let mut largest = f32::NEG_INFINITY;
                let mut token = 0;
                for piece in run.memory {
                    for row in 0..piece.rows.min(visible - token) {
                        let score = dot(isa, query, piece.part(row, head * d, d)) * scale;
                        scores[token] = score;
                        largest = largest.max(score);
                        token += 1;
                    }
                }
                // The rest of the buffer may hold values from earlier use.
                scores[visible..].fill(f32::NEG_INFINITY);
                let shift = isa.splat(-largest);
                for start in (0..visible).step_by(I::LANES) {
                    // SAFETY: the vector lies within the padded scores, whose number is a multiple of the vector
                    // length.
                    unsafe {
                        let place = scores.as_mut_ptr().add(start);
                        let shifted = isa.add(isa.load(place), shift);
                        isa.store(place, exp(isa, shifted));
                    }
                }
                let sum: f32 = scores[..visible].iter().sum();
                let out = &mut out[head * d..][..d];
                out.fill(0.0);
                let mut token = 0;
                for piece in run.memory {
                    for row in 0..piece.rows.min(visible - token) {
                        add_scaled(isa, out, piece.part(row, width + head * d, d), scores[token]);
                        token += 1;
                    }
                }
                for out in out.iter_mut() {
                    *out /= sum;
                }
            }
        }
    }
}

/// Computes `out += scale * values`.
#[inline(always)]
#[expect(unsafe_code, reason = "vectors of slices of one length")]
fn add_scaled<I: Isa>(isa: I, out: &mut [f32], values: &[f32], scale: f32) {
    let whole = out.len() / I::LANES * I::LANES;
    let scales = isa.splat(scale);
    for start in (0..whole).step_by(I::LANES) {
        // SAFETY: the vectors lie within both slices.
        unsafe {
            let place = out.as_mut_ptr().add(start);
            let sum = isa.mul_add(isa.load(values.as_ptr().add(start)), scales, isa.load(place));
            isa.store(place, sum);
        }
    }
    for (out, value) in out[whole..].iter_mut().zip(&values[whole..]) {
        *out += scale * value;
    }
}

#[inline(always)]
#[expect(unsafe_code, reason = "vectors of slices of one length")]
fn dot<I: Isa>(isa: I, a: &[f32], b: &[f32]) -> f32 {
    let whole = a.len() / I::LANES * I::LANES;
    let mut sums = isa.splat(0.0);
    for start in (0..whole).step_by(I::LANES) {
        // SAFETY: the vectors lie within both slices.
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
