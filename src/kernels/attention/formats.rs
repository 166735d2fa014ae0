//! What attention does differently in each number format: how queries are packed, how sums become scores, and how
//! exponentials become probabilities.

#![expect(unsafe_code, reason = "groups and vectors by pointer")]

use super::super::gemm::{
    Bf16, Convert, ConvertPair, Dot, F32, Int8, WideBf16, place, row_to_groups,
};
use super::super::isa::{Isa, MOST_ROWS};
use super::super::pointwise::{exp, rough_exp2};
use super::PackedKv;
use super::bytes::{ZERO_BYTE, largest_magnitude};

/// A number format in which attention runs.
pub(super) trait AttentionFormat<I: Isa>: Dot<I> + Convert<I> {
    /// Packs a query into every `rows`-th cache line, starting at `to`. Returns the factor by which its rounded values
    /// must be multiplied.
    ///
    /// # Safety
    /// `to` is valid for writing these lines.
    unsafe fn pack_query(isa: I, query: &[f32], rows: usize, to: *mut u32) -> f32;
    /// Returns a vector of sums as f32.
    ///
    /// # Safety
    /// `sums` is valid for reading a vector.
    unsafe fn to_f32(isa: I, sums: *const u32) -> I::F;
    /// Replaces the sums of one query by scores. `factor` is that of the query.
    ///
    /// # Safety
    /// The scores are valid for reading and writing all panels of the memory's tokens.
    unsafe fn finish_scores(isa: I, scores: Scores, memory: HeadMemory<'_>, factor: f32);
    /// Returns the factor by which distances between scores are multiplied, given the factor for products of queries
    /// and keys.
    fn exponent_scale(scale: f32) -> f32;
    /// Returns the probability, not yet divided by a sum, of a score with this scaled distance to the largest score.
    fn probability(isa: I, distance: I::F) -> I::F;
    /// Writes the `index`-th pair of vectors of a row of probabilities, whose cache lines are `stride` groups apart.
    ///
    /// # Safety
    /// `to` is valid for writing the groups of this pair.
    unsafe fn write_pair(isa: I, pair: [I::F; 2], to: *mut u32, stride: usize, index: usize);
    /// Adds a vector of probabilities to the sum that results are divided by. `token` is the first of its tokens.
    ///
    /// # Safety
    /// The memory is that of the probabilities.
    unsafe fn add(
        isa: I,
        sum: I::F,
        probability: I::F,
        memory: HeadMemory<'_>,
        token: usize,
    ) -> I::F;
}

/// The keys and values of one head.
#[derive(Clone, Copy)]
pub(super) struct HeadMemory<'a> {
    pub(super) memory: &'a PackedKv,
    pub(super) head: usize,
}

/// The scores of one query, which are stored panel by panel.
#[derive(Clone, Copy)]
pub(super) struct Scores {
    /// Pointer to the scores of the first panel.
    pub(super) first: *mut f32,
    /// Number of values from the scores of one panel to those of the next.
    pub(super) stride: usize,
    pub(super) tokens: usize,
    pub(super) scale: f32,
}

/// Factors of the queries of a strip; see [`AttentionFormat::pack_query`].
pub(super) type QueryFactors = [f32; MOST_ROWS];

