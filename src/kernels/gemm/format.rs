//! The number formats of products, and the sizes of their tiles and blocks. `rows`, `weights` and `tile` use them.

use super::super::aligned_buffer::LINE;
use super::super::isa::{Isa, Kernel, Level};

/// Number format of a layer's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// f32 weights and rows, sums in f32.
    F32,
    /// bf16 weights and rows, sums in f32.
    Bf16,
    /// 8-bit weights with one scale per column, and 8-bit rows with one scale and one zero point per row; the sums are
    /// in i32 and exact.
    Int8,
}

impl Format {
    /// Returns how many values along K (the inner dimension) a group of four bytes holds.
    #[must_use]
    pub const fn group(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::Int8 => 4,
        }
    }
}

/// Number format of packed rows, the left operand of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kernels) enum RowFormat {
    F32,
    Bf16,
    /// Values rounded to bf16 and stored as f32, for levels that multiply f32 faster than bf16.
    WideBf16,
    Int8,
}

impl RowFormat {
    /// Returns how many values a group of four bytes holds.
    pub(in crate::kernels) const fn group(self) -> usize {
        match self {
            Self::F32 | Self::WideBf16 => 1,
            Self::Bf16 => 2,
            Self::Int8 => 4,
        }
    }
}

/// Tile and block sizes of an instruction set level.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernels) struct Shape {
    /// Number of rows of a tile.
    pub(in crate::kernels) rows: usize,
    /// Number of columns of a panel.
    pub(in crate::kernels) columns: usize,
    /// Maximum size in bytes of a block of packed rows, so that the block stays in the second-level cache.
    pub(in crate::kernels) row_block_bytes: usize,
    /// Number of groups of K per block.
    pub(in crate::kernels) k_block: usize,
    /// True if the level has a matrix unit, which multiplies bf16 and 8-bit integers.
    pub(in crate::kernels) matrix_unit: bool,
    /// True if the level multiplies bf16 weights as f32.
    widens_bf16: bool,
    group_unit: usize,
}

impl Shape {
    pub(in crate::kernels) fn of(level: Level) -> Self {
        level.run(ShapeOf)
    }

    /// Returns the number of groups that `values` values along K take in a panel, including padding with zeros.
    pub(in crate::kernels) fn groups(self, format: Format, values: usize) -> usize {
        values.div_ceil(format.group()).next_multiple_of(self.group_unit)
    }

    /// Returns the format of the rows that are multiplied with weights in `format`.
    pub(in crate::kernels) fn row_format(self, format: Format) -> RowFormat {
        match format {
            Format::F32 => RowFormat::F32,
            Format::Bf16 if self.widens_bf16 => RowFormat::WideBf16,
            Format::Bf16 => RowFormat::Bf16,
            Format::Int8 => RowFormat::Int8,
        }
    }
}

/// Reads the tile and block sizes of an instruction set.
struct ShapeOf;

impl Kernel for ShapeOf {
    type Output = Shape;

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> Shape {
        Shape {
            rows: I::ROWS,
            columns: I::LANES * I::VECTORS,
            row_block_bytes: I::ROW_BLOCK_BYTES,
            k_block: I::K_BLOCK,
            matrix_unit: I::MATRIX_UNIT,
            widens_bf16: I::WIDENS_BF16,
            group_unit: I::GROUPS,
        }
    }
}

#[expect(unsafe_code, reason = "sums by pointer")]
/// The properties of a number format that the inner loop needs: how rows are multiplied with columns, and the type of
/// the sums.
pub(in crate::kernels) trait Dot<I: Isa> {
    /// A vector of sums, one per lane.
    type Sum: Copy;
    /// Whether the matrix unit treats the groups as integers; `None` if the unit does not support the format.
    const INTEGERS: Option<bool>;
    /// Number of cache lines that a row takes for 16 groups of a column.
    const ROW_LINES: usize = 1;
    fn zero(isa: I) -> Self::Sum;
    /// Multiplies one group of `R` rows with one group of every column, and returns the sums plus the products. The
    /// rows start at `a`, one cache line apart, and the columns at `b`.
    ///
    /// # Safety
    /// `a` is valid for reading `ROW_LINES` values of each row, and `b` for reading two vectors.
    unsafe fn step<const R: usize>(
        isa: I,
        sums: [[Self::Sum; 2]; R],
        a: *const u32,
        b: *const u32,
    ) -> [[Self::Sum; 2]; R];
    /// # Safety
    /// `from` is valid for reading a vector.
    unsafe fn load(isa: I, from: *const u32) -> Self::Sum;
    /// # Safety
    /// `to` is valid for writing a vector.
    unsafe fn store(isa: I, to: *mut u32, sum: Self::Sum);
}

/// A format in which the groups of both operands are alike.
pub(in crate::kernels) trait DotGroups<I: Isa>: Dot<I> {
    /// Adds the products of groups, lane by lane.
    fn dot(isa: I, sum: Self::Sum, a: I::G, b: I::G) -> Self::Sum;
}

