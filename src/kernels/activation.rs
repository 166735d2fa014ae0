//! Activation functions of the feed-forward layers, written for one vector. [`apply`] runs a function over all values
//! of a finished product.
//!
//! GELU, the activation of every official checkpoint, is fused into the matrix product instead (`gemm::epilogue`). The
//! other activations are not fused, because each would need another compiled copy of every microkernel.

use super::context::KernelContext;
use super::disjoint::DisjointMutPtr;
use super::isa::{Isa, Kernel, MOST_COLUMNS};
use super::pointwise::exp;

/// The activation that a feed-forward layer applies to its product. Sources: transformers `activations.py`, PyTorch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Exact GELU, using the error function: `x (1 + erf(x / sqrt 2)) / 2`.
    Gelu,
    /// The tanh approximation of GELU: `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`. Differs from
    /// [`Activation::Gelu`] by up to 5e-4.
    GeluTanh,
    /// The sigmoid approximation of GELU: `x sigmoid(1.702 x)`.
    QuickGelu,
    /// The rectified linear unit: `max(x, 0)`.
    Relu,
    /// The sigmoid linear unit (swish): `x sigmoid(x)`.
    Silu,
    /// The hyperbolic tangent of x: `tanh(x)`.
    Tanh,
}

/// Computes `x sigmoid(slope x)`; NaN stays NaN.
///
/// For x below `-87 / slope`, the function returns its value at `-87 / slope`, because `exp` would overflow above 88.
/// Both this value and the exact one are closer to 0 than 2e-36.
#[inline(always)]
fn scaled_silu<I: Isa>(isa: I, x: I::F, slope: f32) -> I::F {
    let x = isa.max(isa.splat(-87.0 / slope), x);
    let power = exp(isa, isa.mul(x, isa.splat(-slope)));
    isa.mul(x, isa.reciprocal(isa.add(isa.splat(1.0), power)))
}

#[inline(always)]
fn silu<I: Isa>(isa: I, x: I::F) -> I::F {
    scaled_silu(isa, x, 1.0)
}

#[inline(always)]
fn quick_gelu<I: Isa>(isa: I, x: I::F) -> I::F {
    scaled_silu(isa, x, 1.702)
}

/// Computes the tanh approximation of GELU as `x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))`, because
/// `(1 + tanh(u)) / 2` is `sigmoid(2 u)`.
///
/// x is clamped to at least -9.98, because for smaller x the exponent would exceed 87. For these x, the exact value is
/// within 2e-36 of 0.
#[inline(always)]
fn gelu_tanh<I: Isa>(isa: I, x: I::F) -> I::F {
    // `LINEAR` is 2 sqrt(2 / pi), and `CUBIC` is 0.044715 times `LINEAR`.
    const LINEAR: f32 = 1.595_769;
    const CUBIC: f32 = 0.071_354_82;
    let x = isa.max(isa.splat(-9.98), x);
    let factor = isa.mul_add(isa.mul(x, x), isa.splat(-CUBIC), isa.splat(-LINEAR));
    let power = exp(isa, isa.mul(x, factor));
    isa.mul(x, isa.reciprocal(isa.add(isa.splat(1.0), power)))
}

/// Returns 0 for negative values; NaN stays NaN.
#[inline(always)]
fn relu<I: Isa>(isa: I, x: I::F) -> I::F {
    isa.max(isa.splat(0.0), x)
}

/// Computes tanh as `x P(x^2) / Q(x^2)`. For |x| above 7.9 the result is constant, because |tanh x| is 1 in f32 there.
/// The error is at most 5e-7 of the larger of |x| and 1.
///
/// Coefficients: Eigen, `ptanh_float`.
#[inline(always)]
fn tanh<I: Isa>(isa: I, x: I::F) -> I::F {
    let x = isa.max(isa.splat(-7.905_311), isa.min(isa.splat(7.905_311), x));
    let square = isa.mul(x, x);
    let mut p = isa.splat(-2.760_768_5e-16);
    for c in [
        2.000_188e-13,
        -8.604_672e-11,
        5.122_297e-8,
        1.485_722_4e-5,
        6.372_619_3e-4,
        4.893_524_6e-3,
    ] {
        p = isa.mul_add(p, square, isa.splat(c));
    }
    let mut q = isa.splat(1.198_258_4e-6);
    for c in [1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3] {
        q = isa.mul_add(q, square, isa.splat(c));
    }
    isa.mul(isa.mul(x, p), isa.reciprocal(q))
}

