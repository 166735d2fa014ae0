//! The inner loop (microkernel): multiplies one tile of rows with one panel of weights, in registers.

use std::ops::Range;

use super::super::aligned_buffer::{AlignedBuffer, LINE};
use super::super::isa::{Isa, Kernel, MOST_COLUMNS, MOST_ROWS, MatrixTile};
use super::epilogue::Finish;
use super::format::{Bf16, Dot, F32, Format, Int8, WideBf16};
use super::rows::place;

/// The rows and panels of a product that one part of a job computes.
pub(super) struct Block<'a> {
    pub(super) finish: &'a Finish<'a>,
    pub(super) rows: Range<usize>,
    pub(super) panels: Range<usize>,
    /// Buffer for the sums of the part's rows.
    pub(super) sums: &'a mut AlignedBuffer,
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match self.finish.weights.format() {
            Format::F32 => block::<I, F32>(isa, self),
            Format::Bf16 if I::WIDENS_BF16 => block::<I, WideBf16>(isa, self),
            Format::Bf16 => block::<I, Bf16>(isa, self),
            Format::Int8 => block::<I, Int8>(isa, self),
        }
    }
}

/// Computes the rows and panels of the part, one block of K after the other.
#[inline(always)]
#[expect(unsafe_code, reason = "tiles, panels and sums by pointer")]
fn block<I: Isa, D: Dot<I>>(isa: I, Block { finish, rows, panels, sums }: Block<'_>) {
    let Finish { packed, weights, .. } = *finish;
    let columns = I::LANES * I::VECTORS;
    let groups = weights.groups();
    let k_blocks = groups.div_ceil(I::K_BLOCK).max(1);
    // With a single block of K, each tile is finished immediately, so the buffer needs to hold only one tile's rows.
    let kept_rows = if k_blocks == 1 { MOST_ROWS } else { rows.len() };
    sums.resize(kept_rows * columns);
    let sums = sums.as_mut_ptr();
    for panel in panels {
        for k_block in 0..k_blocks {
            let k = k_block * I::K_BLOCK;
            let length = I::K_BLOCK.min(groups - k);
            for row in rows.clone().step_by(I::ROWS) {
                let height = I::ROWS.min(rows.end - row);
                // SAFETY: `packed` and `weights` hold the data that they return pointers to. `sums` has room for the
                // `height` rows that start at row `kept`.
                unsafe {
                    let kept = if k_blocks == 1 { 0 } else { row - rows.start };
                    let sums = sums.add(kept * columns);
                    let a = packed.tile(row, height, k * D::ROW_LINES);
                    let b = weights.panel(panel, k);
                    let next = b.wrapping_add(length * columns);
                    let prefetch = Prefetch::share_of_block::<I>(next, length, row, &rows);
                    let add = k_block > 0;
                    let product =
                        TileProduct { rows: height, a, b, groups: length, sums, add, prefetch };
                    multiply::<I, D>(isa, product);
                    if k_block + 1 == k_blocks {
                        finish.tile(isa, sums, row, height, panel);
                    }
                }
            }
        }
    }
}

thread_local! {
    /// Sums of a block of rows, `[rows, columns]`. For 256 rows they take 256 x 32 x 4 B = 32 KB, which stay in L2.
    pub(super) static SUMS: std::cell::RefCell<AlignedBuffer> = std::cell::RefCell::new(AlignedBuffer::default());
}

/// A product of one tile of rows with one panel of weights.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct TileProduct {
    /// Number of rows of the tile.
    pub(in crate::kernels) rows: usize,
    /// The packed rows of the tile, which `groups` groups of each column are multiplied with.
    pub(in crate::kernels) a: *const u32,
    /// The packed weights of the panel, `groups` groups per column.
    pub(in crate::kernels) b: *const u32,
    /// Number of groups of K.
    pub(in crate::kernels) groups: usize,
    /// Result of the product, `[rows, columns]`.
    pub(in crate::kernels) sums: *mut u32,
    /// If true, the product is added to `sums`; otherwise it overwrites `sums`.
    pub(in crate::kernels) add: bool,
    /// Memory to load into the cache meanwhile.
    pub(in crate::kernels) prefetch: Prefetch,
}

/// Cache lines that a product prefetches for later products, evenly over its duration. The processor's own prefetching
/// stops at the end of each 4 KB page, which a product over 12 rows reads in a hundred nanoseconds: as long as the
/// memory takes to answer.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernels) struct Prefetch {
    /// Address of the first line. It may lie outside of any buffer.
    from: *const u32,
    /// Number of lines per block of 16 groups of the product.
    lines: usize,
}

/// Number of tiles during which a block of weights is prefetched.
const PREFETCH_TILES: usize = 4;

/// Distance at which a stream is prefetched, in groups of four bytes. These 8 KB and the 18 KB of a tile of 12 rows x
/// 768 bf16 values fit into a first-level cache of 32 KB.
pub(in crate::kernels) const STREAM_AHEAD: usize = 2048;

impl Prefetch {
    /// No prefetch.
    pub(in crate::kernels) const NONE: Self = Self { from: std::ptr::null(), lines: 0 };

    /// Prefetches 8 KB ahead of the product with the panel at `b`, for panels that are read one after the other, each
    /// once.
    #[inline(always)]
    pub(in crate::kernels) fn stream<I: Isa>(b: *const u32) -> Self {
        Self { from: b.wrapping_add(STREAM_AHEAD), lines: I::LANES * I::VECTORS }
    }

