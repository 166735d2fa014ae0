//! Parity of our kernels without particular instructions.

suite!(CpuOps, kernels(Level::Portable, Format::F32));
