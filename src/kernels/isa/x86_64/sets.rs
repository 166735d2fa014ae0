//! The x86-64 instruction sets: AVX2 with FMA, AVX-512 with and without dot products, and AMX. Each is a proof type
//! with its detection and its vector operations.

#![expect(unsafe_code, reason = "intrinsics; each set's value proves that the CPU has them")]
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "eighty intrinsics"))]

use std::arch::x86_64::*;

use super::amx;
#[cfg(all(test, target_os = "linux"))]
use super::emulator;
use crate::kernels::isa::{Isa, MatrixTile};

/// Proof that the CPU supports AVX2 and FMA.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2(());

/// Proof that the CPU supports AVX-512 F, BW, DQ and VL.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512(());

/// Proof that the CPU supports [`Avx512`] and VNNI.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512Vnni(());

/// Proof that the CPU supports [`Avx512Vnni`] and BF16.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512Bf16(());

/// Proof that the CPU supports [`Avx512Bf16`] and the matrix unit: AMX TILE, BF16 and INT8.
#[derive(Debug, Clone, Copy)]
pub(super) struct Amx(());

/// Defines methods whose body is one expression of intrinsics.
macro_rules! forward {
    ($($name:ident($($a:ident: $t:ty),*) -> $r:ty = $e:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($a: $t),*) -> $r {
            // SAFETY: `self` proves that the CPU has the instructions.
            unsafe { $e }
        }
    )*};
}

/// Defines the methods that load and store by pointer.
macro_rules! memory {
    ($($name:ident($($a:ident: $t:ty),*) $(-> $r:ty)? = $e:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $name(self, $($a: $t),*) $(-> $r)? {
            // SAFETY: `self` proves that the CPU has the instructions, and the caller guarantees that the memory is
            // valid.
            unsafe { $e }
        }
    )*};
}

/// Rounds each lane to bf16, ties to even, and returns the value in the lane's upper half; NaN stays NaN. The lower
/// half has no meaning.
#[inline(always)]
unsafe fn bf16_bits_256(value: __m256) -> __m256i {
    // SAFETY: callers have proof of AVX2.
    unsafe {
        let bits = _mm256_castps_si256(value);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
        _mm256_blendv_epi8(rounded, quiet, nan)
    }
}

/// Converts groups of two bf16 values to f32: the first values, then the second ones.
#[inline(always)]
unsafe fn widen_256(groups: __m256i) -> [__m256; 2] {
    // SAFETY: callers have proof of AVX2.
    unsafe {
        let upper = _mm256_and_si256(groups, _mm256_set1_epi32(0xffff_0000_u32 as i32));
        [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(groups)), _mm256_castsi256_ps(upper)]
    }
}

/// Like [`bf16_bits_256`], for vectors of AVX-512.
#[inline(always)]
unsafe fn bf16_bits_512(value: __m512) -> __m512i {
    // SAFETY: callers have proof of AVX-512.
    unsafe {
        let bits = _mm512_castps_si512(value);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
        _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value), quiet)
    }
}

