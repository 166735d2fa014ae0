//! Parity tests of our kernels with AVX2.

suite!(CpuOps, Some(kernels(Level::Avx2, Format::F32)));
