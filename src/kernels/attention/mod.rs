//! Attention per head, `softmax(q k^T / sqrt(d)) v`, over keys and values that are packed once, or causally over plain
//! rows.
//!
//! - [`PackedKv`] (`packed_kv`) holds the keys and values of one sequence as panels of the matrix product, head by
//!   head: `k` as weights `[tokens, d]`, `v^T` as weights `[d, tokens]`. [`attend`] processes the queries in strips
//!   that have the height of a tile: the scores, the softmax and the weighted sum of a strip stay in the cache.
//! - [`attend_causally`] (`causal`) computes causal attention for the few rows of text generation, as dot products over
//!   rows of f32.
//!
//! The result of a query does not depend on its batch neighbours: each value is a single chain of additions in the
//! order of the keys.

mod causal;
mod packed_kv;
#[cfg(test)]
mod tests;

use std::cell::RefCell;

pub use causal::{CausalRun, attend_causally};
pub use packed_kv::{Heads, PackedKv};

use super::aligned_buffer::{AlignedBuffer, LINE};
use super::gemm::{
    Bf16, ConvertPair, DisjointMutPtr, Dot, F32, Format, MOST_COLUMNS, MOST_ROWS, Shape,
    row_to_groups, run,
};
use super::isa::{Isa, Level, per_level};
use super::pointwise::exp;
use super::pool::Pool;
use super::rows::Rows;

/// Queries of one sequence, and the keys and values that they attend to.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// The queries, `[rows, heads x width]`.
    pub queries: Rows<'a>,
    /// Packed keys and values that the queries attend to.
    pub memory: &'a PackedKv,
    /// Factor that scores are multiplied by, usually the inverse square root of a head's width.
    pub scale: f32,
}

/// Largest number of strips of queries in one part of a job.
const STRIPS_A_PART: usize = 8;

