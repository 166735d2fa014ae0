//! Position embeddings for another image size than the checkpoint's: bicubic interpolation over the grid of patches.
//! Source: transformers `BlipVisionEmbeddings.interpolate_pos_encoding` (5.23), which calls torch's `interpolate` with
//! `mode="bicubic"` and `align_corners=False`.

use candle_core::{DType, Device, Result, Tensor};

/// Parameter of the cubic convolution kernel in torch; Pillow's is -0.5.
const A: f64 = -0.75;

/// Returns position embeddings `[1, 1 + to x to, width]` in f32, interpolated from `positions`
/// `[1, 1 + from x from, width]`. The class token comes first; its embedding stays as it is. The result is not rounded to
/// the data type of the file, because the reference converts the weights before it interpolates.
///
/// # Errors
/// When a tensor cannot be converted.
pub(super) fn interpolated(positions: &Tensor, from: usize, to: usize) -> Result<Tensor> {
    let width = positions.dim(2)?;
    let values = positions.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let (class, grid) = values.split_at(width);
    let weights: Vec<[(usize, f64); 4]> = (0..to).map(|place| taps(place, from, to)).collect();
    let mut output = Vec::with_capacity((1 + to * to) * width);
    output.extend_from_slice(class);
    let mut sums = vec![0f64; width];
    for rows in &weights {
        for columns in &weights {
            sums.fill(0.0);
            for &(row, row_weight) in rows {
                for &(column, column_weight) in columns {
                    let patch = &grid[(row * from + column) * width..][..width];
                    let weight = row_weight * column_weight;
                    for (sum, &value) in sums.iter_mut().zip(patch) {
                        *sum += weight * f64::from(value);
                    }
                }
            }
            output.extend(sums.iter().map(|&sum| sum as f32));
        }
    }
    Tensor::from_vec(output, (1, 1 + to * to, width), &Device::Cpu)
}

/// Returns the four neighbours of an output place along one axis, with their weights. Neighbours outside the grid are
/// replaced by the nearest one inside, as in torch.
#[expect(clippy::cast_sign_loss, reason = "the index is clamped to the grid")]
fn taps(place: usize, from: usize, to: usize) -> [(usize, f64); 4] {
    let position = (place as f64 + 0.5) * from as f64 / to as f64 - 0.5;
    let (whole, part) = (position.floor(), position - position.floor());
    let weights = [far(part + 1.0), near(part), near(1.0 - part), far(2.0 - part)];
    std::array::from_fn(|tap| {
        let index = (whole + tap as f64 - 1.0).clamp(0.0, (from - 1) as f64);
        (index as usize, weights[tap])
    })
}

/// The cubic convolution kernel at distances up to 1.
fn near(x: f64) -> f64 {
    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
}

/// The cubic convolution kernel at distances from 1 to 2.
fn far(x: f64) -> f64 {
    ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(side: usize, value: impl Fn(usize, usize) -> f32) -> Tensor {
        let patches = (0..side * side).map(|patch| value(patch / side, patch % side));
        let values: Vec<f32> = std::iter::once(-7.0).chain(patches).collect();
        Tensor::from_vec(values, (1, 1 + side * side, 1), &Device::Cpu).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn the_same_size_changes_nothing_and_the_class_token_never_changes() {
        let positions = grid(3, |row, column| (row * 5 + column) as f32);
        assert_eq!(values(&interpolated(&positions, 3, 3).unwrap()), values(&positions));
        let larger = values(&interpolated(&positions, 3, 8).unwrap());
        assert!((larger[0] + 7.0).abs() < f32::EPSILON);
        assert_eq!(larger.len(), 65);
    }

    #[test]
    fn a_constant_stays_constant_and_the_weights_sum_to_one() {
        let positions = grid(4, |_, _| 2.5);
        for side in [1, 2, 3, 7] {
            let resized = values(&interpolated(&positions, 4, side).unwrap());
            assert!(resized[1..].iter().all(|value| (value - 2.5).abs() < 1e-6), "{resized:?}");
        }
    }

    #[test]
    fn positions_from_a_file_in_half_precision_are_not_rounded_to_it() {
        let exact = grid(4, |row, column| (row * 3 + column) as f32 / 8.0);
        let expected = interpolated(&exact, 4, 6).unwrap();
        // These values are exact in bf16, but those in between are not.
        let from_file = interpolated(&exact.to_dtype(DType::BF16).unwrap(), 4, 6).unwrap();
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&from_file), values(&expected));
        let rounded = expected.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        assert_ne!(values(&rounded), values(&expected));
    }
}
