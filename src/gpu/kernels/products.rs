//! Products of a few rows with a weight, which is read once. Each sum over k runs in one order, whatever the number of
//! rows, so the bits of a row do not depend on its batch. Many rows are for [`Device::product`].

use super::Call;
use super::rows::Activation;
use crate::gpu::device::{Address, Device, DeviceError, Format};

/// Largest number of rows of a [`few_row_product`].
pub const MOST_ROWS: usize = 64;

/// Columns of one block.
const COLUMNS: usize = 16;

/// Arguments of [`few_row_product`].
#[derive(Debug, Clone, Copy)]
pub struct FewRowProduct {
    /// `[rows, k]`, narrow.
    pub x: Address,
    /// `[n, k]`, narrow.
    pub w: Address,
    /// `[n]`, wide.
    pub bias: Option<Address>,
    /// `[rows, n]`, wide; may be the address of `wide`.
    pub residual: Option<Address>,
    /// `[rows, n]`, wide.
    pub wide: Option<Address>,
    /// `[rows, n]`, narrow.
    pub narrow: Option<Address>,
    /// At most [`MOST_ROWS`].
    pub rows: usize,
    /// Columns of the result.
    pub n: usize,
    /// Columns of `x`.
    pub k: usize,
    /// Applied after the bias and before the residual is added.
    pub activation: Activation,
}

/// Computes `activation(x w^T + bias) + residual`.
///
/// # Errors
/// See [`DeviceError`].
pub fn few_row_product(
    device: &dyn Device,
    format: Format,
    of: FewRowProduct,
) -> Result<(), DeviceError> {
    // Matrix instructions take 8 rows. A kernel for more of them needs more registers, which few rows need not pay for.
    let name = match (format, of.rows) {
        (Format::F32, ..=MOST_ROWS) => "few_row_product",
        (_, ..=8) => "few_row_product_r8",
        (_, ..=16) => "few_row_product_r16",
        (_, ..=32) => "few_row_product_r32",
        (_, ..=MOST_ROWS) => "few_row_product_r64",
        (_, rows) => {
            return Err(DeviceError::Failed(format!(
                "{rows} rows are too many for few_row_product"
            )));
        }
    };
    if of.rows == 0 {
        return Ok(());
    }
    Call::of_format(device, name, format)
        .address(of.x)
        .address(of.w)
        .optional(of.bias)
        .optional(of.residual)
        .optional(of.wide)
        .optional(of.narrow)
        .int(of.rows)
        .int(of.n)
        .int(of.k)
        .int(of.activation as usize)
        .launch([of.n.div_ceil(COLUMNS), 1, 1], 256)
}
