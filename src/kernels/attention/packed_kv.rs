//! Keys and values of one sequence, packed as panels of the matrix product.

use super::super::aligned_buffer::{AlignedBuffer, LINE};
use super::super::context::KernelContext;
use super::super::disjoint::DisjointMutPtr;
use super::super::gemm::{Bf16, Convert, F32, Format, Shape};
use super::super::isa::{Isa, Kernel, Level, MOST_COLUMNS};
use super::super::rows::Rows;
use super::bytes::{PackBytes, TokenScales, centre};
use super::shared::{self, PackShared};

/// Number of attention heads, and their width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Number of attention heads per layer.
    pub count: usize,
    /// Width of one head, in values.
    pub width: usize,
}

impl Heads {
    /// Returns the inverse square root of a head's width, the factor that scores are multiplied by.
    #[must_use]
    pub fn scale(self) -> f32 {
        (self.width as f32).sqrt().recip()
    }
}

/// Packed keys and values of one sequence.
#[derive(Debug)]
pub struct PackedKv {
    /// Level that the contents are packed for; meaningless while there are no tokens.
    pub(super) level: Level,
    pub(super) format: Format,
    pub(super) heads: Heads,
    pub(super) tokens: usize,
    /// True if `keys` holds a matrix that is both the keys and the values, packed as `shared` describes, and `values` is
    /// empty.
    pub(super) is_shared: bool,
    /// `[heads][panels of tokens][groups of d][columns]`.
    pub(super) keys: AlignedBuffer,
    /// `[heads][panels of d][groups of tokens][columns]`.
    pub(super) values: AlignedBuffer,
    /// How 8-bit keys and values were rounded; empty in the other formats.
    pub(super) scales: TokenScales,
}

impl Default for PackedKv {
    /// Creates a `PackedKv` without tokens.
    fn default() -> Self {
        Self {
            level: Level::Portable,
            format: Format::F32,
            heads: Heads { count: 0, width: 0 },
            tokens: 0,
            is_shared: false,
            keys: AlignedBuffer::default(),
            values: AlignedBuffer::default(),
            scales: TokenScales::default(),
        }
    }
}

impl PackedKv {
    /// Replaces the contents with the keys and values `[tokens, heads x width]` of one sequence, for attention that runs
    /// in `format`.
    ///
    /// # Panics
    /// When the numbers of keys and values differ.
    pub fn pack(
        &mut self,
        context: &mut KernelContext,
        format: Format,
        heads: Heads,
        keys: Rows<'_>,
        values: Rows<'_>,
    ) {
        assert_eq!(keys.rows, values.rows, "a token has a key and a value");
        (self.level, self.format) = (context.level, format);
        (self.heads, self.tokens, self.is_shared) = (heads, keys.rows, false);
        let level = self.level;
        let (key_size, value_size) = sizes(level, format, heads, keys.rows);
        // Columns of `keys` beyond the tokens, and columns of `values` beyond the width, may keep old contents; no
        // result depends on these columns.
        self.keys.resize(heads.count * key_size);
        self.values.resize(heads.count * value_size);
        let to = Destination {
            keys: DisjointMutPtr(self.keys.as_mut_ptr()),
            key_size,
            values: DisjointMutPtr(self.values.as_mut_ptr()),
            value_size,
        };
        let columns = Shape::of(level).columns;
        let is_8_bit = format == Format::Int8;
        let tokens = if is_8_bit { keys.rows.next_multiple_of(columns) } else { 0 };
        let scales = self.scales.prepare(heads.count, tokens);
        let centre = if is_8_bit { centre(keys, heads.count * heads.width) } else { Vec::new() };
        // A part packs a few consecutive tokens of all heads, so that it reads whole rows of the sequence.
        context.pool.run(keys.rows.div_ceil(columns), &|part| {
            let first = part * columns;
            let last = (first + columns).min(keys.rows);
            let tokens = PackTokens { format, heads, keys, values, first, last, to };
            if is_8_bit {
                level.run(PackBytes { tokens, centre: &centre, scales });
            } else {
                level.run(tokens);
            }
        });
    }

