//! Inverse DCT of blocks of coefficients. It is the accurate integer transform of libjpeg (`jidctint.c`), in the 16-bit
//! form of its x86 kernels (`simd/x86_64/jidctint-avx2.asm`), which Pillow's wheels use.
//!
//! The C code and the kernels give the same samples if all values fit into 16 bits, as in every file that an encoder
//! writes. Otherwise, the kernels wrap or saturate, and so does this code.

use super::frame::{BLOCK_SIDE, CoefficientBlock};

/// Number of fractional bits in the multiplication constants.
const CONSTANT_BITS: u32 = 13;
/// Number of fractional bits in the values between the two passes.
const PASS_BITS: u32 = 2;

/// The values of a block, row by row.
type BlockRows = [[i16; 8]; 8];

/// Transforms a row of blocks to eight rows of samples, which start `stride` bytes apart in `out`.
#[expect(clippy::inline_always, reason = "inlined code uses the caller's vector instructions")]
#[inline(always)]
pub(super) fn transform_row(
    blocks: &[CoefficientBlock],
    quant: &[u16; 64],
    out: &mut [u8],
    stride: usize,
) {
    for (at, block) in blocks.iter().enumerate() {
        let rows = transform(block, quant);
        for (row, samples) in rows.iter().enumerate() {
            out[row * stride + at * BLOCK_SIDE..][..BLOCK_SIDE].copy_from_slice(samples);
        }
    }
}

#[expect(clippy::inline_always, reason = "inlined code uses the caller's vector instructions")]
#[inline(always)]
fn transform(block: &CoefficientBlock, quant: &[u16; 64]) -> [[u8; 8]; 8] {
    let (first_row, others) = block.split_at(8);
    if others.iter().fold(0, |any, &value| any | value) == 0 {
        // Only the first row has values, so each column is constant after the first pass. The shift wraps at 16 bits,
        // whereas the full pass saturates.
        let column = |at: usize| dequantise(first_row[at], quant[at]) << PASS_BITS;
        if first_row[1..] == [0; 7] {
            let sample = centred(descale::<{ PASS_BITS + 3 }>(i32::from(column(0))));
            return [[sample; 8]; 8];
        }
        return second_pass(&[std::array::from_fn(column); 8]);
    }
    let mut rows: BlockRows = [[0; 8]; 8];
    for (row, (values, factors)) in
        rows.iter_mut().zip(block.as_chunks::<8>().0.iter().zip(quant.as_chunks::<8>().0))
    {
        for (out, (&value, &factor)) in row.iter_mut().zip(values.iter().zip(factors)) {
            *out = dequantise(value, factor);
        }
    }
    second_pass(&pass::<{ CONSTANT_BITS - PASS_BITS }>(&rows))
}

/// Transforms along the rows and converts the results to samples, whose centre is 128.
#[expect(clippy::inline_always, reason = "inlined code uses the caller's vector instructions")]
#[inline(always)]
fn second_pass(columns: &BlockRows) -> [[u8; 8]; 8] {
    let rows = transposed(&pass::<{ CONSTANT_BITS + PASS_BITS + 3 }>(&transposed(columns)));
    // This function and those below use loops, because `array::map` is a separate function that would not use the
    // caller's vector instructions.
    let mut samples = [[0; 8]; 8];
    for (out, row) in samples.as_flattened_mut().iter_mut().zip(rows.as_flattened()) {
        *out = centred(*row);
    }
    samples
}

#[inline]
fn dequantise(value: i16, factor: u16) -> i16 {
    value.wrapping_mul(factor.cast_signed())
}

/// Divides by 2^`BITS`, rounding half up, and saturates to 16 bits.
#[expect(clippy::inline_always, reason = "inlined code uses the caller's vector instructions")]
#[inline(always)]
fn descale<const BITS: u32>(value: i32) -> i16 {
    let rounded = value.wrapping_add(1 << (BITS - 1)) >> BITS;
    rounded.clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16
}

/// Saturates to 8 bits and shifts the centre to 128.
#[expect(clippy::inline_always, reason = "inlined code uses the caller's vector instructions")]
#[inline(always)]
fn centred(value: i16) -> u8 {
    let [sample, _] = (value.clamp(-128, 127) + 128).to_le_bytes();
    sample
}

#[expect(clippy::inline_always, reason = "inlined code uses the caller's vector instructions")]
#[inline(always)]
fn transposed(rows: &BlockRows) -> BlockRows {
    let mut columns = [[0; 8]; 8];
    for (y, row) in rows.iter().enumerate() {
        for (column, &value) in columns.iter_mut().zip(row) {
            column[y] = value;
        }
    }
    columns
}

