//! The trait [`Isa`]: the vector operations that kernels are written in. Each works on vectors of f32 or of 4-byte
//! groups.

#![expect(unsafe_code, reason = "the trait declares loads and stores by pointer")]

/// Largest number of rows of a tile, over all instruction sets.
pub(in crate::kernels) const MOST_ROWS: usize = 32;
/// Largest number of columns of a tile, over all instruction sets.
pub(in crate::kernels) const MOST_COLUMNS: usize = 32;

/// An instruction set. A value of an implementing type is proof that the CPU supports the set.
///
/// A **group** is four bytes of one operand that a dot product consumes at once: one f32, two bf16 values or four 8-bit
/// integers. The value with the lowest index is in the lowest bits. `Self::G` holds [`Isa::LANES`] groups.
///
/// # Safety
/// A value of an implementing type is constructed only after the CPU was found to support the set, because every method
/// may use the set's instructions.
pub(in crate::kernels) unsafe trait Isa:
    Copy + Send + Sync + 'static
{
    /// Returns a value of the type if this CPU and its operating system support the set, otherwise `None`.
    fn detect() -> Option<Self>;
    /// True if this CPU has the set, but the operating system refused this process the permission to use it.
    fn is_refused() -> bool {
        false
    }
    /// True if this CPU has the set, but a lower set is faster on it.
    fn is_slow() -> bool {
        false
    }
    /// True if the set is emulated in software. Only tests emulate sets.
    fn is_emulated() -> bool {
        false
    }
    /// Makes the set available by emulation, if this CPU lacks it and emulation is possible.
    #[cfg(test)]
    fn emulate() {}
    /// Returns the number of products that have been emulated on this thread so far.
    #[cfg(test)]
    fn emulated_products() -> usize {
        0
    }

    /// A vector of f32 lanes.
    type F: Copy;
    /// A vector of groups, or of i32 lanes.
    type G: Copy;
    /// Number of lanes per vector.
    const LANES: usize;
    /// Largest number of rows of a tile of the matrix product.
    const ROWS: usize;
    /// Width of a tile of the matrix product, in vectors.
    const VECTORS: usize;
    /// Number of groups of K (the inner dimension of the product) per block, a multiple of 16. A panel's block (192 x
    /// 32 x 4 B = 24 KB) and a tile's block (192 x 12 x 4 B = 9 KB) fit into the first-level cache together.
    const K_BLOCK: usize = 192;
    /// Maximum size in bytes of a block of packed rows. The block stays in the second-level cache (1 MB on Zen 4) while
    /// the panels are read one after the other.
    const ROW_BLOCK_BYTES: usize = 384 * 1024;
    /// Both operands are padded with zeros to a multiple of this number of groups of K.
    const GROUPS: usize = 1;
    /// True if [`Isa::matrix_tile`] multiplies bf16 and 8-bit integers.
    const MATRIX_UNIT: bool = false;
    /// True if bf16 is multiplied as f32, because the set has no dot product of bf16.
    const WIDENS_BF16: bool = false;

    /// Asks the CPU to load the cache line at `from` into the first-level cache; on sets without such an instruction,
    /// does nothing. Any address is allowed.
    fn prefetch(self, from: *const u32) {
        let _ = from;
    }
    /// Sets all lanes to `value`.
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
    /// Returns `1 / a` within 2 units in the last place, for `a` whose inverse is a normal number.
    fn reciprocal(self, a: Self::F) -> Self::F {
        self.div(self.splat(1.0), a)
    }
    /// Returns `a * b + c`, rounded once if the set has FMA.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Returns the larger value per lane; NaN if `b` is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// Returns the smaller value per lane; NaN if `b` is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// Rounds to the nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// Returns `2^n` for integer `n` from -126 to 127.
    fn power_of_two(self, n: Self::F) -> Self::F;
    /// Returns `a - floor(a)`; 1 is allowed instead of 0 if [`Isa::scale_by_floor`] then multiplies by half as much.
    fn fraction(self, a: Self::F) -> Self::F {
        self.sub(a, self.round(self.sub(a, self.splat(0.5))))
    }
    /// Returns `value * 2^floor(a)` for `a` from -126 to 127.
    fn scale_by_floor(self, value: Self::F, a: Self::F) -> Self::F {
        self.mul(value, self.power_of_two(self.round(self.sub(a, self.splat(0.5)))))
    }
    /// Returns the sum of all lanes, added in a fixed order.
    fn sum(self, a: Self::F) -> f32;
    /// Returns the largest lane; no lane may be NaN.
    fn largest(self, a: Self::F) -> f32;

    /// Stores the sum of all lanes of each vector. The order of the additions is fixed, but may differ from that of
    /// [`Isa::sum`].
    ///
    /// # Safety
    /// `to` is valid for four writes.
    unsafe fn store_sums(self, to: *mut f32, vectors: [Self::F; 4]) {
        for (index, vector) in vectors.into_iter().enumerate() {
            // SAFETY: this function's contract.
            unsafe { *to.add(index) = self.sum(vector) };
        }
    }

    /// Sets all lanes to `group`.
    fn splat_group(self, group: u32) -> Self::G;
    /// # Safety
    /// `from` is valid for `LANES` reads.
    unsafe fn load_groups(self, from: *const u32) -> Self::G;
    /// Sets all lanes to 0.
    fn zero_groups(self) -> Self::G;
    /// # Safety
    /// `from` is valid for `LANES` reads.
    unsafe fn load_i32(self, from: *const i32) -> Self::G;
    /// # Safety
    /// `to` is valid for `LANES` writes.
    unsafe fn store_i32(self, to: *mut i32, value: Self::G);
    /// Converts i32 lanes to f32.
    fn to_f32(self, a: Self::G) -> Self::F;
    /// Returns the lower 32 bits of `a * b` per i32 lane.
    fn mul_i32(self, a: Self::G, b: Self::G) -> Self::G;
    /// Returns `a - b` per i32 lane, wrapping.
    fn sub_i32(self, a: Self::G, b: Self::G) -> Self::G;

    /// Returns `acc + a * b`; a group is one f32.
    fn dot_f32(self, acc: Self::F, a: Self::G, b: Self::G) -> Self::F;
    /// Returns `acc + a0 * b0 + a1 * b1`; a group is two bf16 values.
    fn dot_bf16(self, acc: Self::F, a: Self::G, b: Self::G) -> Self::F;
    /// Returns `acc + a0 * b0 + ... + a3 * b3`; a group is four 8-bit integers, unsigned in `a`, signed in `b`.
    fn dot_int8(self, acc: Self::G, a: Self::G, b: Self::G) -> Self::G;
    /// Rounds to bf16 (ties to even) and interleaves the vectors: lane i of the result is the group of `even[i]` (lower
    /// half) and `odd[i]` (upper half).
    fn pair_bf16(self, even: Self::F, odd: Self::F) -> Self::G;
    /// Rounds to bf16 (ties to even) and packs each pair of adjacent lanes into one group: first the pairs of `first`,
    /// then those of `second`.
    fn pack_bf16(self, first: Self::F, second: Self::F) -> Self::G;
    /// Rounds to bf16 (ties to even); NaN stays NaN.
    fn round_to_bf16(self, a: Self::F) -> Self::F;
    /// Converts groups of two bf16 values to f32. Returns the first values, then the second ones.
    fn widen_bf16(self, groups: Self::G) -> [Self::F; 2];
    /// Pairs each bf16 value of `even` (lower half of a group) with the value of `odd` at the same place (upper half). The
    /// two results together hold all pairs, in the set's own order.
    fn interleave_bf16(self, even: Self::G, odd: Self::G) -> [Self::G; 2];
    /// Reorders two vectors whose lanes belong to the groups of [`Isa::interleave_bf16`], so that they are in the order of
    /// the bf16 values.
    fn interleaved_to_order(self, lanes: [Self::F; 2]) -> [Self::F; 2];
    /// # Safety
    /// `to` is valid for `LANES` writes.
    unsafe fn store_groups(self, to: *mut u32, value: Self::G);

    /// Rounds lanes to the nearest integer, ties to even, and stores them as bytes; values below 0 and above 255
    /// saturate.
    ///
    /// # Safety
    /// `to` is valid for `LANES` writes.
    unsafe fn store_bytes(self, to: *mut u8, value: Self::F);

    /// Multiplies one tile on the matrix unit, if the set has one.
    ///
    /// # Safety
    /// The conditions of [`MatrixTile`] hold.
    unsafe fn matrix_tile(self, tile: MatrixTile) {
        unreachable!("asked only where MATRIX_UNIT is set, not for {tile:?}")
    }
}

/// A product on the matrix unit: a tile of rows (packed by `gemm::rows`), a panel of weights (packed by
/// `gemm::weights`), and the sums.
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "only x86-64 has a matrix unit that is used")
)]
#[derive(Debug, Clone, Copy)]
pub(in crate::kernels) struct MatrixTile {
    /// True for groups of four 8-bit integers with sums in i32; false for groups of two bf16 values with sums in f32.
    pub(in crate::kernels) integers: bool,
    /// Number of rows, from 1 to `ROWS`.
    pub(in crate::kernels) rows: usize,
    /// The tile: `[blocks of 16 groups][rows][16]`.
    pub(in crate::kernels) a: *const u32,
    /// The panel: `[blocks of 16 groups][16][columns]`.
    pub(in crate::kernels) b: *const u32,
    /// Number of blocks of 16 groups, at least one.
    pub(in crate::kernels) blocks: usize,
    /// Result of the product, `[rows, columns]`.
    pub(in crate::kernels) sums: *mut u32,
    /// If true, the product is added to `sums`; otherwise it overwrites `sums`.
    pub(in crate::kernels) add: bool,
}
