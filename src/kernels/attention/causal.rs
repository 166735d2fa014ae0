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

/// Number of rows from which on several threads compute causal attention.
const FEW_ROWS: usize = 4;

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
    // The attention of one row to 20 tokens takes about as long as handing a job to the other threads, so if there are
    // only a few rows, this thread computes all of them.
    if rows < FEW_ROWS { (0..runs.len()).for_each(part) } else { pool.run(runs.len(), &part) }
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
        let tokens: Vec<&[f32]> = run
            .memory
            .iter()
            .flat_map(|piece| (0..piece.rows).map(|row| piece.part(row, 0, 2 * width)))
            .collect();
        let past = tokens.len() - run.queries.rows;
        let scale = heads.scale();
        scores.resize(tokens.len().next_multiple_of(LINE));
        let scores = scores.as_f32_mut();
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            let visible = &tokens[..=past + r];
            for (head, out) in out.chunks_exact_mut(d).enumerate() {
                let query = run.queries.part(r, head * d, d);
                let mut largest = f32::NEG_INFINITY;
                for (score, token) in scores.iter_mut().zip(visible) {
                    *score = dot(isa, query, &token[head * d..][..d]) * scale;
                    largest = largest.max(*score);
                }
                // The rest of the buffer may hold values from earlier use.
                scores[visible.len()..].fill(f32::NEG_INFINITY);
                let shift = isa.splat(-largest);
                for start in (0..visible.len()).step_by(I::LANES) {
                    // SAFETY: the vector lies within the padded scores, whose number is a multiple of the vector
                    // length.
                    unsafe {
                        let place = scores.as_mut_ptr().add(start);
                        let shifted = isa.add(isa.load(place), shift);
                        isa.store(place, exp(isa, shifted));
                    }
                }
                let exponentials = &scores[..visible.len()];
                let inverse = 1.0 / exponentials.iter().sum::<f32>();
                Average { tokens: visible, column: width + head * d, exponentials, inverse }
                    .write(isa, out);
            }
        }
    }
}

/// The average of the values of one head, weighted by the probabilities of the tokens.
#[derive(Clone, Copy)]
struct Average<'a> {
    /// Keys and values of the visible tokens.
    tokens: &'a [&'a [f32]],
    /// First column of the head's values.
    column: usize,
    /// For each token, its probability before division by the sum.
    exponentials: &'a [f32],
    /// Inverse of the sum of the exponentials.
    inverse: f32,
}

impl Average<'_> {
    /// Writes the average, several vectors of columns at a time, whose sums stay in registers.
    #[inline(always)]
    fn write<I: Isa>(self, isa: I, out: &mut [f32]) {
        let mut first = 0;
        while out.len() - first >= 4 * I::LANES {
            self.write_vectors::<I, 4>(isa, first, out);
            first += 4 * I::LANES;
        }
        while out.len() - first >= I::LANES {
            self.write_vectors::<I, 1>(isa, first, out);
            first += I::LANES;
        }
        for (index, out) in out.iter_mut().enumerate().skip(first) {
            let mut sum = 0.0;
            for (token, exponential) in self.tokens.iter().zip(self.exponentials) {
                sum += token[self.column + index] * exponential;
            }
            *out = sum * self.inverse;
        }
    }

    /// Writes `V` vectors, starting at column `first` of the head.
    #[inline(always)]
    #[expect(unsafe_code, reason = "vectors of slices")]
    fn write_vectors<I: Isa, const V: usize>(self, isa: I, first: usize, out: &mut [f32]) {
        let mut sums = [isa.splat(0.0); V];
        for (token, exponential) in self.tokens.iter().zip(self.exponentials) {
            let values = &token[self.column + first..][..V * I::LANES];
            let exponential = isa.splat(*exponential);
            for (index, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the vector lies within `values`.
                let value = unsafe { isa.load(values.as_ptr().add(index * I::LANES)) };
                *sum = isa.mul_add(value, exponential, *sum);
            }
        }
        let inverse = isa.splat(self.inverse);
        let out = &mut out[first..][..V * I::LANES];
        for (index, sum) in sums.iter().enumerate() {
            // SAFETY: the vector lies within `out`.
            unsafe { isa.store(out.as_mut_ptr().add(index * I::LANES), isa.mul(*sum, inverse)) };
        }
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
