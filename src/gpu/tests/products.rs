//! Products of a few rows.

use super::rows::activation;
use super::support::*;
use crate::gpu::device::{Device, DeviceError, Format};
use crate::gpu::host::HostDevice;
use crate::gpu::kernels::products::{self, FewRowProduct, MOST_ROWS};
use crate::gpu::kernels::rows::Activation;

/// Operands of a product.
struct Case {
    format: Format,
    n: usize,
    k: usize,
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Option<Vec<f32>>,
    residual: Option<Vec<f32>>,
    activation: Activation,
}

impl Case {
    fn new(format: Format, rows: usize, n: usize, k: usize) -> Self {
        // Sums of a few units, whatever their length.
        let scale = 3.0 / (k as f32).sqrt();
        let w: Vec<f32> = random(2, n * k).iter().map(|w| w * scale).collect();
        Self {
            format,
            n,
            k,
            x: rounded(format, &random(1, rows * k)),
            w: rounded(format, &w),
            bias: Some(random(3, n)),
            residual: Some(random(4, rows * n)),
            activation: Activation::Gelu,
        }
    }

    fn rows(&self) -> usize {
        self.x.len() / self.k
    }

    /// Returns the wide and the narrow result.
    fn run(&self, device: &HostDevice) -> (Vec<f32>, Vec<f32>) {
        let count = self.rows() * self.n;
        let wide = |values: &Option<Vec<f32>>| {
            values.as_ref().map(|values| upload(device, Format::F32, values))
        };
        let of = FewRowProduct {
            x: upload(device, self.format, &self.x),
            w: upload(device, self.format, &self.w),
            bias: wide(&self.bias),
            residual: wide(&self.residual),
            wide: Some(room(device, Format::F32, count)),
            narrow: Some(room(device, self.format, count)),
            rows: self.rows(),
            n: self.n,
            k: self.k,
            activation: self.activation,
        };
        products::few_row_product(device, self.format, of).unwrap();
        let result = (
            download(device, Format::F32, of.wide.unwrap(), count),
            download(device, self.format, of.narrow.unwrap(), count),
        );
        let addresses = [Some(of.x), Some(of.w), of.bias, of.residual, of.wide, of.narrow];
        addresses.into_iter().flatten().for_each(|address| device.free(address));
        result
    }

    fn check(&self, device: &HostDevice) {
        let what = (self.format, self.rows(), self.n, self.k, self.activation);
        let (wide, narrow) = in_every_order(device, what, || self.run(device));
        let mut expected = Vec::new();
        for (row, x) in self.x.chunks(self.k).enumerate() {
            for (column, w) in self.w.chunks(self.k).enumerate() {
                let sum: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[column]));
                let residual = self
                    .residual
                    .as_ref()
                    .map_or(0.0, |residual| f64::from(residual[row * self.n + column]));
                expected.push(activation(self.activation, sum + bias) + residual);
            }
        }
        assert_close(&wide, &expected, 1e-5, what);
        assert_eq!(narrow, rounded(self.format, &wide), "{what:?}");
    }
}

#[test]
fn product_agrees_with_its_twin_for_every_number_of_rows() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        for rows in [1, 2, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64] {
            Case::new(format, rows, 19, 40).check(&device);
        }
    }
}

#[test]
fn product_agrees_with_its_twin_for_every_length_of_sums() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        for k in [1, 7, 8, 9, 16, 31, 32, 33, 63, 64, 65, 255, 256, 257, 263, 264, 513, 1025] {
            Case::new(format, 3, 17, k).check(&device);
        }
    }
}

#[test]
fn product_agrees_with_its_twin_for_every_number_of_columns() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        for n in [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33] {
            Case::new(format, 9, n, 24).check(&device);
        }
    }
}

#[test]
fn product_agrees_with_its_twin_at_the_size_of_blip() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        Case::new(format, 2, 768, 768).check(&device);
        Case { activation: Activation::Identity, ..Case::new(format, 1, 768, 3072) }.check(&device);
    }
}

#[test]
fn bias_and_residual_are_optional_and_the_activation_comes_between_them() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        for of in [Activation::Identity, Activation::Relu, Activation::Tanh, Activation::QuickGelu]
        {
            let case = || Case { activation: of, ..Case::new(format, 5, 18, 48) };
            case().check(&device);
            Case { bias: None, ..case() }.check(&device);
            Case { residual: None, ..case() }.check(&device);
            Case { bias: None, residual: None, ..case() }.check(&device);
        }
    }
}

#[test]
fn result_may_replace_the_residual() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        let case = Case::new(format, 3, 20, 32);
        let address = upload(&device, Format::F32, case.residual.as_ref().unwrap());
        let of = FewRowProduct {
            x: upload(&device, format, &case.x),
            w: upload(&device, format, &case.w),
            bias: case.bias.as_ref().map(|bias| upload(&device, Format::F32, bias)),
            residual: Some(address),
            wide: Some(address),
            narrow: None,
            rows: 3,
            n: 20,
            k: 32,
            activation: case.activation,
        };
        products::few_row_product(&device, format, of).unwrap();
        assert_eq!(bits(&download(&device, Format::F32, address, 60)), bits(&case.run(&device).0));
    }
}

#[test]
fn product_of_a_row_does_not_depend_on_its_batch() {
    for device in devices() {
        for format in FORMATS {
            for k in [40, 300, 301] {
                let together = Case::new(format, 64, 18, k);
                let (all, _) = together.run(&device);
                for (first, rows) in [(0, 1), (5, 1), (63, 1), (3, 8), (10, 9), (20, 17), (20, 44)]
                {
                    let part = Case {
                        x: together.x[first * k..(first + rows) * k].to_vec(),
                        residual: Some(
                            together.residual.as_ref().unwrap()[first * 18..(first + rows) * 18]
                                .to_vec(),
                        ),
                        ..Case::new(format, 1, 18, k)
                    };
                    let (alone, _) = part.run(&device);
                    let expected = &all[first * 18..(first + rows) * 18];
                    assert_eq!(
                        bits(&alone),
                        bits(expected),
                        "{format:?}, k {k}, rows {first} + {rows}"
                    );
                }
            }
        }
    }
}

#[test]
fn too_many_rows_are_refused() {
    let Some(device) = HostDevice::try_new() else { return };
    let address = device.allocate(0).unwrap();
    let of = FewRowProduct {
        x: address,
        w: address,
        bias: None,
        residual: None,
        wide: None,
        narrow: None,
        rows: MOST_ROWS + 1,
        n: 1,
        k: 1,
        activation: Activation::Identity,
    };
    for format in FORMATS {
        let result = products::few_row_product(&device, format, of);
        assert!(matches!(result, Err(DeviceError::Failed(_))), "{format:?}: {result:?}");
    }
}