    /// Prefetches the block of weights at `next`, which has `length` groups per column, during the last tiles of `rows`
    /// that are multiplied with the block before it: this tile, at `row`, prefetches its share. A block with only one
    /// tile of rows is not prefetched: such products wait for the memory anyway, and the processor reads ahead as fast
    /// as the memory allows.
    #[inline(always)]
    fn share_of_block<I: Isa>(
        next: *const u32,
        length: usize,
        row: usize,
        rows: &Range<usize>,
    ) -> Self {
        let tiles = rows.len().div_ceil(I::ROWS);
        let left = (rows.end - row).div_ceil(I::ROWS);
        let sharing = tiles.min(PREFETCH_TILES);
        if tiles == 1 || left > sharing {
            return Self::NONE;
        }
        let lines = (I::LANES * I::VECTORS).div_ceil(sharing);
        let before = (sharing - left) * length * lines;
        Self { from: next.wrapping_add(before), lines }
    }
}

/// Multiplies one tile with one panel.
///
/// # Safety
/// `rows` is 1 to `I::ROWS`. `a` is a tile of `rows` rows and `b` is a panel, both for `groups` groups of a column; the
/// last cache line of the tile is complete. `groups` is a multiple of `I::GROUPS`. `sums` is valid for `rows x columns` values.
#[inline(always)]
#[expect(unsafe_code, reason = "tile, panel and sums by pointer")]
pub(in crate::kernels) unsafe fn multiply<I: Isa, D: Dot<I>>(isa: I, product: TileProduct) {
    let TileProduct { rows, a, b, groups, sums, add, mut prefetch } = product;
    // The tiles, the epilogue and the packing assume these sizes.
    const {
        assert!(I::VECTORS == 2 && LINE.is_multiple_of(I::LANES));
        assert!(I::ROWS <= MOST_ROWS && I::LANES * I::VECTORS <= MOST_COLUMNS);
    }
    if let (true, Some(integers)) = (I::MATRIX_UNIT, D::INTEGERS) {
        let blocks = groups / LINE;
        let tile = MatrixTile { integers, rows, a, b, blocks, sums, add };
        // SAFETY: this function's contract.
        return unsafe { isa.matrix_tile(tile) };
    }
    macro_rules! highest {
        ($height:expr, $operands:expr, $($rows:literal)*) => {
            match $height {
                $($rows.. if $rows <= I::ROWS => {
                    // SAFETY: this function's contract.
                    unsafe { tile::<I, D, $rows>(isa, $operands) };
                    $rows
                })*
                _ => unreachable!("a tile has 1 to I::ROWS rows"),
            }
        };
    }
    let mut first = 0;
    while first < rows {
        // SAFETY: row `first` starts `first` lines into each block of the tile, and `first` rows into the sums.
        let operands = unsafe {
            let sums = sums.add(first * I::LANES * I::VECTORS);
            Operands { a: a.add(first * LINE), stride: rows * LINE, b, groups, sums, add, prefetch }
        };
        // The sums of twelve rows fill the registers. Each height below is compiled separately for every instruction
        // set and format. Other heights are composed of these, to limit the number of compiled copies.
        first += highest!(rows - first, operands, 12 8 6 4 3 2 1);
        prefetch = Prefetch::NONE;
    }
}

/// Operands and result of [`tile`].
#[derive(Clone, Copy)]
struct Operands {
    a: *const u32,
    /// Number of groups from one block of 16 groups of `a` to the next.
    stride: usize,
    b: *const u32,
    groups: usize,
    sums: *mut u32,
    add: bool,
    prefetch: Prefetch,
}

#[inline(always)]
#[expect(unsafe_code, reason = "tile, panel and sums by pointer")]
unsafe fn tile<I: Isa, D: Dot<I>, const R: usize>(isa: I, operands: Operands) {
    let Operands { mut a, stride, mut b, groups, sums, add, prefetch } = operands;
    let Prefetch { from: mut ahead, lines } = prefetch;
    let columns = 2 * I::LANES;
    // SAFETY: the contract of `multiply`.
    unsafe {
        let mut acc = [[D::zero(isa); 2]; R];
        if add {
            for (r, acc) in acc.iter_mut().enumerate() {
                *acc = [
                    D::load(isa, sums.add(r * columns)),
                    D::load(isa, sums.add(r * columns + I::LANES)),
                ];
            }
        }
        for _ in 0..groups / LINE {
            for line in 0..lines {
                isa.prefetch(ahead.wrapping_add(line * LINE));
            }
            ahead = ahead.wrapping_add(lines * LINE);
            for _ in 0..D::ROW_LINES {
                for j in 0..LINE / D::ROW_LINES {
                    acc = D::step(isa, acc, a.add(j * D::ROW_LINES), b.add(j * columns));
                }
                a = a.add(stride);
                b = b.add(columns * (LINE / D::ROW_LINES));
            }
        }
        for j in 0..groups % LINE {
            let a = a.add(place(j * D::ROW_LINES, stride));
            acc = D::step(isa, acc, a, b.add(j * columns));
        }
        for (r, acc) in acc.iter().enumerate() {
            D::store(isa, sums.add(r * columns), acc[0]);
            D::store(isa, sums.add(r * columns + I::LANES), acc[1]);
        }
    }
}