// SAFETY: only `detect` constructs a value.
unsafe impl Isa for Avx2 {
    #[inline]
    fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }

    type F = __m256;
    type G = __m256i;
    const LANES: usize = 8;
    // A tile needs 6 x 2 accumulators, 2 registers for the weights and 1 for the rows: 15 of 16 registers.
    const ROWS: usize = 6;
    const VECTORS: usize = 2;
    const WIDENS_BF16: bool = true;

    forward! {
        prefetch(from: *const u32) -> () = _mm_prefetch::<_MM_HINT_T0>(from.cast());
        splat(value: f32) -> __m256 = _mm256_set1_ps(value);
        add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
        mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
        mul_add(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
        min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
        round(a: __m256) -> __m256 = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        power_of_two(n: __m256) -> __m256 = {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        };
        sum(a: __m256) -> f32 = {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        };
        largest(a: __m256) -> f32 = {
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        };
        splat_group(group: u32) -> __m256i = _mm256_set1_epi32(group as i32);
        zero_groups() -> __m256i = _mm256_setzero_si256();
        to_f32(a: __m256i) -> __m256 = _mm256_cvtepi32_ps(a);
        mul_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_mullo_epi32(a, b);
        sub_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_sub_epi32(a, b);
        dot_f32(acc: __m256, a: __m256i, b: __m256i) -> __m256 =
            _mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), acc);
        dot_bf16(acc: __m256, a: __m256i, b: __m256i) -> __m256 = {
            let ([a0, a1], [b0, b1]) = (widen_256(a), widen_256(b));
            _mm256_fmadd_ps(a1, b1, _mm256_fmadd_ps(a0, b0, acc))
        };
        round_to_bf16(a: __m256) -> __m256 = {
            let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            _mm256_castsi256_ps(_mm256_and_si256(bf16_bits_256(a), high))
        };
        widen_bf16(groups: __m256i) -> [__m256; 2] = widen_256(groups);
        dot_int8(acc: __m256i, a: __m256i, b: __m256i) -> __m256i = {
            // `vpmaddubsw` would saturate. Products of 16-bit operands, summed in 32 bits, do not.
            let bytes = _mm256_set1_epi32(0x00ff_00ff);
            let (even, odd) = (_mm256_and_si256(a, bytes), _mm256_srli_epi16::<8>(a));
            let signed_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b));
            let even = _mm256_madd_epi16(even, signed_even);
            let odd = _mm256_madd_epi16(odd, _mm256_srai_epi16::<8>(b));
            _mm256_add_epi32(acc, _mm256_add_epi32(even, odd))
        };
        pair_bf16(even: __m256, odd: __m256) -> __m256i = {
            let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let even = _mm256_srli_epi32::<16>(bf16_bits_256(even));
            _mm256_or_si256(even, _mm256_and_si256(bf16_bits_256(odd), high))
        };
        pack_bf16(first: __m256, second: __m256) -> __m256i = {
            let first = _mm256_srli_epi32::<16>(bf16_bits_256(first));
            let second = _mm256_srli_epi32::<16>(bf16_bits_256(second));
            _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(first, second))
        };
        interleave_bf16(even: __m256i, odd: __m256i) -> [__m256i; 2] =
            [_mm256_unpacklo_epi16(even, odd), _mm256_unpackhi_epi16(even, odd)];
        interleaved_to_order(lanes: [__m256; 2]) -> [__m256; 2] = [
            _mm256_permute2f128_ps::<0x20>(lanes[0], lanes[1]),
            _mm256_permute2f128_ps::<0x31>(lanes[0], lanes[1]),
        ];
    }
    memory! {
        load(from: *const f32) -> __m256 = _mm256_loadu_ps(from);
        store(to: *mut f32, value: __m256) = _mm256_storeu_ps(to, value);
        load_groups(from: *const u32) -> __m256i = _mm256_loadu_si256(from.cast());
        store_groups(to: *mut u32, value: __m256i) = _mm256_storeu_si256(to.cast(), value);
        load_i32(from: *const i32) -> __m256i = _mm256_loadu_si256(from.cast());
        store_bytes(to: *mut u8, value: __m256) = {
            let whole = _mm256_cvtps_epi32(value);
            let words = _mm_packs_epi32(
                _mm256_castsi256_si128(whole),
                _mm256_extracti128_si256::<1>(whole),
            );
            _mm_storel_epi64(to.cast(), _mm_packus_epi16(words, words));
        };
        store_i32(to: *mut i32, value: __m256i) = _mm256_storeu_si256(to.cast(), value);
        store_sums(to: *mut f32, vectors: [__m256; 4]) = {
            let [a, b, c, d] = vectors;
            let eight = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let upper = _mm256_extractf128_ps::<1>(eight);
            _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(eight), upper));
        };
    }
}