    /// Replaces the contents with `width` columns of a matrix that is both the keys and the values of one head. The
    /// matrix is stored once, except in 8-bit integers, in bf16 at levels with a matrix unit, and at the portable level.
    pub fn pack_shared(
        &mut self,
        context: &mut KernelContext,
        format: Format,
        matrix: Rows<'_>,
        width: usize,
    ) {
        if shared::is_stored_once(context.level, format) {
            self.pack_once(context, format, matrix, width);
        } else {
            self.pack(context, format, Heads { count: 1, width }, matrix, matrix);
        }
    }

    /// Like [`PackedKv::pack_shared`], but stores the matrix once at every level.
    ///
    /// # Panics
    /// When the format is that of 8-bit integers.
    pub(super) fn pack_once(
        &mut self,
        context: &mut KernelContext,
        format: Format,
        matrix: Rows<'_>,
        width: usize,
    ) {
        assert_ne!(format, Format::Int8, "8-bit keys and values are rounded differently");
        let level = context.level;
        (self.level, self.format) = (level, format);
        (self.heads, self.tokens) = (Heads { count: 1, width }, matrix.rows);
        self.is_shared = true;
        self.keys.resize(shared::size(level, format, width, matrix.rows));
        self.values.resize(0);
        let to = DisjointMutPtr(self.keys.as_mut_ptr());
        context.pool.run(matrix.rows.div_ceil(SHARED_TOKENS), &|part| {
            let first = part * SHARED_TOKENS;
            let last = (first + SHARED_TOKENS).min(matrix.rows);
            level.run(PackShared { format, matrix, width, first, last, to });
        });
    }

    /// Returns the number and width of the heads.
    #[must_use]
    pub fn heads(&self) -> Heads {
        self.heads
    }

    /// Returns the number of bytes that [`PackedKv::pack_shared`] needs for a matrix of these dimensions.
    #[must_use]
    pub fn shared_bytes(level: Level, format: Format, width: usize, tokens: usize) -> usize {
        if shared::is_stored_once(level, format) {
            return 4 * shared::size(level, format, width, tokens);
        }
        let (keys, values) = sizes(level, format, Heads { count: 1, width }, tokens);
        4 * (keys + values)
    }
}

/// Number of tokens of a shared matrix that one part of a job packs.
const SHARED_TOKENS: usize = 32;

/// Returns the sizes of one head's packed keys and of its packed values, in groups of four bytes.
fn sizes(level: Level, format: Format, heads: Heads, tokens: usize) -> (usize, usize) {
    let shape = Shape::of(level);
    (
        tokens.next_multiple_of(shape.columns) * shape.groups(format, heads.width),
        heads.width.next_multiple_of(shape.columns) * shape.groups(format, tokens),
    )
}

/// Where the packed keys and values of all heads are written.
#[derive(Clone, Copy)]
pub(super) struct Destination {
    pub(super) keys: DisjointMutPtr<u32>,
    /// Number of groups of one head's keys.
    pub(super) key_size: usize,
    pub(super) values: DisjointMutPtr<u32>,
    /// Number of groups of one head's values.
    pub(super) value_size: usize,
}

/// Packs the tokens `first..last` of all heads: one panel of keys per head, and as many rows of groups of the values.
#[derive(Clone, Copy)]
pub(super) struct PackTokens<'a> {
    pub(super) format: Format,
    pub(super) heads: Heads,
    pub(super) keys: Rows<'a>,
    pub(super) values: Rows<'a>,
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) to: Destination,
}

impl Kernel for PackTokens<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for head in 0..self.heads.count {
            match self.format {
                Format::Bf16 => {
                    self.pack_keys::<I, Bf16>(isa, head);
                    self.pack_values::<I, 2>(isa, head);
                }
                Format::F32 | Format::Int8 => {
                    self.pack_keys::<I, F32>(isa, head);
                    self.pack_values::<I, 1>(isa, head);
                }
            }
        }
    }
}

