//! Functions of single values and single rows: exp, erf, GELU, layer norm, log-sum-exp.

use super::context::KernelContext;
use super::disjoint::DisjointMutPtr;
use super::isa::{Isa, Kernel, Level};

/// Computes `e^x` within 2 units in the last place for -87.3 <= x <= 88. Below that range the result is 1.2e-38; NaN
/// stays NaN. Callers never pass more than 88: softmax subtracts the largest value first, and the activations clamp
/// their argument.
///
/// The result is `2^n e^r` with `n = round(x / ln 2)` and a polynomial of degree 6 for `e^r`. Source: Cephes `expf`.
#[inline(always)]
pub(super) fn exp<I: Isa>(isa: I, x: I::F) -> I::F {
    let x = isa.max(isa.splat(-87.3), x);
    let n = isa.round(isa.mul(x, isa.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts. The first part has few bits, so that its product with n is exact.
    let r = isa.mul_add(n, isa.splat(-0.693_359_4), x);
    let r = isa.mul_add(n, isa.splat(2.121_944_4e-4), r);
    let mut p = isa.splat(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = isa.mul_add(p, r, isa.splat(c));
    }
    let p = isa.add(isa.mul_add(isa.mul(p, r), r, r), isa.splat(1.0));
    isa.mul(p, isa.power_of_two(n))
}

/// Computes `2^x` within one part in 9,000 for -126 <= x <= 127; below that range the result is 1.2e-38; NaN stays NaN.
/// For probabilities that are rounded to bf16, which moves them by up to one part in 512.
///
/// The result is `2^floor(x) p(x - floor(x))` with a polynomial of degree 3 that is exact at both ends of [0, 1] and has
/// the smallest relative error in between (fitted by reweighted least squares).
#[inline(always)]
pub(super) fn rough_exp2<I: Isa>(isa: I, x: I::F) -> I::F {
    let x = isa.max(isa.splat(-126.0), x);
    let r = isa.fraction(x);
    let mut p = isa.splat(0.078_267_97);
    for c in [0.226_307_68, 0.695_424_3, 1.0] {
        p = isa.mul_add(p, r, isa.splat(c));
    }
    isa.scale_by_floor(p, x)
}

/// Computes the error function as `x P(x^2) / Q(x^2)` for -4 <= x <= 4. For other x the result is 1 or -1, to which the
/// exact value rounds in f32. The error is at most 5e-7.
///
/// Coefficients: Eigen, `generic_fast_erf_float`.
#[inline(always)]
pub(super) fn erf<I: Isa>(isa: I, x: I::F) -> I::F {
    let x = isa.max(isa.splat(-4.0), isa.min(isa.splat(4.0), x));
    let square = isa.mul(x, x);
    let mut p = isa.splat(-2.726_142_3e-10);
    for c in [
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_5e-5,
        -7.349_906e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ] {
        p = isa.mul_add(p, square, isa.splat(c));
    }
    let mut q = isa.splat(-1.456_607_2e-5);
    for c in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_474e-2] {
        q = isa.mul_add(q, square, isa.splat(c));
    }
    isa.mul(isa.mul(x, p), isa.reciprocal(q))
}

/// Exact GELU, using the error function: `x (1 + erf(x / sqrt 2)) / 2`.
#[inline(always)]
pub(super) fn gelu<I: Isa>(isa: I, x: I::F) -> I::F {
    let half = isa.mul(x, isa.splat(0.5));
    isa.mul_add(half, erf(isa, isa.mul(x, isa.splat(std::f32::consts::FRAC_1_SQRT_2))), half)
}

/// Returns the largest value and `ln(sum(exp(x)))`; the sum is accumulated in f64, block by block. Returns `None` if a
/// value is not finite.
#[must_use]
pub fn log_sum_exp(level: Level, x: &[f32]) -> Option<(f32, f64)> {
    level.run(LogSumExp { x })
}

struct LogSumExp<'a> {
    x: &'a [f32],
}

/// Number of exponentials that are summed in f32 before the sum is added to the f64 total: at most 64 per lane with
/// AVX-512.
const EXP_BLOCK: usize = 1024;

