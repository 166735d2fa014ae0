//! Helpers shared by the tests of the kernels: the instruction set levels to run, input values, and comparison of
//! results.

use super::isa::Level;

/// Returns all levels that this machine can run, including those that can be emulated. Prints the skipped and the
/// emulated levels.
pub(crate) fn levels() -> Vec<Level> {
    Level::ALL.into_iter().for_each(Level::emulate);
    let (run, skipped): (Vec<Level>, Vec<Level>) =
        Level::ALL.into_iter().partition(|level| level.is_available());
    let names =
        |levels: &[Level]| levels.iter().map(|level| level.name()).collect::<Vec<_>>().join(", ");
    let emulated: Vec<Level> = run.iter().copied().filter(|level| level.is_emulated()).collect();
    eprintln!(
        "levels: {}; skipped: {}; emulated: {}",
        names(&run),
        names(&skipped),
        names(&emulated)
    );
    run
}

/// Returns `count` pseudo-random values that depend only on `seed`. Most lie between -1 and 1, and about one in 32 lies
/// between -4 and 4.
pub(super) fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let value = (state >> 40) as f32 / 8_388_608.0 - 1.0;
            if (state >> 33).is_multiple_of(32) { value * 4.0 } else { value }
        })
        .collect()
}

/// Checks `actual` against `expected`, which holds pairs of a value and a magnitude. Each value may differ from the
/// expected value by at most `tolerance` times the magnitude. The error describes the first value that differs more.
pub(super) fn assert_all_close(
    what: &str,
    actual: &[f32],
    expected: &[(f64, f64)],
    tolerance: f64,
) -> Result<(), String> {
    assert_eq!(actual.len(), expected.len(), "{what}: numbers of values differ");
    for (index, (&actual, &(value, magnitude))) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(actual) - value).abs();
        if error.is_nan() || error > tolerance * magnitude.max(f64::from(f32::MIN_POSITIVE)) {
            return Err(format!("{what}: value {index} is {actual}, not {value}"));
        }
    }
    Ok(())
}

/// Computes the error function from its power series and its continued fraction, accurate to 1e-15 (Abramowitz and
/// Stegun 7.1.5, 7.1.14).
pub(super) fn erf(x: f64) -> f64 {
    if x.abs() < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * 2.0 / std::f64::consts::PI.sqrt();
    }
    let a = x.abs();
    let fraction = (1..100).rev().fold(0.0, |tail, n| f64::from(n) / 2.0 / (a + tail));
    let complement = (-a * a).exp() / std::f64::consts::PI.sqrt() / (a + fraction);
    (1.0 - complement).copysign(x)
}
