//! Cross-attention of a few rows over encoder states `[tokens, states_width]`, without keys and values.
//!
//! With `k = W_k f + b_k`, the score of a query q is `q W_k f + q b_k`. The last term is equal for all tokens, so the
//! softmax does not depend on it, and attention runs over the states with the query `q W_k`. The value projection is
//! linear and the probabilities sum to 1, so it is applied to the weighted sum of the states.

use super::Call;
use crate::gpu::device::{Address, Device, DeviceError, Format};

/// The widest encoder states that [`folded_attention`] supports.
pub const MAX_STATES_WIDTH: usize = 1024;

/// Heads of one block of [`folded_attention`].
const GROUP_HEADS: usize = 16;

/// Parts into which [`folded_attention`] splits the tokens of a row, so that one row uses several multiprocessors. The
/// number is the same for any number of rows, because the order of the sums depends on it.
const PARTS: usize = 4;

/// Groups of heads, of all rows, whose parts fit into the scratch memory of the kernels.
const GROUPS: usize = 64;

/// The largest number of heads that [`folded_attention`] supports.
pub const MAX_HEADS: usize = GROUP_HEADS * GROUPS;

/// Dimensions of the heads and of the states that they attend to.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Number of heads.
    pub heads: usize,
    /// Values per head.
    pub head_width: usize,
    /// Width of one row of encoder states.
    pub states_width: usize,
}

/// Computes `q W_k / sqrt(head_width)` for each head. `query` is `[rows, heads x head_width]`, wide; `key` is the key
/// projection `[heads x head_width, states_width]`, narrow; `out` is `[rows, heads, states_width]`, narrow.
///
/// # Errors
/// See [`DeviceError`].
pub fn fold_query(
    device: &dyn Device,
    format: Format,
    [query, key, out]: [Address; 3],
    rows: usize,
    of: Heads,
) -> Result<(), DeviceError> {
    Call::of_format(device, "fold_query", format)
        .address(query)
        .address(key)
        .address(out)
        .int(rows)
        .int(of.heads)
        .int(of.head_width)
        .int(of.states_width)
        .float(1.0 / (of.head_width as f32).sqrt())
        .launch([of.states_width.div_ceil(128), of.heads, rows.div_ceil(8)], 128)
}

/// Computes the softmax of the folded query's products with the states of its row, and the sum of the states weighted
/// with it. `query` and `out` are `[rows, heads, states_width]`, narrow. `states` holds for each row the address of its
/// encoder states (narrow, u64) and their number of tokens (u64): `[rows, 2]`. A row of 0 tokens is padding: nothing is
/// read or written for it.
///
/// # Errors
/// [`DeviceError::Failed`] if the states are wider than [`MAX_STATES_WIDTH`], or if there are more than [`MAX_HEADS`].
pub fn folded_attention(
    device: &dyn Device,
    format: Format,
    [query, states, out]: [Address; 3],
    rows: usize,
    of: Heads,
) -> Result<(), DeviceError> {
    if of.states_width > MAX_STATES_WIDTH {
        let message =
            format!("states of {} values are wider than {MAX_STATES_WIDTH}", of.states_width);
        return Err(DeviceError::Failed(message));
    }
    let groups = of.heads.div_ceil(GROUP_HEADS);
    if groups > GROUPS {
        return Err(DeviceError::Failed(format!("{} heads are too many", of.heads)));
    }
    let rows_at_once = GROUPS / groups.max(1);
    for first in (0..rows).step_by(rows_at_once) {
        let rows = rows_at_once.min(rows - first);
        let values = first * of.heads * of.states_width * format.bytes();
        let states = states.offset(first * 2 * size_of::<u64>());
        Call::of_format(device, "folded_attention", format)
            .address(query.offset(values))
            .address(states)
            .int(of.heads)
            .int(of.states_width)
            .launch([rows, groups, PARTS], 256)?;
        Call::of_format(device, "folded_merge", format)
            .address(states)
            .address(out.offset(values))
            .int(of.heads)
            .int(of.states_width)
            .launch([rows, of.heads, 1], 256)?;
    }
    Ok(())
}

/// Applies the value projection to the result of [`folded_attention`]. `context` is `[rows, heads, states_width]`,
/// narrow; `value` is `[heads x head_width, states_width]`, narrow; `bias` is `[heads x head_width]`, wide; `out` is
/// `[rows, heads x head_width]`, narrow.
///
/// # Errors
/// See [`DeviceError`].
pub fn project_values(
    device: &dyn Device,
    format: Format,
    [context, value, bias, out]: [Address; 4],
    rows: usize,
    of: Heads,
) -> Result<(), DeviceError> {
    Call::of_format(device, "project_values", format)
        .address(context)
        .address(value)
        .address(bias)
        .address(out)
        .int(rows)
        .int(of.heads)
        .int(of.head_width)
        .int(of.states_width)
        .launch([of.heads * of.head_width.div_ceil(4), rows.div_ceil(8), 1], 128)
}