impl Kernel for LogSumExp<'_> {
    type Output = Option<(f32, f64)>;

    #[inline(always)]
    #[expect(unsafe_code, reason = "vectors of a slice")]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let x = self.x;
        let mut highest = isa.splat(f32::NEG_INFINITY);
        // `zeros` becomes NaN if a value is not finite, because zero times such a value is NaN.
        let mut zeros = isa.splat(0.0);
        let whole = x.len() / I::LANES * I::LANES;
        for start in (0..whole).step_by(I::LANES) {
            // SAFETY: the vector lies within the slice.
            let value = unsafe { isa.load(x.as_ptr().add(start)) };
            highest = isa.max(highest, value);
            zeros = isa.mul_add(value, isa.splat(0.0), zeros);
        }
        let (mut largest, mut zero) = (isa.largest(highest), isa.sum(zeros));
        for &value in &x[whole..] {
            largest = largest.max(value);
            zero += value * 0.0;
        }
        if zero.is_nan() {
            return None;
        }
        let shift = isa.splat(-largest);
        let mut total = 0.0f64;
        for block in (0..whole).step_by(EXP_BLOCK) {
            let mut sum = isa.splat(0.0);
            for start in (block..(block + EXP_BLOCK).min(whole)).step_by(I::LANES) {
                // SAFETY: the vector lies within the slice.
                let value = unsafe { isa.load(x.as_ptr().add(start)) };
                sum = isa.add(sum, exp(isa, isa.add(value, shift)));
            }
            total += f64::from(isa.sum(sum));
        }
        for &value in &x[whole..] {
            total += f64::from(value - largest).exp();
        }
        Some((largest, f64::from(largest) + total.ln()))
    }
}

/// Number of rows of a layer norm that one part of a job computes.
const ROWS_A_PART: usize = 16;

/// Parameters of a layer norm.
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm<'a> {
    /// Factor per column.
    pub weight: &'a [f32],
    /// Summand per column.
    pub bias: &'a [f32],
    /// Added to the variance, so that a constant row does not lead to a division by zero.
    pub eps: f32,
}

/// Computes the layer norm of each row: `out = (x - mean) / sqrt(variance + eps) * weight + bias`. `x` and `out` are
/// `[rows, width]`.
///
/// # Panics
/// When the lengths do not match.
pub fn layer_norm(context: &mut KernelContext, x: &[f32], norm: LayerNorm<'_>, out: &mut [f32]) {
    let level = context.level;
    let width = norm.weight.len();
    assert!(
        width == norm.bias.len() && x.len() == out.len() && x.len().is_multiple_of(width),
        "all are [rows, width]"
    );
    let rows = x.len() / width;
    let to = DisjointMutPtr(out.as_mut_ptr());
    context.pool.run(rows.div_ceil(ROWS_A_PART), &|part| {
        let first = part * ROWS_A_PART;
        let last = (first + ROWS_A_PART).min(rows);
        #[expect(unsafe_code, reason = "a slice of rows that only this part writes")]
        // SAFETY: only this part writes the rows `first..last`.
        let out = unsafe {
            std::slice::from_raw_parts_mut(to.pointer().add(first * width), (last - first) * width)
        };
        level.run(NormRows { x: &x[first * width..last * width], norm, out });
    });
}

struct NormRows<'a> {
    x: &'a [f32],
    norm: LayerNorm<'a>,
    out: &'a mut [f32],
}

impl Kernel for NormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let width = self.norm.weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            norm_row(isa, x, self.norm, out);
        }
    }
}

#[inline(always)]
#[expect(unsafe_code, reason = "vectors of slices of one length")]
pub(in crate::kernels) fn norm_row<I: Isa>(
    isa: I,
    x: &[f32],
    norm: LayerNorm<'_>,
    out: &mut [f32],
) {
    let width = x.len();
    let whole = width / I::LANES * I::LANES;
    let mean = sum_of(isa, x, |_, x| x, |x| x) / width as f32;
    let means = isa.splat(mean);
    let squares = sum_of(
        isa,
        x,
        |isa, x| {
            let d = isa.sub(x, means);
            isa.mul(d, d)
        },
        |x| (x - mean) * (x - mean),
    );
    let inverse = 1.0 / (squares / width as f32 + norm.eps).sqrt();
    let inverses = isa.splat(inverse);
    for start in (0..whole).step_by(I::LANES) {
        // SAFETY: all four slices have `width` values.
        unsafe {
            let centred = isa.mul(isa.sub(isa.load(x.as_ptr().add(start)), means), inverses);
            let weight = isa.load(norm.weight.as_ptr().add(start));
            let bias = isa.load(norm.bias.as_ptr().add(start));
            isa.store(out.as_mut_ptr().add(start), isa.mul_add(centred, weight, bias));
        }
    }
    for i in whole..width {
        out[i] = (x[i] - mean) * inverse * norm.weight[i] + norm.bias[i];
    }
}

