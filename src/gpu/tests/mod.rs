//! The kernels on the host device, compared with slow obvious twins in f64.
//!
//! `memory` and `recorder` test what stands between the operations and a device.
//!
//! Each case of a kernel runs in three orders of the GPU's threads, and all must give the same bits. Where there is no C++ compiler,
//! the tests say so on standard error and check nothing.

#![expect(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "indices are i32 on the device and usize here, and all are small"
)]

mod attention;
mod device;
mod folded;
mod memory;
mod paged;
mod products;
mod recorder;
mod rows;
mod scores;
mod scripted;
mod support;