/// Implements the parts in which f32 and bf16 are alike.
macro_rules! floats {
    () => {
        #[inline(always)]
        unsafe fn pack_query(isa: I, query: &[f32], rows: usize, to: *mut u32) -> f32 {
            // SAFETY: this function's contract.
            unsafe { row_to_groups::<I, Self>(isa, query, rows, to, ()) };
            1.0
        }
        #[inline(always)]
        unsafe fn to_f32(isa: I, sums: *const u32) -> I::F {
            // SAFETY: this function's contract.
            unsafe { isa.load(sums.cast()) }
        }
        #[inline(always)]
        unsafe fn finish_scores(_: I, _: Scores, _: HeadMemory<'_>, _: f32) {}
        #[inline(always)]
        unsafe fn write_pair(isa: I, pair: [I::F; 2], to: *mut u32, stride: usize, index: usize) {
            // SAFETY: this function's contract.
            unsafe { <Self as ConvertPair<I>>::pair(isa, pair, to, stride, index) };
        }
        #[inline(always)]
        unsafe fn add(isa: I, sum: I::F, probability: I::F, _: HeadMemory<'_>, _: usize) -> I::F {
            isa.add(sum, probability)
        }
    };
}

impl<I: Isa> AttentionFormat<I> for F32 {
    floats!();
    #[inline(always)]
    fn exponent_scale(scale: f32) -> f32 {
        scale
    }
    #[inline(always)]
    fn probability(isa: I, distance: I::F) -> I::F {
        exp(isa, distance)
    }
}

/// Implements the formats whose probabilities are rounded to bf16.
macro_rules! bf16 {
    ($($format:ident)*) => {$(
        impl<I: Isa> AttentionFormat<I> for $format {
            floats!();
            #[inline(always)]
            fn exponent_scale(scale: f32) -> f32 {
                scale * std::f32::consts::LOG2_E
            }
            #[inline(always)]
            fn probability(isa: I, distance: I::F) -> I::F {
                rough_exp2(isa, distance)
            }
        }
    )*};
}
bf16!(Bf16 WideBf16);

/// Base-2 logarithm of the largest byte, to which the largest probability of a row is rounded.
const LARGEST_EXPONENT: f32 = 7.994_353_3;

impl<I: Isa> AttentionFormat<I> for Int8 {
    #[inline(always)]
    unsafe fn pack_query(isa: I, query: &[f32], rows: usize, to: *mut u32) -> f32 {
        let scale = largest_magnitude(isa, query) / 127.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        // SAFETY: this function's contract.
        unsafe { row_to_groups::<I, Self>(isa, query, rows, to, (inverse, ZERO_BYTE)) };
        scale
    }

    #[inline(always)]
    unsafe fn to_f32(isa: I, sums: *const u32) -> I::F {
        // SAFETY: this function's contract.
        isa.to_f32(unsafe { isa.load_i32(sums.cast()) })
    }

    /// Computes `(sum - 128 x key sum) x key scale x factor + log2(value scale)`: exponents of the probabilities times
    /// the scales of the values.
    #[inline(always)]
    unsafe fn finish_scores(isa: I, scores: Scores, of: HeadMemory<'_>, factor: f32) {
        let columns = I::LANES * I::VECTORS;
        let factor = isa.splat(factor * scores.scale * std::f32::consts::LOG2_E);
        let scales = &of.memory.scales;
        let first = of.head * scores.tokens.next_multiple_of(columns);
        for (panel, start) in (0..scores.tokens).step_by(columns).enumerate() {
            for lane in (0..columns).step_by(I::LANES) {
                let token = first + start + lane;
                // SAFETY: this function's contract; the scales are padded to whole panels.
                unsafe {
                    let place = scores.first.add(panel * scores.stride + lane);
                    let sum = isa.load_i32(place.cast());
                    let sum = isa.sub_i32(sum, isa.load_i32(scales.key_sums.as_ptr().add(token)));
                    let scale = isa.mul(isa.load(scales.keys.as_ptr().add(token)), factor);
                    let exponent = isa.load(scales.value_exponents.as_ptr().add(token));
                    isa.store(place, isa.mul_add(isa.to_f32(sum), scale, exponent));
                }
            }
        }
    }

    #[inline(always)]
    fn exponent_scale(_: f32) -> f32 {
        1.0
    }

    #[inline(always)]
    fn probability(isa: I, distance: I::F) -> I::F {
        rough_exp2(isa, isa.add(distance, isa.splat(LARGEST_EXPONENT)))
    }

    #[inline(always)]
    unsafe fn write_pair(isa: I, pair: [I::F; 2], to: *mut u32, stride: usize, index: usize) {
        // Two vectors of bytes take half a vector of groups.
        let group = index * I::LANES / 2;
        // SAFETY: this function's contract; both vectors lie within one line.
        unsafe {
            let to = to.add(place(group, stride)).cast::<u8>();
            isa.store_bytes(to, pair[0]);
            isa.store_bytes(to.add(I::LANES), pair[1]);
        }
    }

    #[inline(always)]
    unsafe fn add(isa: I, sum: I::F, probability: I::F, of: HeadMemory<'_>, token: usize) -> I::F {
        let columns = I::LANES * I::VECTORS;
        let first = of.head * of.memory.tokens.next_multiple_of(columns);
        // SAFETY: the inverses are padded to whole panels.
        unsafe {
            let inverse = isa.load(of.memory.scales.value_inverses.as_ptr().add(first + token));
            isa.mul_add(probability, inverse, sum)
        }
    }
}
