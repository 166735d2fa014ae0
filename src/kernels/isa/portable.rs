//! The portable level, for every CPU: arrays of four lanes, which the compiler turns into SSE2 or NEON.

use super::Isa;

/// The instruction set that every CPU of the architecture has.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernels) struct Portable;

const LANES: usize = 4;

#[inline(always)]
fn zip<T: Copy, U>(a: [T; LANES], b: [T; LANES], f: impl Fn(T, T) -> U) -> [U; LANES] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

/// Returns `a * b + c`. The operation is fused only if the architecture has an instruction for it, because the fused
/// library function takes a hundred times as long.
#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(target_arch = "aarch64") { a.mul_add(b, c) } else { a * b + c }
}

/// Converts a group of two bf16 values to f32. A bf16 value is the upper half of an f32.
#[inline(always)]
fn widen(group: u32) -> (f32, f32) {
    (f32::from_bits(group << 16), f32::from_bits(group & 0xffff_0000))
}

/// Rounds to bf16, ties to even, and returns the bits in the lower half; NaN stays NaN.
#[inline(always)]
pub(in crate::kernels) fn to_bf16(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if value.is_nan() { (bits >> 16) | 0x40 } else { rounded }
}

#[expect(unsafe_code, reason = "loads and stores by pointer")]
// SAFETY: the implementation uses only instructions that the architecture always has.
unsafe impl Isa for Portable {
    fn detect() -> Option<Self> {
        Some(Self)
    }

    type F = [f32; LANES];
    type G = [u32; LANES];
    const LANES: usize = LANES;
    const ROWS: usize = 4;
    const VECTORS: usize = 2;
    const WIDENS_BF16: bool = true;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the caller fulfils the trait's contract.
        unsafe { from.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: Self::F) {
        // SAFETY: the caller fulfils the trait's contract.
        unsafe { to.cast::<Self::F>().write_unaligned(value) }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| mul_add(a[i], b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        // Adding 1.5 x 2^23 leaves no fraction bits. This is valid for |a| < 2^22, which holds for all callers.
        const SHIFT: f32 = 12_582_912.0;
        a.map(|a| (a + SHIFT) - SHIFT)
    }
    #[inline(always)]
    fn power_of_two(self, n: Self::F) -> Self::F {
        n.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }
    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        a[0].max(a[1]).max(a[2].max(a[3]))
    }
    #[inline(always)]
    fn splat_group(self, group: u32) -> Self::G {
        [group; LANES]
    }
    #[inline(always)]
    unsafe fn load_groups(self, from: *const u32) -> Self::G {
        // SAFETY: the caller fulfils the trait's contract.
        unsafe { from.cast::<Self::G>().read_unaligned() }
    }
    #[inline(always)]
    fn zero_groups(self) -> Self::G {
        [0; LANES]
    }
    #[inline(always)]
    unsafe fn load_i32(self, from: *const i32) -> Self::G {
        // SAFETY: the caller fulfils the trait's contract.
        unsafe { from.cast::<Self::G>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_i32(self, to: *mut i32, value: Self::G) {
        // SAFETY: the caller fulfils the trait's contract.
        unsafe { to.cast::<Self::G>().write_unaligned(value) }
    }
    #[inline(always)]
    fn to_f32(self, a: Self::G) -> Self::F {
        a.map(|a| a as i32 as f32)
    }
    #[inline(always)]
    fn mul_i32(self, a: Self::G, b: Self::G) -> Self::G {
        zip(a, b, u32::wrapping_mul)
    }
    #[inline(always)]
    fn sub_i32(self, a: Self::G, b: Self::G) -> Self::G {
        zip(a, b, u32::wrapping_sub)
    }
    #[inline(always)]
    fn dot_f32(self, acc: Self::F, a: Self::G, b: Self::G) -> Self::F {
        std::array::from_fn(|i| mul_add(f32::from_bits(a[i]), f32::from_bits(b[i]), acc[i]))
    }
    #[inline(always)]
    fn dot_bf16(self, acc: Self::F, a: Self::G, b: Self::G) -> Self::F {
        std::array::from_fn(|i| {
            let ((a0, a1), (b0, b1)) = (widen(a[i]), widen(b[i]));
            mul_add(a1, b1, mul_add(a0, b0, acc[i]))
        })
    }
    #[inline(always)]
    fn dot_int8(self, acc: Self::G, a: Self::G, b: Self::G) -> Self::G {
        std::array::from_fn(|i| {
            let (a, b) = (a[i].to_le_bytes(), b[i].to_le_bytes());
            let sum: i32 = (0..4).map(|j| i32::from(a[j]) * i32::from(b[j] as i8)).sum();
            acc[i].wrapping_add(sum as u32)
        })
    }
    #[inline(always)]
    fn pair_bf16(self, even: Self::F, odd: Self::F) -> Self::G {
        std::array::from_fn(|i| to_bf16(even[i]) | to_bf16(odd[i]) << 16)
    }
    #[inline(always)]
    fn pack_bf16(self, first: Self::F, second: Self::F) -> Self::G {
        let pair = |of: Self::F, i: usize| to_bf16(of[i]) | to_bf16(of[i + 1]) << 16;
        [pair(first, 0), pair(first, 2), pair(second, 0), pair(second, 2)]
    }
    #[inline(always)]
    fn round_to_bf16(self, a: Self::F) -> Self::F {
        a.map(|a| f32::from_bits(to_bf16(a) << 16))
    }
    #[inline(always)]
    fn widen_bf16(self, groups: Self::G) -> [Self::F; 2] {
        [groups.map(|group| widen(group).0), groups.map(|group| widen(group).1)]
    }
    #[inline(always)]
    fn interleave_bf16(self, even: Self::G, odd: Self::G) -> [Self::G; 2] {
        let low = |i: usize| (even[i] & 0xffff) | (odd[i] << 16);
        let high = |i: usize| (even[i] >> 16) | (odd[i] & 0xffff_0000);
        [[low(0), high(0), low(1), high(1)], [low(2), high(2), low(3), high(3)]]
    }
    #[inline(always)]
    fn interleaved_to_order(self, lanes: [Self::F; 2]) -> [Self::F; 2] {
        lanes
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8, value: Self::F) {
        // SAFETY: the caller fulfils the trait's contract.
        unsafe { to.cast::<[u8; LANES]>().write(self.round(value).map(|value| value as u8)) }
    }
    #[inline(always)]
    unsafe fn store_groups(self, to: *mut u32, value: Self::G) {
        // SAFETY: the caller fulfils the trait's contract.
        unsafe { to.cast::<Self::G>().write_unaligned(value) }
    }
}