/// Applies the one-dimensional transform to each column of `x` and removes `BITS` fractional bits. The algorithm, by
/// Loeffler, Ligtenberg and Moschytz (ICASSP 1989), has eleven multiplications; here they are regrouped into pairs of
/// products.
#[inline(always)]
fn pass<const BITS: u32>(x: &BlockRows) -> BlockRows {
    // The paper's constants, times 2^13.
    const F_0_298: i32 = 2446;
    const F_0_390: i32 = 3196;
    const F_0_541: i32 = 4433;
    const F_0_765: i32 = 6270;
    const F_0_899: i32 = 7373;
    const F_1_175: i32 = 9633;
    const F_1_501: i32 = 12299;
    const F_1_847: i32 = 15137;
    const F_1_961: i32 = 16069;
    const F_2_053: i32 = 16819;
    const F_2_562: i32 = 20995;
    const F_3_072: i32 = 25172;
    let mut out: BlockRows = [[0; 8]; 8];
    for at in 0..8 {
        let (x0, x1, x2, x3) = (x[0][at], x[1][at], x[2][at], x[3][at]);
        let (x4, x5, x6, x7) = (x[4][at], x[5][at], x[6][at], x[7][at]);
        let pair =
            |a: i16, fa: i32, b: i16, fb: i32| (i32::from(a) * fa).wrapping_add(i32::from(b) * fb);
        // Even part.
        let even2 = pair(x2, F_0_541, x6, F_0_541 - F_1_847);
        let even3 = pair(x2, F_0_541 + F_0_765, x6, F_0_541);
        let even0 = i32::from(x0.wrapping_add(x4)) << CONSTANT_BITS;
        let even1 = i32::from(x0.wrapping_sub(x4)) << CONSTANT_BITS;
        let sums = [
            even0.wrapping_add(even3),
            even1.wrapping_add(even2),
            even1.wrapping_sub(even2),
            even0.wrapping_sub(even3),
        ];
        // Odd part.
        let (z3, z4) = (x7.wrapping_add(x3), x5.wrapping_add(x1));
        let shared3 = pair(z3, F_1_175 - F_1_961, z4, F_1_175);
        let shared4 = pair(z3, F_1_175, z4, F_1_175 - F_0_390);
        let odds = [
            pair(x7, -F_0_899, x1, F_1_501 - F_0_899).wrapping_add(shared4),
            pair(x5, -F_2_562, x3, F_3_072 - F_2_562).wrapping_add(shared3),
            pair(x5, F_2_053 - F_2_562, x3, -F_2_562).wrapping_add(shared4),
            pair(x7, F_0_298 - F_0_899, x1, -F_0_899).wrapping_add(shared3),
        ];
        for row in 0..4 {
            out[row][at] = descale::<BITS>(sums[row].wrapping_add(odds[row]));
            out[7 - row][at] = descale::<BITS>(sums[row].wrapping_sub(odds[row]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::{FRAC_1_SQRT_2, PI};

    /// Computes the inverse DCT by its definition (T.81, A.3.3).
    fn by_definition(block: &CoefficientBlock, quant: &[u16; 64]) -> [[f64; 8]; 8] {
        let scale = |frequency: usize| if frequency == 0 { FRAC_1_SQRT_2 } else { 1.0 };
        let wave = |at: usize, frequency: usize| {
            ((2 * at + 1) as f64 * frequency as f64 * PI / 16.0).cos()
        };
        std::array::from_fn(|y| {
            std::array::from_fn(|x| {
                let mut sum = 0.0;
                for v in 0..8 {
                    for u in 0..8 {
                        let value = f64::from(block[v * 8 + u]) * f64::from(quant[v * 8 + u]);
                        sum += scale(u) * scale(v) * value * wave(x, u) * wave(y, v);
                    }
                }
                sum / 4.0 + 128.0
            })
        })
    }

    #[test]
    fn samples_are_within_one_of_the_definition() {
        let mut state = 7_u32;
        let mut next = |below: i32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8).cast_signed() % below
        };
        for kinds in 0..200 {
            let mut block = [0; 64];
            let values = 1 + kinds % 64;
            for _ in 0..values {
                let at = usize::try_from(next(64)).unwrap();
                block[at] = (next(40) - 20) as i16;
            }
            let quant: [u16; 64] = std::array::from_fn(|at| 1 + at as u16 / 4);
            let expected = by_definition(&block, &quant);
            for (row, wanted) in transform(&block, &quant).iter().zip(expected) {
                for (&sample, wanted) in row.iter().zip(wanted) {
                    let difference = f64::from(sample) - wanted.clamp(0.0, 255.0);
                    assert!(difference.abs() <= 1.0, "{sample} for {wanted}");
                }
            }
        }
    }

    #[test]
    fn shortcuts_equal_the_full_transform() {
        let quant = [3; 64];
        let full = |block: &CoefficientBlock| {
            let rows: BlockRows =
                std::array::from_fn(|y| std::array::from_fn(|x| block[y * 8 + x] * 3));
            second_pass(&pass::<{ CONSTANT_BITS - PASS_BITS }>(&rows))
        };
        for dc in -400..400 {
            let mut block = [0; 64];
            block[0] = dc;
            assert_eq!(transform(&block, &quant), full(&block), "{dc}");
            block[3] = dc / 2;
            assert_eq!(transform(&block, &quant), full(&block), "{dc}");
        }
    }
}
