//! Parity tests of our kernels at the portable level, which uses no SIMD extensions beyond SSE2 or NEON.

suite!(CpuOps, Some(kernels(Level::Portable, Format::F32)));