#[expect(unsafe_code, reason = "lines and vectors by pointer")]
impl PackTokens<'_> {
    /// Packs the keys of a head; each key becomes a column.
    #[inline(always)]
    fn pack_keys<I: Isa, C: Convert<I, Scaling = ()>>(&self, isa: I, head: usize) {
        let width = self.heads.width;
        let columns = I::LANES * I::VECTORS;
        let groups = width.div_ceil(C::GROUP).next_multiple_of(I::GROUPS);
        let panel = head * self.to.key_size + self.first * groups;
        let mut lines = [[0u32; LINE]; MOST_COLUMNS];
        let mut padded = [0.0f32; 4 * LINE];
        for first_group in (0..groups).step_by(LINE) {
            let first_value = first_group * C::GROUP;
            let values = (LINE * C::GROUP).min(width.saturating_sub(first_value));
            for (token, line) in (self.first..self.last).zip(&mut lines) {
                let key = self.keys.part(token, head * width + first_value, values);
                // SAFETY: both `key`, if it is whole, and `padded` hold a line of values.
                unsafe {
                    if values == LINE * C::GROUP {
                        C::line(isa, key.as_ptr(), line.as_mut_ptr(), ());
                    } else {
                        // The product also sums over this padding, so it is filled with zeros.
                        padded[..values].copy_from_slice(key);
                        padded[values..].fill(0.0);
                        C::line(isa, padded.as_ptr(), line.as_mut_ptr(), ());
                    }
                }
            }
            for group in 0..LINE.min(groups - first_group) {
                let row = panel + (first_group + group) * columns;
                for (column, line) in lines.iter().enumerate().take(self.last - self.first) {
                    // SAFETY: the group lies in the panel of these tokens, which only this part writes.
                    unsafe { *self.to.keys.pointer().add(row + column) = line[group] };
                }
            }
        }
    }

    /// Packs the values of a head without transposing them: `TOKENS` tokens become a row of groups.
    #[inline(always)]
    fn pack_values<I: Isa, const TOKENS: usize>(&self, isa: I, head: usize) {
        let (width, tokens) = (self.heads.width, self.values.rows);
        let columns = I::LANES * I::VECTORS;
        let padded = tokens.div_ceil(TOKENS).next_multiple_of(I::GROUPS);
        let is_last = self.last == tokens;
        let end = if is_last { padded } else { self.last / TOKENS };
        let zeros = [0.0f32; MOST_COLUMNS];
        let mut edges = [[0.0f32; MOST_COLUMNS]; TOKENS];
        for first in (0..width).step_by(columns) {
            let wide = columns.min(width - first);
            let panel = head * self.to.value_size + first * padded;
            for group in self.first / TOKENS..end {
                let mut rows = [zeros.as_ptr(); TOKENS];
                for (index, edge) in edges.iter_mut().enumerate() {
                    let token = group * TOKENS + index;
                    if token < tokens {
                        let values = self.values.part(token, head * width + first, wide);
                        rows[index] = if wide == columns {
                            values.as_ptr()
                        } else {
                            edge[..wide].copy_from_slice(values);
                            edge.as_ptr()
                        };
                    }
                }
                for lane in (0..columns).step_by(I::LANES) {
                    // SAFETY: every pointer in `rows` is valid for `columns` values. The groups lie in the rows of these
                    // tokens, which only this part writes; the last part also writes the padding.
                    unsafe {
                        let to = self.to.values.pointer().add(panel + group * columns + lane);
                        let even = isa.load(rows[0].add(lane));
                        if TOKENS == 2 {
                            let odd = isa.load(rows[1].add(lane));
                            isa.store_groups(to, isa.pair_bf16(even, odd));
                        } else {
                            isa.store(to.cast(), even);
                        }
                    }
                }
            }
        }
    }
}