/// Number of values that one part of a job processes: 64 KB, which stay in a first- or second-level cache.
const VALUES_A_PART: usize = 16 * 1024;

/// Applies the activation to every value. A value's result does not depend on its position.
pub fn apply(context: &mut KernelContext, activation: Activation, values: &mut [f32]) {
    let level = context.level;
    let length = values.len();
    let all = DisjointMutPtr(values.as_mut_ptr());
    context.pool.run(length.div_ceil(VALUES_A_PART), &|part| {
        let start = part * VALUES_A_PART;
        #[expect(unsafe_code, reason = "a slice of values that only this part uses")]
        // SAFETY: only this part uses the values from `start` up to the next part's first value.
        let values = unsafe {
            std::slice::from_raw_parts_mut(
                all.pointer().add(start),
                VALUES_A_PART.min(length - start),
            )
        };
        level.run(ApplyPart { activation, values });
    });
}

struct ApplyPart<'a> {
    activation: Activation,
    values: &'a mut [f32],
}

impl Kernel for ApplyPart<'_> {
    type Output = ();

    /// The last values are padded to a whole vector, so that the result for a value does not depend on its position in
    /// the slice, to the bit.
    #[inline(always)]
    #[expect(unsafe_code, reason = "vectors of a slice")]
    fn run<I: Isa>(self, isa: I) {
        let Self { activation, values } = self;
        let mut vectors = values.chunks_exact_mut(I::LANES);
        for vector in &mut vectors {
            // SAFETY: the chunk is as long as a vector.
            unsafe {
                let value = isa.load(vector.as_ptr());
                isa.store(vector.as_mut_ptr(), apply_to_vector(isa, activation, value));
            }
        }
        let rest = vectors.into_remainder();
        if !rest.is_empty() {
            let mut padded = [0.0f32; MOST_COLUMNS];
            padded[..rest.len()].copy_from_slice(rest);
            // SAFETY: the array is at least as long as a vector.
            unsafe {
                let value = isa.load(padded.as_ptr());
                isa.store(padded.as_mut_ptr(), apply_to_vector(isa, activation, value));
            }
            rest.copy_from_slice(&padded[..rest.len()]);
        }
    }
}

/// Selects the function for each vector. If the function were passed as an argument instead, it would be called through
/// a shim that is not compiled for the level's instructions: 443,000 values would take 5.7 ms instead of 0.15 ms
/// (AVX-512, one core, 2026-11).
#[inline(always)]
fn apply_to_vector<I: Isa>(isa: I, activation: Activation, x: I::F) -> I::F {
    match activation {
        Activation::Gelu => super::pointwise::gelu(isa, x),
        Activation::GeluTanh => gelu_tanh(isa, x),
        Activation::QuickGelu => quick_gelu(isa, x),
        Activation::Relu => relu(isa, x),
        Activation::Silu => silu(isa, x),
        Activation::Tanh => tanh(isa, x),
    }
}

#[cfg(test)]
mod tests {
    use super::super::isa::Level;
    use super::super::testing::{assert_all_close, erf, levels};
    use super::*;

    const ALL: [Activation; 6] = [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Relu,
        Activation::Silu,
        Activation::Tanh,
    ];