/// Implements [`Isa`] for the AVX-512 sets, which differ only in the arguments of this macro.
macro_rules! avx512 {
    ($($set:ident($detect:expr): widens_bf16 $widens_bf16:literal, $dot_bf16:expr, $dot_int8:expr, $pair_bf16:expr, $pack_bf16:expr $(, $unit:tt)?;)*) => {$(
        // SAFETY: only `detect` constructs a value.
        unsafe impl Isa for $set {
            #[inline]
            fn detect() -> Option<Self> {
                $detect.then_some(Self(()))
            }

            type F = __m512;
            type G = __m512i;
            const LANES: usize = 16;
            avx512!(@tile $($unit)?);
            const VECTORS: usize = 2;
            const WIDENS_BF16: bool = $widens_bf16;

            forward! {
                prefetch(from: *const u32) -> () = _mm_prefetch::<_MM_HINT_T0>(from.cast());
                splat(value: f32) -> __m512 = _mm512_set1_ps(value);
                add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
                sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
                mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
                div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
                // The estimate is accurate to 14 bits, and one Newton step doubles that. A division would take as long
                // as ten multiplications.
                reciprocal(a: __m512) -> __m512 = {
                    let guess = _mm512_rcp14_ps(a);
                    let error = _mm512_fnmadd_ps(a, guess, _mm512_set1_ps(1.0));
                    _mm512_fmadd_ps(guess, error, guess)
                };
                mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
                max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
                min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
                round(a: __m512) -> __m512 =
                    _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
                power_of_two(n: __m512) -> __m512 = {
                    let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
                };
                fraction(a: __m512) -> __m512 =
                    _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(a);
                scale_by_floor(value: __m512, a: __m512) -> __m512 = _mm512_scalef_ps(value, a);
                sum(a: __m512) -> f32 = _mm512_reduce_add_ps(a);
                largest(a: __m512) -> f32 = _mm512_reduce_max_ps(a);
                splat_group(group: u32) -> __m512i = _mm512_set1_epi32(group as i32);
                zero_groups() -> __m512i = _mm512_setzero_si512();
                to_f32(a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
                mul_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_mullo_epi32(a, b);
                sub_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_sub_epi32(a, b);
                dot_f32(acc: __m512, a: __m512i, b: __m512i) -> __m512 =
                    _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), acc);
                dot_bf16(acc: __m512, a: __m512i, b: __m512i) -> __m512 = $dot_bf16(acc, a, b);
                dot_int8(acc: __m512i, a: __m512i, b: __m512i) -> __m512i = $dot_int8(acc, a, b);
                round_to_bf16(a: __m512) -> __m512 = {
                    let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
                    _mm512_castsi512_ps(_mm512_and_si512(bf16_bits_512(a), high))
                };
                widen_bf16(groups: __m512i) -> [__m512; 2] = widen_512(groups);
                pair_bf16(even: __m512, odd: __m512) -> __m512i = $pair_bf16(even, odd);
                pack_bf16(first: __m512, second: __m512) -> __m512i = $pack_bf16(first, second);
                interleave_bf16(even: __m512i, odd: __m512i) -> [__m512i; 2] =
                    [_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd)];
                interleaved_to_order(lanes: [__m512; 2]) -> [__m512; 2] = in_order_512(lanes);
            }
            memory! {
                load(from: *const f32) -> __m512 = _mm512_loadu_ps(from);
                store(to: *mut f32, value: __m512) = _mm512_storeu_ps(to, value);
                load_groups(from: *const u32) -> __m512i = _mm512_loadu_si512(from.cast());
                store_groups(to: *mut u32, value: __m512i) = _mm512_storeu_si512(to.cast(), value);
                load_i32(from: *const i32) -> __m512i = _mm512_loadu_si512(from.cast());
                store_bytes(to: *mut u8, value: __m512) = _mm_storeu_si128(
                    to.cast(),
                    _mm512_cvtusepi32_epi8(_mm512_max_epi32(
                        _mm512_cvtps_epi32(value),
                        _mm512_setzero_si512(),
                    )),
                );
                store_i32(to: *mut i32, value: __m512i) = _mm512_storeu_si512(to.cast(), value);
                store_sums(to: *mut f32, vectors: [__m512; 4]) = _mm_storeu_ps(to, sums_512(vectors));
            }
        }
    )*};
    // A tile needs 12 x 2 accumulators, 2 registers for the weights and 1 for the rows: 27 of 32 registers.
    (@tile) => {
        const ROWS: usize = 12;
    };
    (@tile bf16_unit) => {
        const ROWS: usize = 12;

        fn is_slow() -> bool {
            has_slow_bf16()
        }
    };
    // A product needs 2 x 2 tile registers for the sums, 2 for the rows and 2 for the weights: all 8 tile registers.
    (@tile matrix_unit) => {
        fn is_refused() -> bool {
            amx::Support::of_this_process() == amx::Support::Refused
        }
        #[cfg(all(test, target_os = "linux"))]
        fn is_emulated() -> bool {
            emulator::is_installed()
        }
        #[cfg(all(test, target_os = "linux"))]
        fn emulate() {
            emulator::install();
        }
        #[cfg(all(test, target_os = "linux"))]
        fn emulated_products() -> usize {
            emulator::products()
        }

        const ROWS: usize = 32;
        // A panel's block and a tile's block take 128 x 32 x 4 B = 16 KB each; L1 has 48 KB.
        const K_BLOCK: usize = 128;
        // Processors with this matrix unit have a second-level cache of 2 MB.
        const ROW_BLOCK_BYTES: usize = 1024 * 1024;
        const GROUPS: usize = 16;
        const MATRIX_UNIT: bool = true;

        #[inline(always)]
        unsafe fn matrix_tile(self, tile: MatrixTile) {
            // SAFETY: `self` proves that the CPU has the instructions, and the caller guarantees that the memory is
            // valid.
            unsafe { amx::multiply(tile) }
        }
    };
}

