//! Kernels that read and write rows: patches, embeddings, layer norm, activations, copies and conversions.

use super::{Call, THREADS};
use crate::gpu::device::{Address, Device, DeviceError, Format};

/// Values of one block of [`activate`], [`narrow`] and [`widen`]: 8 for each thread.
const VALUES: usize = 8 * THREADS as usize;

/// Arguments of [`patchify`].
#[derive(Debug, Clone, Copy)]
pub struct Patchify {
    /// Pixels, `[images, height, width, 3]`, u8.
    pub pixels: Address,
    /// Normalised value of each 8-bit value, `[3, 256]`, f32.
    pub table: Address,
    /// Patches, `[images x patches, 3 x patch x patch]`, narrow. Within a patch the order is channel, line, column.
    pub out: Address,
    /// Number of images.
    pub images: usize,
    /// Height of an image in pixels.
    pub height: usize,
    /// Width of an image in pixels.
    pub width: usize,
    /// Side of a patch in pixels. It divides height and width.
    pub patch: usize,
}

/// Cuts images into patches, and normalises their pixels.
///
/// # Errors
/// See [`DeviceError`].
pub fn patchify(device: &dyn Device, format: Format, of: Patchify) -> Result<(), DeviceError> {
    let patches = of.images * (of.height / of.patch) * (of.width / of.patch);
    Call::of_format(device, "patchify", format)
        .address(of.pixels)
        .address(of.table)
        .address(of.out)
        .int(of.height)
        .int(of.width)
        .int(of.patch)
        .launch([patches, 1, 1], THREADS)
}

/// Arguments of [`embed_patches`].
#[derive(Debug, Clone, Copy)]
pub struct EmbedPatches {
    /// Products of the patches and the convolution's kernel, `[images x (tokens - 1), width]`, wide.
    pub patches: Address,
    /// Class token, `[width]`, wide.
    pub class: Address,
    /// Position embeddings, `[tokens, width]`, wide.
    pub positions: Address,
    /// `[images x tokens, width]`, wide.
    pub out: Address,
    /// Number of images.
    pub images: usize,
    /// Tokens per image, with the class token.
    pub tokens: usize,
    /// Values per row.
    pub width: usize,
}

/// Puts the class token before the patches of each image, and adds the position embeddings.
///
/// # Errors
/// See [`DeviceError`].
pub fn embed_patches(device: &dyn Device, of: EmbedPatches) -> Result<(), DeviceError> {
    Call::new(device, "embed_patches")
        .address(of.patches)
        .address(of.class)
        .address(of.positions)
        .address(of.out)
        .int(of.tokens)
        .int(of.width)
        .launch([of.images * of.tokens, 1, 1], THREADS)
}

/// Arguments of [`embed_tokens`].
#[derive(Debug, Clone, Copy)]
pub struct EmbedTokens {
    /// Word embeddings, `[vocabulary, width]`, wide.
    pub words: Address,
    /// Position embeddings, `[positions, width]`, wide.
    pub positions: Address,
    /// Token id and position of each row, `[rows, 2]`, i32.
    pub tokens: Address,
    /// `[rows, width]`, wide.
    pub out: Address,
    /// Number of rows.
    pub rows: usize,
    /// Values per row.
    pub width: usize,
}

/// Adds the embeddings of tokens and of their positions.
///
/// # Errors
/// See [`DeviceError`].
pub fn embed_tokens(device: &dyn Device, of: EmbedTokens) -> Result<(), DeviceError> {
    Call::new(device, "embed_tokens")
        .address(of.words)
        .address(of.positions)
        .address(of.tokens)
        .address(of.out)
        .int(of.width)
        .launch([of.rows, 1, 1], THREADS)
}

/// Arguments of [`layer_norm`].
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm {
    /// `[rows, width]`, wide.
    pub x: Address,
    /// `[width]`, wide.
    pub weight: Address,
    /// `[width]`, wide.
    pub bias: Address,
    /// `[rows, width]`, wide; may be the address of `x`.
    pub wide: Option<Address>,
    /// `[rows, width]`, narrow.
    pub narrow: Option<Address>,
    /// Number of rows.
    pub rows: usize,
    /// Values per row.
    pub width: usize,
    /// Added to the variance.
    pub eps: f32,
}

/// Computes `(x - mean) / sqrt(variance + eps) * weight + bias` over each row: the mean first, then the mean of the
/// squared differences.
///
/// # Errors
/// See [`DeviceError`].
pub fn layer_norm(device: &dyn Device, format: Format, of: LayerNorm) -> Result<(), DeviceError> {
    Call::of_format(device, "layer_norm", format)
        .address(of.x)
        .address(of.weight)
        .address(of.bias)
        .optional(of.wide)
        .optional(of.narrow)
        .int(of.width)
        .float(of.eps)
        .launch([of.rows, 1, 1], THREADS)
}

/// An activation function, with the code that the kernels know it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Activation {
    /// None: the value itself.
    Identity = 0,
    /// `x (1 + erf(x / sqrt 2)) / 2`.
    Gelu = 1,
    /// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`.
    GeluTanh = 2,
    /// `x sigmoid(1.702 x)`.
    QuickGelu = 3,
    /// `max(x, 0)`.
    Relu = 4,
    /// `x sigmoid(x)`.
    Silu = 5,
    /// `tanh(x)`.
    Tanh = 6,
}

/// Applies an activation to narrow values in place. It is computed in f32.
///
/// # Errors
/// See [`DeviceError`].
pub fn activate(
    device: &dyn Device,
    format: Format,
    values: Address,
    count: usize,
    activation: Activation,
) -> Result<(), DeviceError> {
    Call::of_format(device, "activate", format)
        .address(values)
        .int(count)
        .int(activation as usize)
        .launch([count.div_ceil(VALUES), 1, 1], THREADS)
}

/// Rounds wide values to narrow ones, to the nearest, ties to even. With [`Format::F32`] it copies.
///
/// # Errors
/// See [`DeviceError`].
pub fn narrow(
    device: &dyn Device,
    format: Format,
    from: Address,
    to: Address,
    count: usize,
) -> Result<(), DeviceError> {
    convert(Call::of_format(device, "narrow", format), [from, to], count)
}

/// Converts narrow values to wide ones.
///
/// # Errors
/// See [`DeviceError`].
pub fn widen(
    device: &dyn Device,
    format: Format,
    from: Address,
    to: Address,
    count: usize,
) -> Result<(), DeviceError> {
    convert(Call::of_format(device, "widen", format), [from, to], count)
}

fn convert(call: Call<'_>, [from, to]: [Address; 2], count: usize) -> Result<(), DeviceError> {
    call.address(from).address(to).int(count).launch([count.div_ceil(VALUES), 1, 1], THREADS)
}

/// Arguments of [`gather`].
#[derive(Debug, Clone, Copy)]
pub struct Gather {
    /// Rows, each of `row_bytes`.
    pub from: Address,
    /// Indices of rows of `from`, `[rows]`, i32.
    pub indices: Address,
    /// `[rows]` rows.
    pub to: Address,
    /// Number of rows.
    pub rows: usize,
    /// An even number.
    pub row_bytes: usize,
}

/// Copies the rows with the given indices.
///
/// # Errors
/// See [`DeviceError`].
pub fn gather(device: &dyn Device, of: Gather) -> Result<(), DeviceError> {
    Call::new(device, "gather")
        .address(of.from)
        .address(of.indices)
        .address(of.to)
        .int(of.row_bytes / 2)
        .launch([of.rows, 1, 1], THREADS)
}
