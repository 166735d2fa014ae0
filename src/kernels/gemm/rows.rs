//! Packs the left operand of one product: converts it to the groups of the format (see `isa::lanes::Isa`), tile by
//! tile.
//!
//! A tile of `r` rows is stored as `[k blocks of 16 groups][r][16 groups]`. So the inner loop reads it with one
//! pointer, each cache line belongs to one row, and packing writes whole cache lines.

use super::super::aligned_buffer::{AlignedBuffer, LINE};
use super::super::disjoint::DisjointMutPtr;
use super::super::isa::{Isa, Kernel, Level};
use super::super::pointwise::{LayerNorm, norm_row};
use super::super::pool::Pool;
use super::super::rows::Rows;
use super::format::{Bf16, F32, Format, Int8, RowFormat, Shape, WideBf16};

/// Rows packed in tiles, and the quantization of each 8-bit row.
#[derive(Debug, Default)]
pub(in crate::kernels) struct PackedRows {
    groups: AlignedBuffer,
    quantised: Vec<Quantised>,
    rows: usize,
    padded_groups: usize,
}

/// Quantization of one row to 8 bits: `value = (byte - zero) * scale`.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::kernels) struct Quantised {
    pub(super) scale: f32,
    pub(super) zero: i32,
}

/// The left operand of a product before it is packed: some rows or, with `norm`, their layer norm.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) rows: Rows<'a>,
    pub(super) norm: Option<LayerNorm<'a>>,
}

/// Number of tiles that one part of a job packs.
const TILES_A_PART: usize = 2;

impl PackedRows {
    /// Packs `k` columns of `x` for a product with weights in `format`, in parallel on the pool.
    pub(super) fn pack(
        &mut self,
        level: Level,
        pool: &mut Pool,
        x: Source<'_>,
        k: usize,
        format: Format,
    ) {
        let run = |parts: usize, part: &(dyn Fn(usize) + Sync)| pool.run(parts, part);
        self.pack_on(run, level, x, k, format);
    }

    /// Like `pack`, but on the calling thread, for callers that are already inside a part of a job.
    pub(super) fn pack_alone(&mut self, level: Level, x: Rows<'_>, k: usize, format: Format) {
        let run = |parts: usize, part: &(dyn Fn(usize) + Sync)| (0..parts).for_each(part);
        self.pack_on(run, level, Source { rows: x, norm: None }, k, format);
    }

    fn pack_on(
        &mut self,
        run: impl FnOnce(usize, &(dyn Fn(usize) + Sync)),
        level: Level,
        x: Source<'_>,
        k: usize,
        format: Format,
    ) {
        let shape = Shape::of(level);
        let (tile, format) = (shape.rows, shape.row_format(format));
        self.rows = x.rows.rows;
        self.padded_groups = k.div_ceil(format.group()).next_multiple_of(LINE);
        self.groups.resize(self.rows * self.padded_groups);
        if format == RowFormat::Int8 {
            self.quantised.resize(self.rows, Quantised::default());
        }
        let (rows, groups) = (self.rows, DisjointMutPtr(self.groups.as_mut_ptr()));
        let quantised = DisjointMutPtr(self.quantised.as_mut_ptr());
        let parts = rows.div_ceil(tile * TILES_A_PART);
        run(parts, &|part| {
            let first = part * tile * TILES_A_PART;
            let last = (first + tile * TILES_A_PART).min(rows);
            for start in (first..last).step_by(tile) {
                let rows = tile.min(last - start);
                level.run(PackTile { x, k, first: start, rows, format, groups, quantised });
            }
        });
    }

    /// Makes room for `rows` rows of `columns` values (rounded up to whole panels), which a product writes for another
    /// product with weights in `format`: f32 or bf16.
    pub(super) fn prepare(
        &mut self,
        level: Level,
        rows: usize,
        columns: usize,
        format: Format,
    ) -> PackedOut {
        assert_ne!(format, Format::Int8, "the range of a row is not known before its last value");
        let shape = Shape::of(level);
        let (columns, format) = (columns.next_multiple_of(shape.columns), shape.row_format(format));
        self.rows = rows;
        self.padded_groups = columns.div_ceil(format.group()).next_multiple_of(LINE);
        self.groups.resize(rows * self.padded_groups);
        PackedOut {
            groups: DisjointMutPtr(self.groups.as_mut_ptr()),
            rows,
            padded_groups: self.padded_groups,
            format,
        }
    }