    /// Slow reference implementation, in f64.
    fn exact(activation: Activation, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match activation {
            Activation::Gelu => x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)) / 2.0,
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                x * (1.0 + inner.tanh()) / 2.0
            }
            Activation::QuickGelu => x * sigmoid(1.702 * x),
            Activation::Relu => x.max(0.0),
            Activation::Silu => x * sigmoid(x),
            Activation::Tanh => x.tanh(),
        }
    }

    fn applied(level: Level, activation: Activation, x: &[f32]) -> Vec<f32> {
        let mut values = x.to_vec();
        apply(&mut KernelContext::new(level, 2), activation, &mut values);
        values
    }

    /// Errors are relative to |x|, because the magnitude of each of these functions is at most |x|.
    #[test]
    fn every_activation_is_within_five_ten_millionths_of_its_slow_twin() {
        let grid = |range: f32| (-20_000..=20_000i16).map(move |i| range * f32::from(i) / 20_000.0);
        let x: Vec<f32> = grid(12.0).chain(grid(100.0)).chain(grid(1e-3)).collect();
        let mut failures = Vec::new();
        for level in levels() {
            for activation in ALL {
                let expected = |&x: &f32| (exact(activation, f64::from(x)), f64::from(x.abs()));
                let expected: Vec<(f64, f64)> = x.iter().map(expected).collect();
                let actual = applied(level, activation, &x);
                let what = format!("{level} {activation:?}");
                failures.extend(assert_all_close(&what, &actual, &expected, 5e-7).err());
            }
        }
        assert!(failures.is_empty(), "{failures:#?}");
    }

    #[test]
    fn infinities_large_and_tiny_values_give_the_limits_and_nan_stays_nan() {
        for level in levels() {
            for activation in ALL {
                let what = format!("{level} {activation:?}");
                let at = |x: f32| applied(level, activation, &[x])[0];
                let highest = if activation == Activation::Tanh { 1.0 } else { f32::INFINITY };
                for (x, expected) in [(f32::INFINITY, highest), (f32::MAX, highest.min(f32::MAX))] {
                    let y = at(x);
                    let equal = y.to_bits() == expected.to_bits();
                    assert!(equal || (y / expected - 1.0).abs() < 5e-7, "{what} of {x}: {y}");
                }
                // Exact GELU is exempt, because it gives NaN for -infinity. PyTorch also gives NaN where its code
                // multiplies infinity by zero.
                let lowest = if activation == Activation::Tanh { -1.0 } else { 0.0 };
                for x in [f32::NEG_INFINITY, f32::MIN, -1e20, -1e4] {
                    let y = at(x);
                    let gelu = activation == Activation::Gelu;
                    assert!(gelu || (y - lowest).abs() < 5e-7, "{what} of {x}: {y}");
                }
                // Subnormal numbers may be flushed to zero.
                for x in [1e-40f32, -1e-40, f32::from_bits(1), 1e-37, -1e-37, 0.0] {
                    let y = f64::from(at(x));
                    let error = (y - exact(activation, f64::from(x))).abs();
                    assert!(error <= 1.2e-38, "{what} of {x}: {y}");
                }
                assert!(at(f32::NAN).is_nan(), "{what} of NaN");
            }
        }
    }

    #[test]
    fn a_value_has_the_same_bits_at_any_place() {
        let x: Vec<f32> = (0..VALUES_A_PART + 37).map(|i| (i as f32).sin() * 6.0).collect();
        for level in levels() {
            for activation in ALL {
                let all = applied(level, activation, &x);
                for place in [0, 1, 15, 16, VALUES_A_PART, x.len() - 1] {
                    let alone = applied(level, activation, &x[place..=place])[0];
                    assert_eq!(all[place].to_bits(), alone.to_bits(), "{level} {activation:?}");
                }
            }
        }
    }

    #[test]
    fn gelu_by_erf_and_gelu_by_tanh_are_told_apart() {
        for level in levels() {
            let (erf, tanh) = (
                applied(level, Activation::Gelu, &[-2.5])[0],
                applied(level, Activation::GeluTanh, &[-2.5])[0],
            );
            assert!((erf - tanh).abs() > 2e-4, "{level}: {erf} {tanh}");
        }
    }
}
