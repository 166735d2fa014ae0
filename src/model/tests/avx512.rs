//! Parity tests of our kernels with AVX-512.

suite!(CpuOps, Some(kernels(Level::Avx512, Format::F32)));