    /// Returns a pointer to group `k` (a multiple of [`LINE`]) of the tile whose first row is `row`.
    #[inline(always)]
    pub(super) fn tile(&self, row: usize, rows_in_tile: usize, k: usize) -> *const u32 {
        self.groups[row * self.padded_groups + k * rows_in_tile..].as_ptr()
    }

    #[inline(always)]
    pub(super) fn quantised(&self, row: usize) -> Quantised {
        self.quantised[row]
    }
}

/// Packed rows as the destination of a product.
#[derive(Clone, Copy)]
pub(super) struct PackedOut {
    groups: DisjointMutPtr<u32>,
    rows: usize,
    padded_groups: usize,
    pub(super) format: RowFormat,
}

impl PackedOut {
    /// Returns a pointer to the first line of a row, and the distance between its lines in groups.
    #[inline(always)]
    pub(super) fn row<I: Isa>(self, row: usize) -> (*mut u32, usize) {
        let first = row / I::ROWS * I::ROWS;
        let height = I::ROWS.min(self.rows - first);
        let offset = first * self.padded_groups + (row - first) * LINE;
        (self.groups.pointer().wrapping_add(offset), height * LINE)
    }
}

/// Packs `k` columns of the `rows` rows of one tile, starting at row `first`.
struct PackTile<'a> {
    x: Source<'a>,
    k: usize,
    first: usize,
    rows: usize,
    format: RowFormat,
    /// Groups of all rows of the product.
    groups: DisjointMutPtr<u32>,
    /// Quantization of all rows; unused unless the format is 8-bit.
    quantised: DisjointMutPtr<Quantised>,
}

impl Kernel for PackTile<'_> {
    type Output = ();

    #[inline(always)]
    #[expect(unsafe_code, reason = "only one part writes the rows of a tile")]
    fn run<I: Isa>(self, isa: I) {
        let Self { x, k, first, rows, format, groups, quantised } = self;
        let padded = k.div_ceil(format.group()).next_multiple_of(LINE);
        let mut normed = vec![0.0; if x.norm.is_some() { k } else { 0 }];
        for index in 0..rows {
            let mut row = x.rows.part(first + index, 0, k);
            if let Some(norm) = x.norm {
                norm_row(isa, row, norm, &mut normed);
                row = &normed;
            }
            // SAFETY: the buffer holds `rows x padded` groups. This tile's groups start at the offset of its first row,
            // and no other part writes them.
            unsafe {
                let to = groups.pointer().add(first * padded + index * LINE);
                match format {
                    RowFormat::F32 => row_to_groups::<I, F32>(isa, row, rows, to, ()),
                    RowFormat::Bf16 => row_to_groups::<I, Bf16>(isa, row, rows, to, ()),
                    RowFormat::WideBf16 => row_to_groups::<I, WideBf16>(isa, row, rows, to, ()),
                    RowFormat::Int8 => {
                        let (scaling, inverse) = quantise(isa, row, index + 1 < rows);
                        *quantised.pointer().add(first + index) = scaling;
                        row_to_groups::<I, Int8>(
                            isa,
                            row,
                            rows,
                            to,
                            (inverse, scaling.zero as f32),
                        );
                    }
                }
            }
        }
    }
}

#[expect(unsafe_code, reason = "lines by pointer")]
/// A number format that f32 values are converted to, one cache line of groups at a time.
pub(in crate::kernels) trait Convert<I: Isa> {
    /// Number of f32 values per group.
    const GROUP: usize;
    type Scaling: Copy;
    /// # Safety
    /// `from` is valid for `LINE x GROUP` reads, and `to` for `LINE` writes.
    unsafe fn line(isa: I, from: *const f32, to: *mut u32, scaling: Self::Scaling);
}