/// Applies a function to all values and returns the sum of the results, added in a fixed order. `vector` computes the
/// function for whole vectors, `single` for the remaining values.
#[inline(always)]
#[expect(unsafe_code, reason = "vectors of a slice")]
fn sum_of<I: Isa>(
    isa: I,
    x: &[f32],
    vector: impl Fn(I, I::F) -> I::F,
    single: impl Fn(f32) -> f32,
) -> f32 {
    let mut sums = [isa.splat(0.0); 4];
    let whole = x.len() / I::LANES;
    for index in 0..whole {
        // SAFETY: the vector lies within the slice.
        let value = unsafe { isa.load(x.as_ptr().add(index * I::LANES)) };
        sums[index % 4] = isa.add(sums[index % 4], vector(isa, value));
    }
    let sum = isa.sum(isa.add(isa.add(sums[0], sums[1]), isa.add(sums[2], sums[3])));
    x[whole * I::LANES..].iter().fold(sum, |sum, x| sum + single(*x))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_all_close, erf as exact_erf, levels, values};
    use super::*;

    /// The function that [`map`] applies to a whole slice.
    #[derive(Clone, Copy, Debug)]
    enum Function {
        Exp,
        RoughExp2,
        Erf,
        Gelu,
    }

    struct Map<'a> {
        function: Function,
        x: &'a [f32],
        out: &'a mut [f32],
    }

    impl Kernel for Map<'_> {
        type Output = ();

        #[inline(always)]
        #[expect(unsafe_code, reason = "vectors of slices of one length")]
        fn run<I: Isa>(self, isa: I) {
            let chunks = self.x.chunks_exact(I::LANES).zip(self.out.chunks_exact_mut(I::LANES));
            for (x, out) in chunks {
                // SAFETY: both chunks are as long as a vector.
                unsafe {
                    let x = isa.load(x.as_ptr());
                    let y = match self.function {
                        Function::Exp => exp(isa, x),
                        Function::RoughExp2 => rough_exp2(isa, x),
                        Function::Erf => erf(isa, x),
                        Function::Gelu => gelu(isa, x),
                    };
                    isa.store(out.as_mut_ptr(), y);
                }
            }
        }
    }

    fn map(level: Level, function: Function, x: &[f32], out: &mut [f32]) {
        level.run(Map { function, x, out });
    }

    /// Returns `count` evenly spaced values from `low` to `high`; `count` must be a multiple of the vector length.
    fn grid(low: f32, high: f32, count: u16) -> Vec<f32> {
        (0..count).map(|i| low + (high - low) * f32::from(i) / f32::from(count - 1)).collect()
    }

    fn check(function: Function, x: &[f32], exact: impl Fn(f64) -> (f64, f64), tolerance: f64) {
        let expected: Vec<_> = x.iter().map(|&x| exact(f64::from(x))).collect();
        for level in levels() {
            let mut out = vec![f32::NAN; x.len()];
            map(level, function, x, &mut out);
            let what = format!("{level} {function:?}");
            assert_all_close(&what, &out, &expected, tolerance).unwrap();
        }
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let x = grid(-87.0, 88.0, 32_000);
        check(Function::Exp, &x, |x| (x.exp(), x.exp()), 2.0 * f64::from(f32::EPSILON));
    }

    #[test]
    fn exp_of_minus_infinity_is_almost_zero_and_keeps_what_is_not_a_number() {
        for level in levels() {
            let mut out = vec![0.0; 16];
            let mut x = vec![f32::NEG_INFINITY; 16];
            x[3] = f32::NAN;
            map(level, Function::Exp, &x, &mut out);
            assert!(out[0] >= 0.0 && out[0] < 1.3e-38, "{level}: {}", out[0]);
            assert!(out[3].is_nan(), "{level}: {out:?}");
        }
    }

    #[test]
    fn rough_exp2_is_within_what_it_promises() {
        let x = grid(-126.0, 0.0, 32_000);
        check(Function::RoughExp2, &x, |x| (x.exp2(), x.exp2()), 1.0 / 9_000.0);
        // Whole numbers and the values next to them, where the polynomial starts and ends.
        let near = |n: i16| [f32::from(n).next_down(), f32::from(n), f32::from(n).next_up()];
        let x: Vec<f32> = (-125..=127).flat_map(near).chain([0.5; 9]).collect();
        check(Function::RoughExp2, &x, |x| (x.exp2(), x.exp2()), 1.0 / 9_000.0);
        for level in levels() {
            let mut out = vec![0.0; 16];
            let mut x = vec![f32::NEG_INFINITY; 16];
            (x[3], x[4], x[5]) = (f32::NAN, -1e30, 0.0);
            map(level, Function::RoughExp2, &x, &mut out);
            assert!(out[0] >= 0.0 && out[0] < 1.3e-38, "{level}: {}", out[0]);
            assert!(out[4] >= 0.0 && out[4] < 1.3e-38, "{level}: {}", out[4]);
            assert!(out[3].is_nan(), "{level}: {out:?}");
            assert_eq!(out[5].to_bits(), 1.0f32.to_bits(), "{level}");
        }
    }

    #[test]
    fn erf_and_gelu_are_within_what_they_promise() {
        let x = grid(-6.0, 6.0, 32_000);
        check(Function::Erf, &x, |x| (exact_erf(x), 1.0), 5e-7);
        let gelu =
            |x: f64| (x * (1.0 + exact_erf(x * std::f64::consts::FRAC_1_SQRT_2)) / 2.0, x.abs());
        check(Function::Gelu, &x, gelu, 5e-7);
    }

    #[test]
    fn log_sum_exp_equals_the_slow_twin_and_refuses_what_is_not_finite() {
        for level in levels() {
            for length in [1, 3, 16, 17, 1023, 1024, 1025, 30_524] {
                let mut x: Vec<f32> = values(length, 5).iter().map(|x| x * 20.0 - 300.0).collect();
                let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = x.iter().map(|&x| f64::from(x - largest).exp()).sum();
                let (found, actual) = log_sum_exp(level, &x).unwrap();
                let expected = f64::from(largest) + sum.ln();
                assert!((actual - expected).abs() < 1e-6, "{level} {length}: {actual} {expected}");
                assert!((found - largest).abs() < f32::EPSILON, "{level} {length}");
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    x[length / 2] = bad;
                    assert_eq!(log_sum_exp(level, &x), None, "{level} {length} {bad}");
                }
            }
        }
    }

    #[test]
    fn layer_norm_equals_the_slow_twin_for_any_width() {
        let mut failures = Vec::new();
        for level in levels() {
            for width in [1, 3, 4, 7, 8, 15, 16, 17, 63, 64, 65, 192, 768, 1024] {
                for rows in [1, ROWS_A_PART, ROWS_A_PART + 1] {
                    let mut x = values(rows * width, 1);
                    // The values are shifted so that their mean is far from zero. A variance computed as E[x^2] -
                    // E[x]^2 would then be wrong by one part in a thousand.
                    x[..width].iter_mut().for_each(|x| *x += 100.0);
                    let (weight, bias) = (values(width, 2), values(width, 3));
                    let mut out = vec![f32::NAN; x.len()];
                    let mut context = KernelContext::new(level, 2);
                    let norm = LayerNorm { weight: &weight, bias: &bias, eps: 1e-5 };
                    layer_norm(&mut context, &x, norm, &mut out);
                    let expected: Vec<_> =
                        x.chunks(width).flat_map(|row| exact_norm(row, &weight, &bias)).collect();
                    let what = format!("{level} {rows}x{width}");
                    failures.extend(assert_all_close(&what, &out, &expected, 8e-5).err());
                }
            }
        }
        assert!(failures.is_empty(), "{failures:#?}");
    }

    fn exact_norm(row: &[f32], weight: &[f32], bias: &[f32]) -> Vec<(f64, f64)> {
        let count = row.len() as f64;
        let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let squares = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>();
        let inverse = 1.0 / (squares / count + 1e-5).sqrt();
        let norm = |((x, w), b): ((&f32, &f32), &f32)| {
            let value = (f64::from(*x) - mean) * inverse * f64::from(*w) + f64::from(*b);
            (value, 1.0 + value.abs())
        };
        row.iter().zip(weight).zip(bias).map(norm).collect()
    }

    #[test]
    fn a_row_that_is_not_finite_comes_out_so_and_spoils_no_other() {
        for level in levels() {
            let mut x = values(3 * 40, 4);
            x[40 + 39] = f32::INFINITY;
            let ones = vec![1.0; 40];
            let mut out = vec![0.0; x.len()];
            let norm = LayerNorm { weight: &ones, bias: &ones, eps: 1e-5 };
            layer_norm(&mut KernelContext::new(level, 1), &x, norm, &mut out);
            let finite: Vec<bool> =
                out.chunks(40).map(|row| row.iter().all(|x| x.is_finite())).collect();
            assert_eq!(finite, [true, false, true], "{level}");
        }
    }
}
