//! Keys and values in 8-bit integers.
//!
//! Each key and each value of a head has a scale of its own: `largest magnitude / 127`. Before keys are rounded, a
//! vector close to their mean is subtracted from all of them. This changes all scores of a query by the same amount,
//! which softmax cancels, and keeps a common part of the keys from using up the range. Source: `SageAttention`,
//! arXiv 2410.02367.
//!
//! A query is rounded to bytes around 128. So the product with a key is too large by 128 times the sum of the key's
//! integers, which is subtracted from it. The scale of a value becomes part of the probability that it is multiplied by:
//! `p v = (p scale) (v / scale)`. Probabilities times scales are rounded to bytes, the largest of a row to 255.

#![expect(unsafe_code, reason = "lines and vectors by pointer")]

use super::super::aligned_buffer::LINE;
use super::super::disjoint::DisjointMutPtr;
use super::super::gemm::{Convert, Int8};
use super::super::isa::{Isa, Kernel, MOST_COLUMNS};
use super::super::rows::Rows;
use super::Heads;
use super::packed_kv::PackTokens;

/// Distance of the tokens whose keys are averaged. Any vector may be subtracted from the keys, so a sample will do.
const SAMPLED_TOKENS: usize = 16;

/// Smallest scale of a value. A value of zeros gets this scale, whose logarithm and inverse are finite.
const SMALLEST_SCALE: f32 = 1e-20;

/// Byte that stands for zero in rounded queries.
pub(super) const ZERO_BYTE: f32 = 128.0;

/// Turns four bytes around 128 into four signed integers around 0.
const TO_SIGNED: u32 = 0x8080_8080;

/// Scales of the keys and values of each head, `[heads][tokens]`, padded to whole panels.
#[derive(Debug, Default)]
pub(super) struct TokenScales {
    /// Scale of each key.
    pub(super) keys: Vec<f32>,
    /// 128 times the sum of each key's integers.
    pub(super) key_sums: Vec<i32>,
    /// Base-2 logarithm of each value's scale.
    pub(super) value_exponents: Vec<f32>,
    /// Inverse of each value's scale.
    pub(super) value_inverses: Vec<f32>,
}

/// Where the scales are written.
#[derive(Clone, Copy)]
pub(super) struct ScalesOut {
    keys: DisjointMutPtr<f32>,
    key_sums: DisjointMutPtr<i32>,
    value_exponents: DisjointMutPtr<f32>,
    value_inverses: DisjointMutPtr<f32>,
    /// Number of tokens of a head, padded to whole panels.
    tokens: usize,
}

impl TokenScales {
    /// Makes room for `tokens` tokens of each head.
    pub(super) fn prepare(&mut self, heads: usize, tokens: usize) -> ScalesOut {
        let length = heads * tokens;
        self.keys.resize(length, 0.0);
        self.key_sums.resize(length, 0);
        self.value_exponents.resize(length, 0.0);
        self.value_inverses.resize(length, 0.0);
        ScalesOut {
            keys: DisjointMutPtr(self.keys.as_mut_ptr()),
            key_sums: DisjointMutPtr(self.key_sums.as_mut_ptr()),
            value_exponents: DisjointMutPtr(self.value_exponents.as_mut_ptr()),
            value_inverses: DisjointMutPtr(self.value_inverses.as_mut_ptr()),
            tokens,
        }
    }
}

impl ScalesOut {
    /// Writes the scales of one token of one head.
    ///
    /// # Safety
    /// The token is one of the padded tokens, and no other part writes it.
    #[inline(always)]
    unsafe fn write(self, head: usize, token: usize, scale: TokenScale) {
        let at = head * self.tokens + token;
        // SAFETY: this function's contract.
        unsafe {
            *self.keys.pointer().add(at) = scale.key;
            *self.key_sums.pointer().add(at) = 128 * scale.key_sum;
            *self.value_exponents.pointer().add(at) = scale.value.log2();
            *self.value_inverses.pointer().add(at) = 1.0 / scale.value;
        }
    }
}

/// How a key and a value were rounded.
#[derive(Clone, Copy)]
struct TokenScale {
    /// Scale of the key.
    key: f32,
    /// Sum of the key's integers.
    key_sum: i32,
    /// Scale of the value.
    value: f32,
}