avx512! {
    Avx512(has_avx512()): widens_bf16 true, dot_bf16_by_f32, dot_int8_by_i16, pair_bf16_by_integers, pack_bf16_by_integers;
    Avx512Vnni(has_vnni()):
        widens_bf16 true, dot_bf16_by_f32, _mm512_dpbusd_epi32, pair_bf16_by_integers, pack_bf16_by_integers;
    Avx512Bf16(has_bf16()): widens_bf16 false, dot_bf16, _mm512_dpbusd_epi32, pair_bf16, pack_bf16, bf16_unit;
    Amx(has_bf16() && (amx::Support::of_this_process() == amx::Support::Usable || Amx::is_emulated())):
        widens_bf16 false, dot_bf16, _mm512_dpbusd_epi32, pair_bf16, pack_bf16, matrix_unit;
}

#[inline]
fn has_avx512() -> bool {
    Avx2::detect().is_some()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

#[inline]
fn has_vnni() -> bool {
    has_avx512() && is_x86_feature_detected!("avx512vnni")
}

#[inline]
fn has_bf16() -> bool {
    has_vnni() && is_x86_feature_detected!("avx512bf16")
}

/// True if the CPU multiplies bf16 slower than f32. Intel's processors since Sapphire Rapids multiply bf16 by AMX, which
/// hypervisors often hide. They start a `vdpbf16ps` only every second cycle, and two FMAs in each cycle: two cores of family
/// 6, model 207 reached 154 GFLOP/s in bf16 and 262 in f32 (2026-12-01). They are recognised by their vendor and AVX512-FP16.
fn has_slow_bf16() -> bool {
    let id = __cpuid(0);
    let vendor = [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat();
    vendor == b"GenuineIntel" && is_x86_feature_detected!("avx512fp16")
}

/// Returns the sums of four vectors.
#[inline(always)]
unsafe fn sums_512([a, b, c, d]: [__m512; 4]) -> __m128 {
    // SAFETY: only AVX-512 sets call this.
    unsafe {
        let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        let high = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
        let sixteen = _mm512_add_ps(low, high);
        let eight =
            _mm256_add_ps(_mm512_castps512_ps256(sixteen), _mm512_extractf32x8_ps::<1>(sixteen));
        _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight))
    }
}

