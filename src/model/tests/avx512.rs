//! Parity tests of our kernels with AVX-512.

suite!(CpuOps, kernels(Level::Avx512, Format::F32));
