//! `y = epilogue(x W^T + b)` over weights packed once.
//!
//! - `weights`: a layer's weights, packed into **panels** of one tile's width;
//! - `rows`: the other operand, packed into **tiles** of one tile's height, for each product anew;
//! - `tile`: the inner loop, one tile of one panel, written once for all instruction sets and number formats;
//! - `epilogue`: what happens to a tile before it is stored;
//! - this file: which thread computes what.
//!
//! Every value of the result is one chain of sums over K in ascending order, whatever the number of rows, tiles,
//! blocks and threads: a row has the same bits alone and in any company.

mod epilogue;
mod rows;
#[cfg(test)]
mod tests;
mod tile;
mod weights;

pub use epilogue::Epilogue;
pub(super) use rows::{Convert, Shared, row_to_groups};
pub(super) use tile::{Bf16, Dot, F32, Int8, MOST_COLUMNS, MOST_ROWS, run};
pub(super) use weights::Shape;
pub use weights::{Format, Weights};

use super::isa::{Isa, Level, per_level};
use super::memory::Lines;
use super::pool::Pool;
use epilogue::Finish;
use rows::PackedRows;

/// Bytes of packed rows that stay in L2 (1 MB here, 2 MB on recent Xeons) while panels pass by.
const ROW_BLOCK_BYTES: usize = 384 * 1024;
/// Groups of K per block: a panel's block of 192 x 32 groups x 4 B = 24 KB and a tile's of 192 x 12 x 4 B = 9 KB
/// lie in an L1 of 48 KB together.
pub(super) const K_BLOCK: usize = 192;

/// Scratch memory of products, kept between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    rows: PackedRows,
}

/// `out = epilogue(x W^T + b)`: `x` `[rows, k]`, `out` `[rows, n]`.
///
/// # Panics
/// When the lengths do not agree.
pub fn linear(
    level: Level,
    pool: &mut Pool,
    scratch: &mut Scratch,
    x: &[f32],
    weights: &Weights,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    let rows = x.len() / weights.k();
    assert_eq!(weights.level(), level, "the weights were packed for another level");
    assert_eq!(x.len(), rows * weights.k(), "x is [rows, k]");
    assert_eq!(out.len(), rows * weights.n(), "out is [rows, n]");
    if let Epilogue::Residual(residual) = epilogue {
        assert_eq!(residual.len(), out.len(), "the residual has the shape of the result");
    }
    if rows == 0 {
        return;
    }
    scratch.rows.pack(level, pool, x, weights.k(), weights.format());
    let packed = &scratch.rows;
    let finish = Finish::new(weights, packed, epilogue, out);
    let plan = Plan::new(level, rows, weights, pool.threads());
    pool.run(plan.parts(), &|part| {
        let (rows, panels) = plan.part(part);
        let block = tile::Block { packed, weights, finish: &finish, rows, panels };
        // Outside of `compute`: a closure in there would not be compiled for the level.
        tile::SUMS.with_borrow_mut(|sums| compute(level, block, sums));
    });
}

/// Which rows and panels a part computes.
struct Plan {
    rows: usize,
    row_block: usize,
    panels: usize,
    panel_block: usize,
}

impl Plan {
    /// Row blocks that L2 holds; panels in so many blocks that there are about eight parts a thread, so that one busy
    /// core does not hold up the others.
    fn new(level: Level, rows: usize, weights: &Weights, threads: usize) -> Self {
        let tile = Shape::of(level).rows;
        let row_bytes = weights.groups() * 4;
        let fits = (ROW_BLOCK_BYTES / row_bytes / tile).max(1) * tile;
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

    /// Panels vary fastest, so that threads at work at one time share the rows.
    fn part(&self, index: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        let (row, panel) = (index / self.panel_blocks(), index % self.panel_blocks());
        let (row, panel) = (row * self.row_block, panel * self.panel_block);
        (
            row..(row + self.row_block).min(self.rows),
            panel..(panel + self.panel_block).min(self.panels),
        )
    }
}

per_level! {
    fn compute(block: tile::Block<'_>, sums: &mut Lines) = generic;
}

#[inline(always)]
fn generic<I: Isa>(isa: I, block: tile::Block<'_>, sums: &mut Lines) {
    match block.weights.format() {
        Format::F32 => tile::block::<I, tile::F32>(isa, block, sums),
        Format::Bf16 => tile::block::<I, tile::Bf16>(isa, block, sums),
        Format::Int8 => tile::block::<I, tile::Int8>(isa, block, sums),
    }
}
