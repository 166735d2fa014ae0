//! Parity tests of our kernels at the portable level, without SIMD extensions beyond SSE2 or NEON.

suite!(CpuOps, kernels(Level::Portable, Format::F32));
