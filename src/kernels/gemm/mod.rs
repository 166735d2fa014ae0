//! Matrix product (GEMM) with fused epilogue: `y = epilogue(x W^T + b)`, with weights that are packed once.
//!
//! - `weights`: packs a layer's weights into **panels**, each as wide as a tile;
//! - `rows`: packs the other operand into **tiles** of rows, in every product;
//! - `tile`: the inner loop, which multiplies one tile with one panel; written once for all instruction sets and
//!   formats;
//! - `epilogue`: applies scale, bias, activation and residual to a tile before it is stored;
//! - this file: splits a product into parts, which the threads of the pool compute.
//!
//! Every value of the result is a single chain of additions over K, the inner dimension, in ascending order. (A matrix
//! unit adds blocks of 32 values in this order; within a block it uses its own order.) The order does not depend on the
//! number of rows, tiles, blocks or threads. So the result of a row has the same bits whether the row is computed alone
//! or with any batch neighbours.

mod epilogue;
mod format;
pub(super) mod rows;
#[cfg(test)]
mod tests;
mod tile;
mod weights;

pub use epilogue::Epilogue;
pub use format::Format;
pub(super) use format::{Bf16, Dot, DotGroups, F32, Int8, Shape, WideBf16};
pub(super) use rows::{Convert, ConvertPair, place, row_to_groups};
pub(super) use tile::{Prefetch, STREAM_AHEAD, TileProduct, multiply};
pub use weights::PackedWeights;

use std::cell::RefCell;

use super::activation::{self, Activation};
use super::context::KernelContext;
use super::disjoint::DisjointMutPtr;
use super::isa::Level;
use super::pointwise::LayerNorm;
use super::pool::Pool;
use super::rows::Rows;
use epilogue::{Finish, Out};
use rows::{PackedRows, Source};

/// Computes `out = epilogue(x W^T + b)`; `x` is `[rows, k]`, `out` is `[rows, n]`.
///
/// # Panics
/// When the lengths do not match.
pub fn linear(
    context: &mut KernelContext,
    x: &[f32],
    weights: &PackedWeights,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    normed_linear(context, x, None, weights, epilogue, out);
}

/// Like [`linear`], with the layer norm of `x`, if one is given, instead of `x`.
///
/// # Panics
/// When the lengths do not match.
pub fn normed_linear(
    context: &mut KernelContext,
    x: &[f32],
    norm: Option<LayerNorm<'_>>,
    weights: &PackedWeights,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    let rows = x.len() / weights.k();
    assert_eq!(x.len(), rows * weights.k(), "x is [rows, k]");
    assert_eq!(out.len(), rows * weights.n(), "out is [rows, n]");
    if let Epilogue::Residual(residual) = epilogue {
        assert_eq!(residual.len(), out.len(), "the residual has the shape of the result");
    }
    if rows == 0 {
        return;
    }
    let KernelContext { level, pool, packed_rows, .. } = context;
    pack(*level, pool, packed_rows, x, norm, weights);
    let to = Out::rows(out, weights.n());
    product(*level, pool, rows, &Finish::new(weights, packed_rows, epilogue, to));
    match epilogue {
        Epilogue::None | Epilogue::Activation(Activation::Gelu) | Epilogue::Residual(_) => {}
        Epilogue::Activation(other) => activation::apply(context, other, out),
    }
}

/// Computes a feed-forward block: `out = gelu(x W1^T + b1) W2^T + b2 + residual`, with the layer norm of `x`, if one is
/// given, instead of `x`. The result between the products is rounded to the format of `outer` as it is computed, and
/// never stored in f32. The bits are those of two calls of [`linear`].
///
/// # Panics
/// When the lengths do not match, or `outer` is in 8-bit integers.
pub fn feed_forward(
    context: &mut KernelContext,
    x: &[f32],
    norm: Option<LayerNorm<'_>>,
    [inner, outer]: [&PackedWeights; 2],
    residual: &[f32],
    out: &mut [f32],
) {
    let rows = x.len() / inner.k();
    assert_eq!(x.len(), rows * inner.k(), "x is [rows, k]");
    assert_eq!(inner.n(), outer.k(), "the second product takes the result of the first");
    assert_eq!(out.len(), rows * outer.n(), "out is [rows, n]");
    assert_eq!(residual.len(), out.len(), "the residual has the shape of the result");
    if rows == 0 {
        return;
    }
    let KernelContext { level, pool, packed_rows, packed_inner } = context;
    pack(*level, pool, packed_rows, x, norm, inner);
    let to = packed_inner.prepare(*level, rows, inner.n(), outer.format());
    let gelu = Epilogue::Activation(Activation::Gelu);
    product(*level, pool, rows, &Finish::new(inner, packed_rows, gelu, Out::Packed(to)));
    let to = Out::rows(out, outer.n());
    let residual = Epilogue::Residual(residual);
    product(*level, pool, rows, &Finish::new(outer, packed_inner, residual, to));
}

