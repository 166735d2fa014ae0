//! The levels of x86-64.

#![expect(
    unsafe_code,
    reason = "`levels!` enters functions that are compiled for more instructions"
)]

use super::sets::{Amx, Avx2, Avx512, Avx512Bf16, Avx512Vnni};
use crate::kernels::isa::level::levels;

levels! {
    /// AVX2 and FMA: eight f32 lanes.
    Avx2 { name: "avx2", features: "avx2,fma" }
    /// AVX-512 F, BW, DQ, VL: sixteen f32 lanes.
    Avx512 {
        name: "avx512",
        features: "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl",
    }
    /// AVX-512 with VNNI: dot products of four 8-bit integers.
    Avx512Vnni {
        name: "avx512-vnni",
        features: "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
    }
    /// AVX-512 with BF16: dot products of two bf16 values.
    Avx512Bf16 {
        name: "avx512-bf16",
        features: "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16",
    }
    /// AMX: multiplies tiles of bf16 or 8-bit integers, accumulating into 16 x 16 sums (f32 or i32).
    Amx {
        name: "amx",
        features: "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16",
    }
}
