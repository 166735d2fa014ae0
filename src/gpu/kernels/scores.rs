//! What is computed from logits on the device, so that the vocabulary's logits need not be copied to the host.

use super::Call;
use crate::gpu::device::{Address, Device, DeviceError};

/// Computes for each row of logits `[rows, n]`, wide: the largest value, the first index among equals (as i32) and the
/// logarithm of the sum of exponentials; `out` is `[rows, 4]` of 32-bit values, the last one 0. If a value of the row is
/// NaN or infinite, the index is -1 and the other results are 0.
///
/// # Errors
/// See [`DeviceError`].
pub fn greedy(
    device: &dyn Device,
    [logits, out]: [Address; 2],
    rows: usize,
    n: usize,
) -> Result<(), DeviceError> {
    Call::new(device, "greedy").address(logits).address(out).int(n).launch([rows, 1, 1], 256)
}

/// Finds the `k` largest of each row of logits `[rows, n]`, wide, largest first, the lower index first among equals.
/// `values` is `[rows, k]`, wide; `indices` is `[rows, k]`, i32. If the row has fewer than `k` values, the rest have the
/// index -1 and the value 0. So have all, if a value of the row is NaN or infinite.
///
/// # Errors
/// See [`DeviceError`].
pub fn top_k(
    device: &dyn Device,
    [logits, values, indices]: [Address; 3],
    rows: usize,
    n: usize,
    k: usize,
) -> Result<(), DeviceError> {
    Call::new(device, "top_k")
        .address(logits)
        .address(values)
        .address(indices)
        .int(n)
        .int(k)
        .launch([rows, 1, 1], 256)
}
