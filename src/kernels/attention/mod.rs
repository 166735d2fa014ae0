//! Attention per head, `softmax(q k^T / sqrt(d)) v`, in two variants: attention over keys and values that are packed
//! once, and causal attention over plain rows.
//!
//! - [`PackedKv`] (`packed_kv`) holds the keys and values of one sequence as panels of the matrix product, head by
//!   head: `k` as weights `[tokens, d]`, `v^T` as weights `[d, tokens]`. [`attend`] processes the queries in strips
//!   that have the height of a tile (`strips`): the scores, the softmax and the weighted sum of a strip stay in the
//!   cache.
//! - A matrix that is both the keys and the values is stored once (`shared`), and its products have kernels of their own.
//! - `formats` has what differs between f32, bf16 and 8-bit integers; `bytes` packs keys and values in 8-bit integers.
//! - [`attend_causally`] (`causal`) computes causal attention for the few rows of text generation, as dot products over
//!   rows of f32.
//!
//! The result of a query does not depend on its batch neighbours: each value is a single chain of additions in the
//! order of the keys.

mod bytes;
mod causal;
mod formats;
mod packed_kv;
mod shared;
mod strips;
#[cfg(test)]
mod tests;

pub use causal::{CausalRun, attend_causally};
pub use packed_kv::{Heads, PackedKv};

use super::context::KernelContext;
use super::disjoint::DisjointMutPtr;
use super::gemm::Shape;
use super::isa::Level;
use super::rows::Rows;
use strips::{BUFFERS, Strips};

/// Queries of one sequence, and the keys and values that they attend to.
#[derive(Debug, Clone, Copy)]
pub struct AttentionRun<'a> {
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
fn part_rows(level: Level, threads: usize, runs: &[AttentionRun<'_>]) -> usize {
    let most = Shape::of(level).rows * STRIPS_A_PART;
    let heads: usize = runs.iter().map(|run| run.memory.heads.count).sum();
    let longest = runs.iter().map(|run| run.queries.rows).max().unwrap_or(1);
    longest.div_ceil(threads.div_ceil(heads.max(1))).clamp(1, most)
}

/// A part of the job: the queries `first..last` of one head of one run.
#[derive(Debug, Clone, Copy)]
struct HeadQueries {
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
pub fn attend(context: &mut KernelContext, runs: &[AttentionRun<'_>], out: &mut [f32]) {
    let KernelContext { level, pool, .. } = context;
    let level = *level;
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
                parts.push(HeadQueries {
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
        // The buffers are borrowed outside of the kernel, because a closure inside it would not be compiled for the
        // level's instructions.
        BUFFERS.with_borrow_mut(|buffers| {
            level.run(Strips { run: runs[part.run], part, buffers, out });
        });
    });
}
