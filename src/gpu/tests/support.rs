//! What the tests of all kernels use: formats, buffers, random values, comparisons.

use std::fmt::Debug;

use crate::gpu::device::{Address, Device, Format};
use crate::gpu::host::{HostDevice, Order};

pub(super) const FORMATS: [Format; 3] = [Format::F32, Format::Bf16, Format::F16];

/// Returns devices with separate and with fused multiplications and additions. Bits that must not depend on something are
/// compared on both.
pub(super) fn devices() -> impl Iterator<Item = HostDevice> {
    [HostDevice::try_new(), HostDevice::try_with_fused_arithmetic()].into_iter().flatten()
}

/// Runs the same work with the GPU's threads in three orders. All results must be equal.
pub(super) fn in_every_order<R: PartialEq + Debug>(
    device: &HostDevice,
    what: impl Debug,
    run: impl Fn() -> R,
) -> R {
    let [first, second, third] =
        [Order::Forward, Order::Backward, Order::Shuffled(7)].map(|order| {
            device.set_order(order);
            run()
        });
    assert!(first == second && first == third, "the order of threads matters: {what:?}");
    first
}

/// Returns reproducible values between -1 and 1.
pub(super) fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut numbers = Numbers::new(seed);
    (0..count).map(|_| numbers.value()).collect()
}

/// A generator of reproducible numbers (xorshift64*).
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn bits(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    pub(super) fn value(&mut self) -> f32 {
        self.bits() as f32 / (1_u64 << 31) as f32 - 1.0
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        self.bits() as usize % end
    }
}

/// Rounds a value to a format, to the nearest, ties to even.
pub(super) fn round(format: Format, value: f32) -> f32 {
    // Bits of the significand, without the implicit one, and the exponent of the smallest normal value.
    let (significand, smallest) = match format {
        Format::F32 => return value,
        Format::Bf16 => (7, -126),
        Format::F16 => (10, -14),
    };
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let value = f64::from(value);
    // `log2` may be off by one next to a power of two.
    let mut exponent = value.abs().log2().floor() as i32;
    exponent += i32::from(value.abs() >= 2_f64.powi(exponent + 1));
    exponent -= i32::from(value.abs() < 2_f64.powi(exponent));
    let unit = 2_f64.powi(exponent.max(smallest) - significand);
    let rounded = (value / unit).round_ties_even() * unit;
    match format {
        Format::F16 if rounded.abs() >= 65536.0 => f32::INFINITY.copysign(rounded as f32),
        Format::F32 | Format::Bf16 | Format::F16 => rounded as f32,
    }
}

/// Returns the 16 bits of a value that a narrow format can represent.
fn to_bits(format: Format, value: f32) -> u16 {
    let bits = value.to_bits();
    match format {
        Format::F32 => unreachable!("f32 has 32 bits"),
        Format::Bf16 => (bits >> 16) as u16,
        Format::F16 => {
            let sign = (bits >> 16) as u16 & 0x8000;
            let magnitude = value.abs();
            let exponent = (bits >> 23 & 0xff) as i32 - 127;
            sign | if value.is_nan() {
                0x7e00
            } else if magnitude == f32::INFINITY {
                0x7c00
            } else if exponent < -14 {
                (magnitude * 2_f32.powi(24)) as u16
            } else {
                ((exponent + 15) as u16) << 10 | (bits >> 13 & 0x3ff) as u16
            }
        }
    }
}

/// Returns the value of 16 bits in a narrow format.
pub(super) fn from_bits(format: Format, bits: u16) -> f32 {
    match format {
        Format::F32 => unreachable!("f32 has 32 bits"),
        Format::Bf16 => f32::from_bits(u32::from(bits) << 16),
        Format::F16 => {
            let significand = f32::from(bits & 0x3ff);
            let magnitude = match bits >> 10 & 0x1f {
                0 => significand * 2_f32.powi(-24),
                31 if significand == 0.0 => f32::INFINITY,
                31 => f32::NAN,
                exponent => (1024.0 + significand) * 2_f32.powi(i32::from(exponent) - 25),
            };
            if bits & 0x8000 == 0 { magnitude } else { -magnitude }
        }
    }
}

/// Uploads values, rounded to the format. The allocation ends with them, so that overruns meet its guard.
pub(super) fn upload(device: &HostDevice, format: Format, values: &[f32]) -> Address {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|&value| match format {
            Format::F32 => value.to_le_bytes().to_vec(),
            Format::Bf16 | Format::F16 => {
                to_bits(format, round(format, value)).to_le_bytes().to_vec()
            }
        })
        .collect();
    upload_bytes(device, &bytes)
}

pub(super) fn upload_ints(device: &HostDevice, values: &[i32]) -> Address {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    upload_bytes(device, &bytes)
}

pub(super) fn upload_bytes(device: &HostDevice, bytes: &[u8]) -> Address {
    let address = device.allocate(bytes.len()).unwrap();
    device.upload(address, bytes).unwrap();
    address
}

/// Allocates room for values, all of them NaN.
pub(super) fn room(device: &HostDevice, format: Format, count: usize) -> Address {
    device.allocate(count * format.bytes()).unwrap()
}

/// Downloads values. Values that were never written are NaN.
pub(super) fn download(
    device: &HostDevice,
    format: Format,
    from: Address,
    count: usize,
) -> Vec<f32> {
    let mut bytes = vec![0; count * format.bytes()];
    device.download(from, &mut bytes).unwrap();
    match format {
        Format::F32 => bytes.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect(),
        Format::Bf16 | Format::F16 => bytes
            .chunks(2)
            .map(|c| from_bits(format, u16::from_le_bytes(c.try_into().unwrap())))
            .collect(),
    }
}

pub(super) fn download_ints(device: &HostDevice, from: Address, count: usize) -> Vec<i32> {
    download(device, Format::F32, from, count).iter().map(|x| x.to_bits().cast_signed()).collect()
}

pub(super) fn free(device: &HostDevice, addresses: impl IntoIterator<Item = Address>) {
    for address in addresses {
        device.free(address);
    }
}

/// Returns the values' bits, with which NaN equals itself.
pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Rounds all values to a format.
pub(super) fn rounded(format: Format, values: &[f32]) -> Vec<f32> {
    values.iter().map(|&value| round(format, value)).collect()
}

/// Largest relative error of rounding to a format.
pub(super) fn unit(format: Format) -> f64 {
    match format {
        Format::F32 => 2_f64.powi(-24),
        Format::Bf16 => 2_f64.powi(-8),
        Format::F16 => 2_f64.powi(-11),
    }
}

/// Checks that values differ by at most `tolerance x max(1, |expected|)`.
pub(super) fn assert_close(actual: &[f32], expected: &[f64], tolerance: f64, what: impl Debug) {
    assert_eq!(actual.len(), expected.len(), "{what:?}");
    for (i, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(actual) - expected).abs();
        // Not `error > bound`, which NaN would pass.
        assert!(
            error <= tolerance * expected.abs().max(1.0),
            "{what:?}: value {i} is {actual}, expected {expected}, tolerance {tolerance:.1e}"
        );
    }
}

/// Returns the softmax of scores.
pub(super) fn softmax(scores: &[f64]) -> Vec<f64> {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

/// Returns the error function, by its Taylor series.
pub(super) fn erf(x: f64) -> f64 {
    if x.abs() > 4.5 {
        // 1 - erf(4.5) is 2e-10.
        return 1_f64.copysign(x);
    }
    let (mut term, mut sum) = (x, 0.0);
    for n in 0..200 {
        sum += term / f64::from(2 * n + 1);
        term *= -x * x / f64::from(n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}