/// Returns the vector of `width` values that is subtracted from all keys: the mean of every 16th key.
pub(super) fn centre(keys: Rows<'_>, width: usize) -> Vec<f32> {
    let mut sums = vec![0.0; width];
    let sampled = (0..keys.rows).step_by(SAMPLED_TOKENS);
    let count = sampled.len() as f32;
    for token in sampled {
        for (sum, key) in sums.iter_mut().zip(keys.part(token, 0, width)) {
            *sum += key;
        }
    }
    sums.into_iter().map(|sum| sum / count).collect()
}

/// Packs tokens in 8-bit integers: one panel of keys per head, and as many rows of groups of the values.
pub(super) struct PackBytes<'a> {
    pub(super) tokens: PackTokens<'a>,
    /// The vector that is subtracted from all keys.
    pub(super) centre: &'a [f32],
    pub(super) scales: ScalesOut,
}

/// Number of tokens in a group of values.
const TOKENS_A_GROUP: usize = 4;

impl Kernel for PackBytes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let PackTokens { heads, values, first, last, .. } = self.tokens;
        let columns = I::LANES * I::VECTORS;
        // A key, padded with zeros to whole lines.
        let mut key = vec![0.0; heads.width.next_multiple_of(TOKENS_A_GROUP * LINE)];
        for head in 0..heads.count {
            let mut key_scales = [0.0; MOST_COLUMNS];
            let mut value_scales = [1.0; MOST_COLUMNS];
            for index in 0..last - first {
                let token = first + index;
                key_scales[index] = self.pack_key(isa, head, token, &mut key);
                let value = values.part(token, head * heads.width, heads.width);
                let largest = largest_magnitude(isa, value);
                // Not `max`, which would lose a NaN.
                let is_small = largest < 127.0 * SMALLEST_SCALE;
                value_scales[index] = if is_small { SMALLEST_SCALE } else { largest / 127.0 };
            }
            let key_sums = self.key_sums(isa, head);
            for index in 0..columns {
                let token = TokenScale {
                    key: key_scales[index],
                    key_sum: key_sums[index],
                    value: value_scales[index],
                };
                // SAFETY: only this part writes its tokens; only the last part has tokens beyond the last one, up to
                // the end of their panel.
                unsafe { self.scales.write(head, first + index, token) };
            }
            self.pack_values(isa, head, &value_scales);
        }
    }
}