#[expect(unsafe_code, reason = "groups by pointer")]
/// A number format that f32 values are converted to, two adjacent vectors of a row at a time.
pub(in crate::kernels) trait ConvertPair<I: Isa>:
    Convert<I, Scaling = ()>
{
    /// Converts the `index`-th pair of vectors of a row and writes the groups. The first cache line of the row is at
    /// `to`, and its lines are `stride` groups apart.
    ///
    /// # Safety
    /// `to` is valid for writing the groups of this pair.
    unsafe fn pair(isa: I, pair: [I::F; 2], to: *mut u32, stride: usize, index: usize);
}

/// Returns the offset of a group of a row whose cache lines are `stride` groups apart.
#[inline(always)]
pub(in crate::kernels) fn place(group: usize, stride: usize) -> usize {
    group / LINE * stride + group % LINE
}

#[expect(unsafe_code, reason = "groups by pointer")]
impl<I: Isa> ConvertPair<I> for F32 {
    #[inline(always)]
    unsafe fn pair(isa: I, [first, second]: [I::F; 2], to: *mut u32, stride: usize, index: usize) {
        let group = 2 * index * I::LANES;
        // SAFETY: a vector's groups lie within one line, because a line is a whole number of vectors.
        unsafe {
            isa.store(to.add(place(group, stride)).cast(), first);
            isa.store(to.add(place(group + I::LANES, stride)).cast(), second);
        }
    }
}

#[expect(unsafe_code, reason = "groups by pointer")]
impl<I: Isa> ConvertPair<I> for WideBf16 {
    #[inline(always)]
    unsafe fn pair(isa: I, [first, second]: [I::F; 2], to: *mut u32, stride: usize, index: usize) {
        let rounded = [isa.round_to_bf16(first), isa.round_to_bf16(second)];
        // SAFETY: this function's contract.
        unsafe { F32::pair(isa, rounded, to, stride, index) };
    }
}

#[expect(unsafe_code, reason = "groups by pointer")]
impl<I: Isa> ConvertPair<I> for Bf16 {
    #[inline(always)]
    unsafe fn pair(isa: I, [first, second]: [I::F; 2], to: *mut u32, stride: usize, index: usize) {
        // SAFETY: as for f32, a vector's groups lie within one line.
        unsafe {
            let to = to.add(place(index * I::LANES, stride));
            isa.store_groups(to, isa.pack_bf16(first, second));
        }
    }
}

/// Converts one row to groups. Writes them to every `rows_in_tile`-th cache line, starting at `to`.
///
/// # Safety
/// `to` is valid for writing these lines.
#[inline(always)]
#[expect(unsafe_code, reason = "lines of one row in a tile")]
pub(in crate::kernels) unsafe fn row_to_groups<I: Isa, C: Convert<I>>(
    isa: I,
    row: &[f32],
    rows_in_tile: usize,
    mut to: *mut u32,
    scaling: C::Scaling,
) {
    let block = LINE * C::GROUP;
    let mut blocks = row.chunks_exact(block);
    for block in &mut blocks {
        // SAFETY: the block is complete; the caller guarantees that the lines are valid.
        unsafe {
            C::line(isa, block.as_ptr(), to, scaling);
            to = to.add(rows_in_tile * LINE);
        }
    }
    let rest = blocks.remainder();
    if !rest.is_empty() {
        let mut padded = [0.0f32; 4 * LINE];
        padded[..rest.len()].copy_from_slice(rest);
        // SAFETY: the padded array is a complete block; the caller guarantees that the lines are valid.
        unsafe { C::line(isa, padded.as_ptr(), to, scaling) };
    }
}

#[expect(unsafe_code, reason = "whole lines by pointer")]
impl<I: Isa> Convert<I> for F32 {
    const GROUP: usize = 1;
    type Scaling = ();
    #[inline(always)]
    unsafe fn line(isa: I, from: *const f32, to: *mut u32, (): ()) {
        for lane in (0..LINE).step_by(I::LANES) {
            // SAFETY: the vector lies within the line.
            unsafe { isa.store(to.add(lane).cast(), isa.load(from.add(lane))) };
        }
    }
}

