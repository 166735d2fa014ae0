//! The vocabulary of the kernels: a handful of operations on one vector of f32 or of 4-byte groups.

#![expect(unsafe_code, reason = "operations by pointer are declared here")]

/// An instruction set. A value is proof that the CPU has it.
///
/// A **group** is four bytes of one operand that a dot product consumes at once: one f32, two bf16 or four 8-bit
/// integers, lowest index in the lowest bits. `Self::G` holds [`Isa::LANES`] of them.
///
/// # Safety
/// Implementations are only constructed after detection; every method may use the set's instructions.
pub(in crate::kernels) unsafe trait Isa:
    Copy + Send + Sync + 'static
{
    /// f32 lanes.
    type F: Copy;
    /// Groups, or i32 lanes.
    type G: Copy;
    /// Lanes of a vector.
    const LANES: usize;
    /// Rows of a tile of the matrix product.
    const ROWS: usize;
    /// Vectors that a tile is wide.
    const VECTORS: usize;
    /// Groups of K per block, a multiple of 16: a panel's block (192 x 32 x 4 B = 24 KB) and a tile's (192 x 12 x 4 B = 9 KB)
    /// lie in the first-level cache together.
    const K_BLOCK: usize = 192;
    /// Bytes of packed rows that stay in the second-level cache (1 MB on Zen 4) while panels pass by.
    const ROW_BLOCK_BYTES: usize = 384 * 1024;
    /// Groups of K come in multiples of this; operands are padded with zeros.
    const GROUPS: usize = 1;
    /// True where [`Isa::matrix_tile`] multiplies bf16 and 8-bit integers.
    const MATRIX_UNIT: bool = false;

    /// All lanes `value`.
    fn splat(self, value: f32) -> Self::F;
    /// # Safety
    /// `from` is valid for `LANES` reads.
    unsafe fn load(self, from: *const f32) -> Self::F;
    /// # Safety
    /// `to` is valid for `LANES` writes.
    unsafe fn store(self, to: *mut f32, value: Self::F);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `1 / a` within 2 units in the last place, for `a` whose inverse is an ordinary number.
    fn reciprocal(self, a: Self::F) -> Self::F {
        self.div(self.splat(1.0), a)
    }
    /// `a * b + c`, rounded once where the set has FMA.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger; NaN where `b` is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; NaN where `b` is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// `2^n` for whole `n` from -126 to 127.
    fn power_of_two(self, n: Self::F) -> Self::F;
    /// The sum of all lanes, in a fixed order.
    fn sum(self, a: Self::F) -> f32;
    /// The largest lane; lanes are not NaN.
    fn largest(self, a: Self::F) -> f32;

    /// All lanes `group`.
    fn splat_group(self, group: u32) -> Self::G;
    /// # Safety
    /// `from` is valid for `LANES` reads.
    unsafe fn load_groups(self, from: *const u32) -> Self::G;
    /// All lanes 0.
    fn zero_groups(self) -> Self::G;
    /// # Safety
    /// `from` is valid for `LANES` reads.
    unsafe fn load_i32(self, from: *const i32) -> Self::G;
    /// # Safety
    /// `to` is valid for `LANES` writes.
    unsafe fn store_i32(self, to: *mut i32, value: Self::G);
    /// i32 lanes as f32.
    fn to_f32(self, a: Self::G) -> Self::F;
    /// `a * b` of i32 lanes, lower 32 bits.
    fn mul_i32(self, a: Self::G, b: Self::G) -> Self::G;
    /// `a - b` of i32 lanes.
    fn sub_i32(self, a: Self::G, b: Self::G) -> Self::G;

    /// `acc + a * b`, groups of one f32.
    fn dot_f32(self, acc: Self::F, a: Self::G, b: Self::G) -> Self::F;
    /// `acc + a0 * b0 + a1 * b1`, groups of two bf16.
    fn dot_bf16(self, acc: Self::F, a: Self::G, b: Self::G) -> Self::F;
    /// `acc + a0 * b0 + ... + a3 * b3`, unsigned 8-bit `a`, signed 8-bit `b`.
    fn dot_int8(self, acc: Self::G, a: Self::G, b: Self::G) -> Self::G;
    /// Rounded to bf16 (ties to even): lane i of the result is the group of `even[i]` and `odd[i]`.
    fn pair_bf16(self, even: Self::F, odd: Self::F) -> Self::G;
    /// Rounded to bf16 (ties to even): the groups of `first`'s lanes in order, then those of `second`.
    fn pack_bf16(self, first: Self::F, second: Self::F) -> Self::G;
    /// # Safety
    /// `to` is valid for `LANES` writes.
    unsafe fn store_groups(self, to: *mut u32, value: Self::G);

    /// Lanes rounded to the nearest integer, ties to even; below 0 and above 255 they saturate.
    ///
    /// # Safety
    /// `to` is valid for `LANES` writes.
    unsafe fn store_bytes(self, to: *mut u8, value: Self::F);

    /// One tile on the matrix unit, where there is one.
    ///
    /// # Safety
    /// As [`MatrixTile`] says.
    unsafe fn matrix_tile(self, tile: MatrixTile) {
        unreachable!("asked only where MATRIX_UNIT is set, not for {tile:?}")
    }
}

/// One tile of rows times one panel of weights, as `gemm::tile` has them.
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "only x86-64 has a matrix unit that is used")
)]
#[derive(Debug, Clone, Copy)]
pub(in crate::kernels) struct MatrixTile {
    /// Groups of four 8-bit integers, sums in i32; else of two bf16, sums in f32.
    pub(in crate::kernels) integers: bool,
    /// 1 to `ROWS`.
    pub(in crate::kernels) rows: usize,
    /// `[blocks of 16 groups][rows][16]`.
    pub(in crate::kernels) a: *const u32,
    /// `[blocks of 16 groups][16][columns]`.
    pub(in crate::kernels) b: *const u32,
    /// Blocks of 16 groups, at least one.
    pub(in crate::kernels) blocks: usize,
    /// `[rows, columns]`.
    pub(in crate::kernels) sums: *mut u32,
    /// Adds to `sums`; else writes them.
    pub(in crate::kernels) add: bool,
}