/// Reorders blocks of four lanes: `unpacklo` and `unpackhi` of 16-bit values leave values 0 to 3 of each block of eight in
/// the first vector, and values 4 to 7 in the second.
#[inline(always)]
unsafe fn in_order_512([first, second]: [__m512; 2]) -> [__m512; 2] {
    // SAFETY: only AVX-512 sets call this.
    unsafe {
        let low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
        [_mm512_permutex2var_ps(first, low, second), _mm512_permutex2var_ps(first, high, second)]
    }
}

/// Converts groups of two bf16 values to f32: the first values, then the second ones.
#[inline(always)]
unsafe fn widen_512(groups: __m512i) -> [__m512; 2] {
    // SAFETY: only AVX-512 sets call this.
    unsafe {
        let upper = _mm512_and_si512(groups, _mm512_set1_epi32(0xffff_0000_u32 as i32));
        [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(groups)), _mm512_castsi512_ps(upper)]
    }
}

#[inline(always)]
unsafe fn dot_bf16_by_f32(acc: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: only AVX-512 sets call this.
    unsafe {
        let ([a0, a1], [b0, b1]) = (widen_512(a), widen_512(b));
        _mm512_fmadd_ps(a1, b1, _mm512_fmadd_ps(a0, b0, acc))
    }
}

#[inline(always)]
unsafe fn dot_int8_by_i16(acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: only AVX-512 sets call this.
    unsafe {
        let bytes = _mm512_set1_epi32(0x00ff_00ff);
        let (even, odd) = (_mm512_and_si512(a, bytes), _mm512_srli_epi16::<8>(a));
        let signed_even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(b));
        let even = _mm512_madd_epi16(even, signed_even);
        let odd = _mm512_madd_epi16(odd, _mm512_srai_epi16::<8>(b));
        _mm512_add_epi32(acc, _mm512_add_epi32(even, odd))
    }
}

#[inline(always)]
unsafe fn pair_bf16_by_integers(even: __m512, odd: __m512) -> __m512i {
    // SAFETY: only AVX-512 sets call this.
    unsafe {
        let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        let even = _mm512_srli_epi32::<16>(bf16_bits_512(even));
        _mm512_or_si512(even, _mm512_and_si512(bf16_bits_512(odd), high))
    }
}

#[inline(always)]
unsafe fn pack_bf16_by_integers(first: __m512, second: __m512) -> __m512i {
    // SAFETY: only AVX-512 sets call this.
    unsafe {
        let half = |x| _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bf16_bits_512(x)));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(half(first)), half(second))
    }
}

#[inline(always)]
unsafe fn dot_bf16(acc: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: callers have proof that the CPU has BF16; both types are 64 bytes without invalid bit patterns.
    unsafe {
        let (a, b) = (
            std::mem::transmute::<__m512i, __m512bh>(a),
            std::mem::transmute::<__m512i, __m512bh>(b),
        );
        _mm512_dpbf16_ps(acc, a, b)
    }
}

#[inline(always)]
unsafe fn pair_bf16(even: __m512, odd: __m512) -> __m512i {
    // SAFETY: callers have proof that the CPU has BF16; both types are 32 bytes without invalid bit patterns.
    unsafe {
        let widen = |x| {
            _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)))
        };
        _mm512_or_si512(widen(even), _mm512_slli_epi32::<16>(widen(odd)))
    }
}

#[inline(always)]
unsafe fn pack_bf16(first: __m512, second: __m512) -> __m512i {
    // SAFETY: callers have proof that the CPU has BF16; both types are 64 bytes without invalid bit patterns.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) }
}