/// Returns the number of queries per part: eight strips of a tile's height, or fewer if there are too few heads to
/// occupy all threads.
fn part_rows(level: Level, threads: usize, runs: &[Run<'_>]) -> usize {
    let most = Shape::of(level).rows * STRIPS_A_PART;
    let heads: usize = runs.iter().map(|run| run.memory.heads.count).sum();
    let longest = runs.iter().map(|run| run.queries.rows).max().unwrap_or(1);
    longest.div_ceil(threads.div_ceil(heads.max(1))).clamp(1, most)
}

/// A part of the job: some rows of one head of one run.
#[derive(Debug, Clone, Copy)]
struct Part {
    run: usize,
    head: usize,
    first: usize,
    last: usize,
    /// Row of the result at which the run starts.
    start: usize,
}

/// Computes attention: the queries of every run attend to all of that run's keys and values. `out` is
/// `[rows of all runs, heads x width]`.
///
/// # Panics
/// When the lengths do not match.
pub fn attend(level: Level, pool: &mut Pool, runs: &[Run<'_>], out: &mut [f32]) {
    let strip = part_rows(level, pool.threads(), runs);
    let mut parts = Vec::new();
    let mut start = 0;
    for (index, run) in runs.iter().enumerate() {
        let rows = run.queries.rows;
        assert_eq!(run.memory.heads, runs[0].memory.heads, "all memories have the same heads");
        assert!(rows == 0 || run.memory.tokens > 0, "there is something to attend to");
        assert_eq!(run.memory.level, level, "the memory was packed for another level");
        for head in 0..run.memory.heads.count {
            for first in (0..rows).step_by(strip) {
                parts.push(Part {
                    run: index,
                    head,
                    first,
                    last: (first + strip).min(rows),
                    start,
                });
            }
        }
        start += rows;
    }
    let Some(first) = runs.first() else { return };
    let width = first.memory.heads.count * first.memory.heads.width;
    assert_eq!(out.len(), start * width, "out is [rows, width]");
    let out = DisjointMutPtr(out.as_mut_ptr());
    pool.run(parts.len(), &|index| {
        let part = parts[index];
        // The scratch buffers are borrowed outside of `strips`, because a closure inside `strips` would not be compiled
        // for the level's instructions.
        STRIP.with_borrow_mut(|scratch| strips(level, runs[part.run], part, scratch, out));
    });
}

/// Scratch buffers of one strip: the queries of one tile.
#[derive(Debug, Default)]
struct Strip {
    queries: AlignedBuffer,
    /// Scores, `[panels of tokens][rows][columns]`.
    scores: AlignedBuffer,
    row: AlignedBuffer,
    probabilities: AlignedBuffer,
    sums: AlignedBuffer,
}

thread_local! {
    /// This thread's scratch buffers. For 577 tokens and 12 rows, the scores take 28 KB, and the probabilities in bf16
    /// take 14 KB.
    static STRIP: RefCell<Strip> = RefCell::new(Strip::default());
}

per_level! {
    fn strips(run: Run<'_>, part: Part, scratch: &mut Strip, out: DisjointMutPtr<f32>) = strips_generic;
}

#[inline(always)]
fn strips_generic<I: Isa>(
    isa: I,
    run: Run<'_>,
    part: Part,
    scratch: &mut Strip,
    out: DisjointMutPtr<f32>,
) {
    match run.memory.format {
        Format::Bf16 => strips_in::<I, Bf16>(isa, run, part, scratch, out),
        Format::F32 | Format::Int8 => strips_in::<I, F32>(isa, run, part, scratch, out),
    }
}

#[inline(always)]
fn strips_in<I: Isa, D: Dot<I> + ConvertPair<I>>(
    isa: I,
    run: Run<'_>,
    part: Part,
    scratch: &mut Strip,
    out: DisjointMutPtr<f32>,
) {
    for first in (part.first..part.last).step_by(I::ROWS) {
        let rows = I::ROWS.min(part.last - first);
        strip::<I, D>(isa, run, part, first, rows, scratch, out);
    }
}

#[inline(always)]
#[expect(unsafe_code, reason = "tiles and panels by pointer")]
fn strip<I: Isa, D: Dot<I> + ConvertPair<I>>(
    isa: I,
    Run { queries, memory, scale }: Run<'_>,
    part: Part,
    first: usize,
    rows: usize,
    scratch: &mut Strip,
    out: DisjointMutPtr<f32>,
) {
    let Heads { count, width } = memory.heads;
    let columns = I::LANES * I::VECTORS;
    let tokens = memory.tokens;
    let panels = tokens.div_ceil(columns);
    let groups = |values: usize| values.div_ceil(D::GROUP).next_multiple_of(I::GROUPS);
    let (depth, length) = (groups(width), groups(tokens));
    scratch.queries.resize(depth.next_multiple_of(LINE) * rows);
    scratch.scores.resize(panels * rows * columns);
    let lines = (panels * columns).div_ceil(LINE * D::GROUP);
    scratch.probabilities.resize(lines * LINE * rows);
    scratch.sums.resize(rows * columns);
    let keys = &memory.keys[part.head * panels * columns * depth..];
    let value_panels = width.div_ceil(columns);
    let values = &memory.values[part.head * value_panels * columns * length..];
    // SAFETY: every buffer was made large enough above. A panel's offset lies within the head's panels. Only this part
    // writes its rows of the result in this head's columns.
    unsafe {
        for r in 0..rows {
            let query = queries.part(first + r, part.head * width, width);
            row_to_groups::<I, D>(isa, query, rows, scratch.queries.as_mut_ptr().add(r * LINE), ());
        }
        for panel in 0..panels {
            let scores = scratch.scores.as_mut_ptr().add(panel * rows * columns);
            run::<I, D>(
                isa,
                rows,
                scratch.queries.as_ptr(),
                keys[panel * depth * columns..].as_ptr(),
                depth,
                scores,
                false,
            );
        }
        let mut inverse = [0.0f32; MOST_ROWS];
        for (r, inverse) in inverse.iter_mut().enumerate().take(rows) {
            let scores = Scores {
                first: scratch.scores.as_ptr().add(r * columns).cast(),
                stride: rows * columns,
                tokens,
                scale,
            };
            let to = scratch.probabilities.as_mut_ptr().add(r * LINE);
            *inverse = 1.0 / softmax::<I, D>(isa, scores, to, rows * LINE);
        }
        for panel in 0..value_panels {
            let b = values[panel * length * columns..].as_ptr();
            run::<I, D>(
                isa,
                rows,
                scratch.probabilities.as_ptr(),
                b,
                length,
                scratch.sums.as_mut_ptr(),
                false,
            );
            let wide = columns.min(width - panel * columns);
            for (r, inverse) in inverse.iter().enumerate().take(rows) {
                let sums = &mut scratch.sums.as_f32_mut()[r * columns..][..wide];
                let at =
                    (part.start + first + r) * count * width + part.head * width + panel * columns;
                for (index, sum) in sums.iter().enumerate() {
                    *out.pointer().add(at + index) = sum * inverse;
                }
            }
        }
    }
}

/// The scores of one query, which are stored panel by panel.
#[derive(Clone, Copy)]
struct Scores {
    /// Pointer to the scores of the first panel.
    first: *const f32,
    /// Number of values from the scores of one panel to those of the next.
    stride: usize,
    tokens: usize,
    scale: f32,
}

/// Writes `e^(scale (score - largest))` of one row of scores as groups of the format. The row's cache lines start at
/// `to` and are `stride` groups apart. Columns beyond the tokens get almost zero; they do not change the result,
/// because the values are padded with zeros. Returns the sum of the exponentials.
///
/// # Safety
/// The scores are valid for `tokens` reads, rounded up to whole panels, and `to` is valid for writing the groups of
/// that number of values.
#[inline(always)]
#[expect(unsafe_code, reason = "vectors by pointer")]
unsafe fn softmax<I: Isa, D: ConvertPair<I>>(
    isa: I,
    scores: Scores,
    to: *mut u32,
    stride: usize,
) -> f32 {
    let columns = I::LANES * I::VECTORS;
    let panels = scores.tokens.div_ceil(columns);
    // Columns beyond the tokens hold the scores of padding, so the last panel is copied without them.
    let mut last = [f32::NEG_INFINITY; MOST_COLUMNS];
    let in_last = scores.tokens - (panels - 1) * columns;
    // SAFETY: this function's contract.
    unsafe {
        let last_scores = scores.first.add((panels - 1) * scores.stride);
        std::ptr::copy_nonoverlapping(last_scores, last.as_mut_ptr(), in_last);
        // The closure handles only pointers: a closure over vectors would not be compiled for the level's instructions.
        let of = |panel: usize| {
            let is_last = panel + 1 == panels;
            if is_last { last.as_ptr() } else { scores.first.add(panel * scores.stride) }
        };
        let (mut first, mut second) = (isa.splat(f32::NEG_INFINITY), isa.splat(f32::NEG_INFINITY));
        for panel in 0..panels {
            first = isa.max(first, isa.load(of(panel)));
            second = isa.max(second, isa.load(of(panel).add(I::LANES)));
        }
        let scale = isa.splat(scores.scale);
        let largest = isa.splat(isa.largest(isa.max(first, second)));
        let mut sums = [isa.splat(0.0); 2];
        for panel in 0..panels {
            // Subtract before scaling, so that the exponent is never above 0, however large the scores are.
            let first = isa.mul(isa.sub(isa.load(of(panel)), largest), scale);
            let second = isa.mul(isa.sub(isa.load(of(panel).add(I::LANES)), largest), scale);
            let pair = [exp(isa, first), exp(isa, second)];
            sums = [isa.add(sums[0], pair[0]), isa.add(sums[1], pair[1])];
            D::pair(isa, pair, to, stride, panel);
        }
        isa.sum(isa.add(sums[0], sums[1]))
    }
}