impl PackBytes<'_> {
    /// Returns a pointer to the panel of a head's keys, and its number of groups per column.
    #[inline(always)]
    fn key_panel<I: Isa>(&self, head: usize) -> (*mut u32, usize) {
        let PackTokens { heads, first, to, .. } = self.tokens;
        let groups = heads.width.div_ceil(TOKENS_A_GROUP).next_multiple_of(I::GROUPS);
        (to.keys.pointer().wrapping_add(head * to.key_size + first * groups), groups)
    }

    /// Packs one key of a head, which becomes a column. Returns its scale.
    #[inline(always)]
    fn pack_key<I: Isa>(&self, isa: I, head: usize, token: usize, row: &mut [f32]) -> f32 {
        let PackTokens { heads: Heads { width, .. }, keys, first, .. } = self.tokens;
        let columns = I::LANES * I::VECTORS;
        let key = keys.part(token, head * width, width);
        for ((row, key), centre) in row.iter_mut().zip(key).zip(&self.centre[head * width..]) {
            *row = key - centre;
        }
        let scale = largest_magnitude(isa, &row[..width]) / 127.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let (panel, groups) = self.key_panel::<I>(head);
        for (index, values) in row.chunks_exact(TOKENS_A_GROUP * LINE).enumerate() {
            let mut line = [0u32; LINE];
            // SAFETY: a chunk is a line of values. The groups lie in the column of this token.
            unsafe {
                Int8::line(isa, values.as_ptr(), line.as_mut_ptr(), (inverse, ZERO_BYTE));
                for (group, bytes) in (index * LINE..groups).zip(line) {
                    *panel.add(group * columns + token - first) = bytes ^ TO_SIGNED;
                }
            }
        }
        scale
    }

    /// Returns the sums of the integers of the keys that this part has packed.
    #[inline(always)]
    fn key_sums<I: Isa>(&self, isa: I, head: usize) -> [i32; MOST_COLUMNS] {
        let mut result = [0; MOST_COLUMNS];
        let columns = I::LANES * I::VECTORS;
        let (panel, groups) = self.key_panel::<I>(head);
        let ones = isa.splat_group(0x0101_0101);
        for lane in (0..columns).step_by(I::LANES) {
            let mut sums = isa.zero_groups();
            for group in 0..groups {
                // SAFETY: the vectors lie within the panel and within the result.
                unsafe {
                    let keys = isa.load_groups(panel.add(group * columns + lane));
                    sums = isa.dot_int8(sums, ones, keys);
                }
            }
            // SAFETY: as above.
            unsafe { isa.store_i32(result.as_mut_ptr().add(lane), sums) };
        }
        result
    }

    /// Packs the values of a head: four tokens become a row of groups.
    #[inline(always)]
    fn pack_values<I: Isa>(&self, isa: I, head: usize, scales: &[f32; MOST_COLUMNS]) {
        let PackTokens { heads: Heads { width, .. }, values, first, last, to, .. } = self.tokens;
        let columns = I::LANES * I::VECTORS;
        let padded = values.rows.div_ceil(TOKENS_A_GROUP).next_multiple_of(I::GROUPS);
        let end = if last == values.rows { padded } else { last / TOKENS_A_GROUP };
        let mut edge = [0.0f32; MOST_COLUMNS];
        for column in (0..width).step_by(columns) {
            let wide = columns.min(width - column);
            for group in first / TOKENS_A_GROUP..end {
                let mut bytes = [[ZERO_BYTE as u8; MOST_COLUMNS]; TOKENS_A_GROUP];
                for (index, bytes) in bytes.iter_mut().enumerate() {
                    let token = group * TOKENS_A_GROUP + index;
                    if token >= last {
                        continue;
                    }
                    let mut from = values.part(token, head * width + column, wide);
                    if wide < columns {
                        edge[..wide].copy_from_slice(from);
                        from = &edge[..columns];
                    }
                    let inverse = isa.splat(1.0 / scales[token - first]);
                    for lane in (0..columns).step_by(I::LANES) {
                        // SAFETY: both hold `columns` values.
                        unsafe {
                            let value = isa.mul(isa.load(from.as_ptr().add(lane)), inverse);
                            let value = isa.add(value, isa.splat(ZERO_BYTE));
                            isa.store_bytes(bytes.as_mut_ptr().add(lane), value);
                        }
                    }
                }
                let row = head * to.value_size + column * padded + group * columns;
                let [a, b, c, d] = bytes.map(|bytes| bytes.map(u32::from));
                let mut groups = [0u32; MOST_COLUMNS];
                for lane in 0..MOST_COLUMNS {
                    groups[lane] = a[lane] | b[lane] << 8 | c[lane] << 16 | d[lane] << 24;
                    groups[lane] ^= TO_SIGNED;
                }
                // SAFETY: the groups lie in the rows of these tokens, which only this part writes; the last part also
                // writes the padding.
                unsafe {
                    let to = to.values.pointer().add(row);
                    std::ptr::copy_nonoverlapping(groups.as_ptr(), to, columns);
                }
            }
        }
    }
}

/// Returns the largest magnitude of the values; NaN if one of them is not finite.
#[inline(always)]
pub(super) fn largest_magnitude<I: Isa>(isa: I, values: &[f32]) -> f32 {
    let whole = values.len() / I::LANES * I::LANES;
    let mut largest = isa.splat(0.0);
    // `zeros` becomes NaN if a value is not finite, because zero times such a value is NaN. Maxima alone could lose a
    // NaN.
    let mut zeros = isa.splat(0.0);
    for start in (0..whole).step_by(I::LANES) {
        // SAFETY: the vector lies within the values.
        let value = unsafe { isa.load(values.as_ptr().add(start)) };
        let negative = isa.sub(isa.splat(0.0), value);
        largest = isa.max(isa.max(largest, value), negative);
        zeros = isa.mul_add(value, isa.splat(0.0), zeros);
    }
    let (mut most, mut zero) = (0.0f32, isa.sum(zeros));
    for &value in &values[whole..] {
        most = most.max(value.abs());
        zero += value * 0.0;
    }
    if zero.is_nan() { f32::NAN } else { isa.largest(largest).max(most) }
}
