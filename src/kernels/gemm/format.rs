//! The number formats of products, and the sizes of their tiles and blocks. `rows`, `weights` and `tile` use them.

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
            group_unit: I::GROUPS,
        }
    }
}

#[expect(unsafe_code, reason = "sums by pointer")]
/// The properties of a number format that the inner loop needs: how two groups are multiplied, and the type of the
/// sums.
pub(in crate::kernels) trait Dot<I: Isa> {
    /// A vector of sums, one per lane.
    type Sum: Copy;
    /// Whether the matrix unit treats the groups as integers; `None` if the unit does not support the format.
    const INTEGERS: Option<bool>;
    fn zero(isa: I) -> Self::Sum;
    fn dot(isa: I, sum: Self::Sum, a: I::G, b: I::G) -> Self::Sum;
    /// # Safety
    /// `from` is valid for reading a vector.
    unsafe fn load(isa: I, from: *const u32) -> Self::Sum;
    /// # Safety
    /// `to` is valid for writing a vector.
    unsafe fn store(isa: I, to: *mut u32, sum: Self::Sum);
}

/// The format whose groups are one f32 each, summed in f32.
pub(in crate::kernels) struct F32;
/// The format whose groups are two bf16 values each, summed in f32.
pub(in crate::kernels) struct Bf16;
/// The format whose groups are four 8-bit integers each (rows unsigned, weights signed), summed in i32.
pub(in crate::kernels) struct Int8;

macro_rules! float_sums {
    ($($format:ident, $dot:ident, $integers:expr;)*) => {$(
        #[expect(unsafe_code, reason = "sums by pointer")]
        impl<I: Isa> Dot<I> for $format {
            type Sum = I::F;
            const INTEGERS: Option<bool> = $integers;
            #[inline(always)]
            fn zero(isa: I) -> I::F {
                isa.splat(0.0)
            }
            #[inline(always)]
            fn dot(isa: I, sum: I::F, a: I::G, b: I::G) -> I::F {
                isa.$dot(sum, a, b)
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
        }
    )*};
}
float_sums! {
    F32, dot_f32, None;
    Bf16, dot_bf16, Some(false);
}

#[expect(unsafe_code, reason = "sums by pointer")]
impl<I: Isa> Dot<I> for Int8 {
    type Sum = I::G;
    const INTEGERS: Option<bool> = Some(true);
    #[inline(always)]
    fn zero(isa: I) -> I::G {
        isa.zero_groups()
    }
    #[inline(always)]
    fn dot(isa: I, sum: I::G, a: I::G, b: I::G) -> I::G {
        isa.dot_int8(sum, a, b)
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