#[expect(unsafe_code, reason = "whole lines by pointer")]
impl<I: Isa> Convert<I> for WideBf16 {
    const GROUP: usize = 1;
    type Scaling = ();
    #[inline(always)]
    unsafe fn line(isa: I, from: *const f32, to: *mut u32, (): ()) {
        for lane in (0..LINE).step_by(I::LANES) {
            // SAFETY: the vector lies within the line.
            unsafe {
                let value = isa.round_to_bf16(isa.load(from.add(lane)));
                isa.store(to.add(lane).cast(), value);
            }
        }
    }
}

#[expect(unsafe_code, reason = "whole lines by pointer")]
impl<I: Isa> Convert<I> for Bf16 {
    const GROUP: usize = 2;
    type Scaling = ();
    #[inline(always)]
    unsafe fn line(isa: I, from: *const f32, to: *mut u32, (): ()) {
        for lane in (0..LINE).step_by(I::LANES) {
            // SAFETY: the vectors lie within the line.
            unsafe {
                let first = isa.load(from.add(2 * lane));
                let second = isa.load(from.add(2 * lane + I::LANES));
                isa.store_groups(to.add(lane), isa.pack_bf16(first, second));
            }
        }
    }
}

#[expect(unsafe_code, reason = "whole lines by pointer")]
impl<I: Isa> Convert<I> for Int8 {
    const GROUP: usize = 4;
    /// The inverse of the scale, and the zero point.
    type Scaling = (f32, f32);
    #[inline(always)]
    unsafe fn line(isa: I, from: *const f32, to: *mut u32, (inverse, zero): (f32, f32)) {
        let (inverse, zero) = (isa.splat(inverse), isa.splat(zero));
        // The multiplication and the addition are not fused, so that every level rounds to the same bytes.
        for value in (0..4 * LINE).step_by(I::LANES) {
            // SAFETY: the vector lies within the line.
            unsafe {
                let scaled = isa.add(isa.mul(isa.load(from.add(value)), inverse), zero);
                isa.store_bytes(to.cast::<u8>().add(value), scaled);
            }
        }
    }
}

/// Chooses the quantization that maps the row's range, extended to include 0, to 0..=255. Returns the quantization and
/// the inverse of its scale. If another row follows in memory and is packed next (`has_next`), prefetches it.
#[inline(always)]
#[expect(unsafe_code, reason = "vectors of a slice")]
fn quantise<I: Isa>(isa: I, row: &[f32], has_next: bool) -> (Quantised, f32) {
    let whole = row.len() / I::LANES * I::LANES;
    let (mut low, mut high) = (isa.splat(0.0), isa.splat(0.0));
    // `zeros` becomes NaN if a value is not finite, because zero times such a value is NaN. Minima and maxima alone
    // could lose a NaN.
    let mut zeros = isa.splat(0.0);
    for start in (0..whole).step_by(I::LANES) {
        if has_next {
            isa.prefetch(row.as_ptr().wrapping_add(start + row.len()).cast());
        }
        // SAFETY: the vector lies within the row.
        let x = unsafe { isa.load(row.as_ptr().add(start)) };
        (low, high) = (isa.min(low, x), isa.max(high, x));
        zeros = isa.mul_add(x, isa.splat(0.0), zeros);
    }
    let negative = isa.sub(isa.splat(0.0), low);
    let (mut low, mut high) = (-isa.largest(negative), isa.largest(high));
    let mut zero = isa.sum(zeros);
    for &x in &row[whole..] {
        (low, high) = (low.min(x), high.max(x));
        zero += x * 0.0;
    }
    let range = high - low;
    if zero.is_nan() || range == 0.0 || range.is_infinite() {
        // Either a value is not finite, so the results must be NaN, or all values are zero.
        let scale = if zero.is_nan() || range.is_infinite() { f32::NAN } else { 0.0 };
        return (Quantised { scale, zero: 0 }, 0.0);
    }
    let scale = range / 255.0;
    let inverse = 255.0 / range;
    let zero = (-low * inverse).round_ties_even() as i32;
    (Quantised { scale, zero }, inverse)
}