/// Packs `x`, or its layer norm, as the left operand of a product with `weights`.
fn pack(
    level: Level,
    pool: &mut Pool,
    packed_rows: &mut PackedRows,
    x: &[f32],
    norm: Option<LayerNorm<'_>>,
    weights: &PackedWeights,
) {
    let k = weights.k();
    if let Some(norm) = norm {
        assert!(norm.weight.len() == k && norm.bias.len() == k, "the norm has the width of x");
    }
    let source = Source { rows: Rows::of(x, k), norm };
    packed_rows.pack(level, pool, source, k, weights.format());
}

/// Multiplies `rows` packed rows, on all threads.
fn product(level: Level, pool: &mut Pool, rows: usize, finish: &Finish<'_>) {
    let weights = finish.weights;
    assert_eq!(weights.level(), level, "the weights were packed for another level");
    let partition = Partition::new(level, rows, weights, pool.threads());
    pool.run(partition.parts(), &|part| {
        let (rows, panels) = partition.part(part);
        // `sums` is borrowed outside of the kernel, because a closure inside it would not be compiled for the level's
        // instructions.
        tile::SUMS.with_borrow_mut(|sums| {
            level.run(tile::Block { finish, rows, panels, sums });
        });
    });
}

/// Computes one product per attention head. For head h, multiplies the k columns of `x` `[rows, heads x k]` that start
/// at column `h x k` by the weights of the head. Writes the result to the n columns of `out` `[rows, heads x n]` that
/// start at column `h x n`.
///
/// # Panics
/// When the lengths do not match, or the weights differ in shape.
pub fn linear_by_head(
    context: &mut KernelContext,
    x: &[f32],
    weights: &[PackedWeights],
    out: &mut [f32],
) {
    let Some(first) = weights.first() else { return };
    let KernelContext { level, pool, .. } = context;
    let level = *level;
    let (heads, n, k) = (weights.len(), first.n(), first.k());
    let rows = x.len() / (heads * k);
    let fits =
        |weights: &PackedWeights| (weights.level(), weights.n(), weights.k()) == (level, n, k);
    assert!(weights.iter().all(fits), "one shape, packed for this level");
    assert_eq!(x.len(), rows * heads * k, "x is [rows, heads x k]");
    assert_eq!(out.len(), rows * heads * n, "out is [rows, heads x n]");
    if rows == 0 {
        return;
    }
    let to = DisjointMutPtr(out.as_mut_ptr());
    pool.run(heads, &|head| {
        let weights = &weights[head];
        let x = Rows { values: x, stride: heads * k, column: head * k, rows };
        HEAD.with_borrow_mut(|packed| {
            packed.pack_alone(level, x, k, weights.format());
            let out = Out::Rows { first: to.columns_from(head * n), stride: heads * n };
            let finish = Finish::new(weights, packed, Epilogue::None, out);
            let (rows, panels) = (0..rows, 0..weights.panels());
            tile::SUMS.with_borrow_mut(|sums| {
                level.run(tile::Block { finish: &finish, rows, panels, sums });
            });
        });
    });
}

thread_local! {
    /// Packed rows of the head that this thread computes.
    static HEAD: RefCell<PackedRows> = RefCell::new(PackedRows::default());
}

/// How a product is split into parts: the sizes of the row blocks and panel blocks.
struct Partition {
    rows: usize,
    row_block: usize,
    panels: usize,
    panel_block: usize,
}

impl Partition {
    /// Chooses row blocks that fit into L2, and a number of panel blocks that gives about eight parts per thread, so
    /// that one busy core does not delay the others.
    fn new(level: Level, rows: usize, weights: &PackedWeights, threads: usize) -> Self {
        let shape = Shape::of(level);
        let Shape { rows: tile, row_block_bytes, .. } = shape;
        let row_bytes = weights.k().div_ceil(shape.row_format(weights.format()).group()) * 4;
        let fits = (row_block_bytes / row_bytes / tile).max(1) * tile;
        let row_block = rows.div_ceil(rows.div_ceil(fits)).next_multiple_of(tile);
        let row_blocks = rows.div_ceil(row_block);
        let panels = weights.panels();
        let wanted = (8 * threads).div_ceil(row_blocks).min(panels);
        Self { rows, row_block, panels, panel_block: panels.div_ceil(wanted) }
    }

    fn panel_blocks(&self) -> usize {
        self.panels.div_ceil(self.panel_block)
    }

    fn parts(&self) -> usize {
        self.rows.div_ceil(self.row_block) * self.panel_blocks()
    }

    /// Returns the rows and the panels of a part. Most consecutive parts have the same rows and different panels, so
    /// that threads that run at the same time use the same rows.
    fn part(&self, index: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        let (row, panel) = (index / self.panel_blocks(), index % self.panel_blocks());
        let (row, panel) = (row * self.row_block, panel * self.panel_block);
        (
            row..(row + self.row_block).min(self.rows),
            panel..(panel + self.panel_block).min(self.panels),
        )
    }
}
