//! Attention over projected keys and values, and over a paged KV cache.

use super::Call;
use crate::gpu::device::{Address, Device, DeviceError, Format};

/// Query rows of one block of [`attention`].
const QUERIES: usize = 64;

/// The same for heads of more than 64 values in f32, where four threads share a query instead of two.
const QUERIES_OF_WIDE_HEADS: usize = 32;

/// Tokens in one page of the KV cache.
pub const PAGE_TOKENS: usize = 16;

/// The widest head that the kernels support.
pub const MAX_HEAD_WIDTH: usize = 128;

/// Arguments of [`attention`].
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// Queries, narrow: head h of row r starts at `r * query_stride + h * head_width`.
    pub query: Address,
    /// Keys, narrow, addressed like the queries with `kv_stride`.
    pub key: Address,
    /// Values, narrow, with `kv_stride`.
    pub value: Address,
    /// `[query rows, heads x head_width]`, narrow.
    pub out: Address,
    /// Values between rows of the queries.
    pub query_stride: usize,
    /// Values between rows of the keys and of the values.
    pub kv_stride: usize,
    /// First query row, number of query rows, first key row and number of key rows of each sequence,
    /// `[sequences, 4]`, i32.
    pub sequences: Address,
    /// Number of sequences.
    pub sequence_count: usize,
    /// The largest number of query rows of a sequence.
    pub most_queries: usize,
    /// Number of heads.
    pub heads: usize,
    /// At most [`MAX_HEAD_WIDTH`].
    pub head_width: usize,
    /// Whether query i of a sequence sees only the keys up to `i + key rows - query rows`.
    pub causal: bool,
}

/// Computes `softmax(q k^T / sqrt(head_width)) v` for each head and sequence. Probabilities are rounded to the narrow
/// format, sums are f32, and the scores are never stored. Sequences without keys give zeros.
///
/// # Errors
/// See [`DeviceError`].
pub fn attention(device: &dyn Device, format: Format, of: Attention) -> Result<(), DeviceError> {
    // The kernel is compiled for these head widths; narrower heads are filled up with zeros.
    let padded = of.head_width.next_power_of_two().max(16);
    let queries =
        if format == Format::F32 && padded > 64 { QUERIES_OF_WIDE_HEADS } else { QUERIES };
    Call::of_format(device, &format!("attention_d{padded}"), format)
        .address(of.query)
        .address(of.key)
        .address(of.value)
        .address(of.out)
        .int(of.query_stride)
        .int(of.kv_stride)
        .address(of.sequences)
        .int(of.heads)
        .int(of.head_width)
        .float(1.0 / (of.head_width as f32).sqrt())
        .int(usize::from(of.causal))
        .launch([of.most_queries.div_ceil(queries), of.heads, of.sequence_count], 128)
}

/// Arguments of [`attention_weights`].
#[derive(Debug, Clone, Copy)]
pub struct AttentionWeights {
    /// `[rows, heads x head_width]`, wide.
    pub query: Address,
    /// Narrow, `[tokens, ...]` with `key_stride` values between rows.
    pub key: Address,
    /// Values between rows of the keys.
    pub key_stride: usize,
    /// `[rows, tokens]`, wide.
    pub out: Address,
    /// Number of rows.
    pub rows: usize,
    /// Number of tokens.
    pub tokens: usize,
    /// Number of heads.
    pub heads: usize,
    /// Values per head.
    pub head_width: usize,
}

/// Computes `softmax(q k^T / sqrt(head_width))`, averaged over the heads. Only explanations use it.
///
/// # Errors
/// See [`DeviceError`].
pub fn attention_weights(
    device: &dyn Device,
    format: Format,
    of: AttentionWeights,
) -> Result<(), DeviceError> {
    Call::of_format(device, "attention_weights", format)
        .address(of.query)
        .address(of.key)
        .address(of.out)
        .int(of.key_stride)
        .int(of.tokens)
        .int(of.heads)
        .int(of.head_width)
        .float(1.0 / (of.head_width as f32).sqrt())
        .launch([of.rows, 1, 1], 256)
}

/// The KV cache of one layer, and the sequences of one step.
#[derive(Debug, Clone, Copy)]
pub struct PagedKv {
    /// The layer's part of page 0. A page holds keys `[PAGE_TOKENS, width]`, then values `[PAGE_TOKENS, width]`, narrow.
    pub pages: Address,
    /// Values between one page and the next, divided by 16.
    pub page_stride: usize,
    /// First new row, number of new rows, number of cached tokens and first entry in `tables` of each sequence,
    /// `[sequences, 4]`, i32. A sequence without new rows is padding.
    pub sequences: Address,
    /// Page numbers of all sequences, i32. Token t of a sequence is in the page of its entry `t / PAGE_TOKENS`.
    pub tables: Address,
    /// Number of sequences.
    pub sequence_count: usize,
    /// The largest number of new rows of a sequence.
    pub most_rows: usize,
    /// Number of heads.
    pub heads: usize,
    /// At most [`MAX_HEAD_WIDTH`].
    pub head_width: usize,
}

/// Writes the keys and values of new rows to their pages. `qkv` is `[rows, 3 x heads x head_width]`, wide.
///
/// # Errors
/// See [`DeviceError`].
pub fn append_kv(
    device: &dyn Device,
    format: Format,
    qkv: Address,
    kv: PagedKv,
) -> Result<(), DeviceError> {
    Call::of_format(device, "append_kv", format)
        .address(qkv)
        .address(kv.pages)
        .int(kv.page_stride)
        .address(kv.sequences)
        .address(kv.tables)
        .int(kv.heads * kv.head_width)
        .launch([kv.most_rows, kv.sequence_count, 1], 256)
}

/// Computes causal attention of new rows over the cached tokens of their sequence and over each other, after
/// [`append_kv`]. `qkv` is `[rows, 3 x heads x head_width]`, wide; `out` is `[rows, heads x head_width]`, narrow.
///
/// The keys of a row are summed in one order, whatever the other rows are.
///
/// # Errors
/// See [`DeviceError`].
pub fn paged_attention(
    device: &dyn Device,
    format: Format,
    qkv: Address,
    out: Address,
    kv: PagedKv,
) -> Result<(), DeviceError> {
    Call::of_format(device, "paged_attention", format)
        .address(qkv)
        .address(out)
        .address(kv.pages)
        .int(kv.page_stride)
        .address(kv.sequences)
        .address(kv.tables)
        .int(kv.heads)
        .int(kv.head_width)
        .float(1.0 / (kv.head_width as f32).sqrt())
        .launch([kv.heads, kv.most_rows, kv.sequence_count], 128)
}