/// The format whose groups are one f32 each, summed in f32.
pub(in crate::kernels) struct F32;
/// The format whose groups are two bf16 values each, summed in f32.
pub(in crate::kernels) struct Bf16;
/// Like [`Bf16`], but the values of rows are stored as f32, and those of columns are converted to f32 before they are
/// multiplied. So a level without dot products of bf16, or with slow ones, multiplies almost as fast as in f32.
pub(in crate::kernels) struct WideBf16;
/// The format whose groups are four 8-bit integers each (rows unsigned, weights signed), summed in i32.
pub(in crate::kernels) struct Int8;

/// Implements the parts in which formats with sums in f32 are alike.
macro_rules! float_sums {
    () => {
        type Sum = I::F;
        #[inline(always)]
        fn zero(isa: I) -> I::F {
            isa.splat(0.0)
        }
        #[inline(always)]
        unsafe fn load(isa: I, from: *const u32) -> I::F {
            // SAFETY: the caller fulfils the trait's contract.
            unsafe { isa.load(from.cast()) }
        }
        #[inline(always)]
        unsafe fn store(isa: I, to: *mut u32, sum: I::F) {
            // SAFETY: the caller fulfils the trait's contract.
            unsafe { isa.store(to.cast(), sum) }
        }
    };
}

/// Implements the parts in which formats with equal groups in both operands are alike.
macro_rules! equal_groups {
    () => {
        #[inline(always)]
        unsafe fn step<const R: usize>(
            isa: I,
            mut sums: [[Self::Sum; 2]; R],
            a: *const u32,
            b: *const u32,
        ) -> [[Self::Sum; 2]; R] {
            // SAFETY: the caller fulfils the trait's contract.
            unsafe {
                let (b0, b1) = (isa.load_groups(b), isa.load_groups(b.add(I::LANES)));
                for (r, sum) in sums.iter_mut().enumerate() {
                    let a = isa.splat_group(*a.add(r * LINE));
                    *sum = [Self::dot(isa, sum[0], a, b0), Self::dot(isa, sum[1], a, b1)];
                }
            }
            sums
        }
    };
}

#[expect(unsafe_code, reason = "sums by pointer")]
impl<I: Isa> Dot<I> for F32 {
    const INTEGERS: Option<bool> = None;
    float_sums!();
    equal_groups!();
}

impl<I: Isa> DotGroups<I> for F32 {
    #[inline(always)]
    fn dot(isa: I, sum: I::F, a: I::G, b: I::G) -> I::F {
        isa.dot_f32(sum, a, b)
    }
}

#[expect(unsafe_code, reason = "sums by pointer")]
impl<I: Isa> Dot<I> for Bf16 {
    const INTEGERS: Option<bool> = Some(false);
    float_sums!();
    equal_groups!();
}

impl<I: Isa> DotGroups<I> for Bf16 {
    #[inline(always)]
    fn dot(isa: I, sum: I::F, a: I::G, b: I::G) -> I::F {
        isa.dot_bf16(sum, a, b)
    }
}

#[expect(unsafe_code, reason = "sums by pointer")]
impl<I: Isa> Dot<I> for WideBf16 {
    const INTEGERS: Option<bool> = None;
    const ROW_LINES: usize = 2;
    float_sums!();

    #[inline(always)]
    unsafe fn step<const R: usize>(
        isa: I,
        mut sums: [[I::F; 2]; R],
        a: *const u32,
        b: *const u32,
    ) -> [[I::F; 2]; R] {
        // SAFETY: the caller fulfils the trait's contract.
        unsafe {
            let (b0, b1) = (isa.load_groups(b), isa.load_groups(b.add(I::LANES)));
            // First the first values of all groups, then the second ones. So the 16 registers of AVX2 are enough for the
            // sums of six rows and two vectors of columns.
            let [first_0, second_0] = isa.widen_bf16(b0);
            let [first_1, second_1] = isa.widen_bf16(b1);
            let values = [[first_0, first_1], [second_0, second_1]];
            for (value, columns) in values.into_iter().enumerate() {
                for (r, sum) in sums.iter_mut().enumerate() {
                    let a = isa.splat(*a.add(r * LINE + value).cast::<f32>());
                    *sum = [isa.mul_add(a, columns[0], sum[0]), isa.mul_add(a, columns[1], sum[1])];
                }
            }
        }
        sums
    }
}

#[expect(unsafe_code, reason = "sums by pointer")]
impl<I: Isa> Dot<I> for Int8 {
    type Sum = I::G;
    const INTEGERS: Option<bool> = Some(true);
    equal_groups!();
    #[inline(always)]
    fn zero(isa: I) -> I::G {
        isa.zero_groups()
    }
    #[inline(always)]
    unsafe fn load(isa: I, from: *const u32) -> I::G {
        // SAFETY: the caller fulfils the trait's contract.
        unsafe { isa.load_i32(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store(isa: I, to: *mut u32, sum: I::G) {
        // SAFETY: the caller fulfils the trait's contract.
        unsafe { isa.store_i32(to.cast(), sum) }
    }
}

impl<I: Isa> DotGroups<I> for Int8 {
    #[inline(always)]
    fn dot(isa: I, sum: I::G, a: I::G, b: I::G) -> I::G {
        isa.dot_int8(sum, a, b)
    }
}
