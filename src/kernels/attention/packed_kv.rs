//! Keys and values of one sequence, packed as panels of the matrix product.

use super::super::aligned_buffer::{AlignedBuffer, LINE};
use super::super::context::KernelContext;
use super::super::disjoint::DisjointMutPtr;
use super::super::gemm::{Bf16, Convert, F32, Format, Shape};
use super::super::isa::{Isa, Kernel, Level, MOST_COLUMNS};
use super::super::rows::Rows;

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
    /// `[heads][panels of tokens][groups of d][columns]`.
    pub(super) keys: AlignedBuffer,
    /// `[heads][panels of d][groups of tokens][columns]`.
    pub(super) values: AlignedBuffer,
}

impl PackedKv {
    /// Creates a `PackedKv` without tokens, for attention that runs in `format`.
    ///
    /// # Panics
    /// If `format` is 8-bit integers, which attention does not support.
    #[must_use]
    pub fn new(format: Format, heads: Heads) -> Self {
        assert_ne!(format, Format::Int8, "attention runs in f32 or bf16");
        Self {
            level: Level::Portable,
            format,
            heads,
            tokens: 0,
            keys: AlignedBuffer::default(),
            values: AlignedBuffer::default(),
        }
    }

    /// Replaces the contents with the keys and values `[tokens, heads x width]` of one sequence.
    ///
    /// # Panics
    /// When the numbers of keys and values differ.
    pub fn pack(
        &mut self,
        context: &mut KernelContext,
        heads: Heads,
        keys: Rows<'_>,
        values: Rows<'_>,
    ) {
        assert_eq!(keys.rows, values.rows, "a token has a key and a value");
        (self.level, self.heads, self.tokens) = (context.level, heads, keys.rows);
        let (level, format) = (self.level, self.format);
        let (key_size, value_size) = sizes(level, format, heads, keys.rows);
        // Columns of `keys` beyond the tokens, and columns of `values` beyond the width, may keep old contents; no
        // result depends on these columns.
        self.keys.resize(heads.count * key_size);
        self.values.resize(heads.count * value_size);
        let (key_to, value_to) =
            (DisjointMutPtr(self.keys.as_mut_ptr()), DisjointMutPtr(self.values.as_mut_ptr()));
        context.pool.run(heads.count, &|head| {
            #[expect(unsafe_code, reason = "each head's panels are written by one part")]
            // SAFETY: heads do not overlap, and the buffers have room for every head.
            let (key_to, value_to) = unsafe {
                (
                    std::slice::from_raw_parts_mut(key_to.pointer().add(head * key_size), key_size),
                    std::slice::from_raw_parts_mut(
                        value_to.pointer().add(head * value_size),
                        value_size,
                    ),
                )
            };
            let head = Head { index: head, width: heads.width, keys, values };
            level.run(PackHead { format, head, key_to, value_to });
        });
    }

    /// Returns the number and width of the heads.
    #[must_use]
    pub fn heads(&self) -> Heads {
        self.heads
    }

    /// Returns the number of bytes that the packed keys and values of these dimensions take.
    #[must_use]
    pub fn bytes_of(level: Level, format: Format, heads: Heads, tokens: usize) -> usize {
        let (keys, values) = sizes(level, format, heads, tokens);
        4 * heads.count * (keys + values)
    }
}

/// Returns the sizes of one head's packed keys and of its packed values, in groups of four bytes.
fn sizes(level: Level, format: Format, heads: Heads, tokens: usize) -> (usize, usize) {
    let shape = Shape::of(level);
    (
        tokens.next_multiple_of(shape.columns) * shape.groups(format, heads.width),
        heads.width.next_multiple_of(shape.columns) * shape.groups(format, tokens),
    )
}

/// One head of the keys and values to pack.
#[derive(Clone, Copy)]
struct Head<'a> {
    index: usize,
    width: usize,
    keys: Rows<'a>,
    values: Rows<'a>,
}

impl<'a> Head<'a> {
    /// Returns `width` values of a row of this head, starting at `column`. `of` is the keys or the values.
    #[inline(always)]
    fn part(&self, of: Rows<'a>, row: usize, column: usize, width: usize) -> &'a [f32] {
        of.part(row, self.index * self.width + column, width)
    }
}

struct PackHead<'a> {
    format: Format,
    head: Head<'a>,
    /// The head's panels of keys.
    key_to: &'a mut [u32],
    /// The head's panels of values.
    value_to: &'a mut [u32],
}

impl Kernel for PackHead<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { format, head, key_to, value_to } = self;
        match format {
            Format::Bf16 => {
                pack_keys::<I, Bf16>(isa, head, key_to);
                pack_values(isa, true, head, value_to);
            }
            Format::F32 | Format::Int8 => {
                pack_keys::<I, F32>(isa, head, key_to);
                pack_values(isa, false, head, value_to);
            }
        }
    }
}

/// Packs the keys of a head; each key becomes a column.
#[inline(always)]
#[expect(unsafe_code, reason = "whole lines by pointer")]
fn pack_keys<I: Isa, C: Convert<I, Scaling = ()>>(isa: I, head: Head<'_>, to: &mut [u32]) {
    let (width, keys) = (head.width, head.keys);
    let columns = I::LANES * I::VECTORS;
    let groups = width.div_ceil(C::GROUP).next_multiple_of(I::GROUPS);
    let mut line = [0u32; LINE];
    let mut block = [0.0f32; 4 * LINE];
    for token in 0..keys.rows {
        let row = head.part(keys, token, 0, width);
        let column = (token / columns) * groups * columns + token % columns;
        // The rest of a row's last line is filled with zeros, because the product also sums over this padding.
        for (index, values) in row.chunks(LINE * C::GROUP).enumerate() {
            block[..values.len()].copy_from_slice(values);
            block[values.len()..].fill(0.0);
            // SAFETY: both arrays hold a line.
            unsafe { C::line(isa, block.as_ptr(), line.as_mut_ptr(), ()) };
            let first = index * LINE;
            for (group, bits) in line.iter().take(groups - first).enumerate() {
                to[column + (first + group) * columns] = *bits;
            }
        }
    }
}

/// Packs the values of a head without transposing them: each token (in bf16, each pair of tokens) becomes a row of
/// groups.
#[inline(always)]
#[expect(unsafe_code, reason = "vectors of arrays")]
fn pack_values<I: Isa>(isa: I, bf16: bool, head: Head<'_>, to: &mut [u32]) {
    let (width, values) = (head.width, head.values);
    let columns = I::LANES * I::VECTORS;
    let tokens_in_group = if bf16 { 2 } else { 1 };
    let groups = values.rows.div_ceil(tokens_in_group);
    let padded = groups.next_multiple_of(I::GROUPS);
    let (mut even, mut odd) = ([0.0f32; MOST_COLUMNS], [0.0f32; MOST_COLUMNS]);
    for panel in 0..width.div_ceil(columns) {
        let first = panel * columns;
        let wide = columns.min(width - first);
        to[(panel * padded + groups) * columns..(panel + 1) * padded * columns].fill(0);
        for group in 0..groups {
            let token = group * tokens_in_group;
            even[..wide].copy_from_slice(head.part(values, token, first, wide));
            if bf16 && token + 1 < values.rows {
                odd[..wide].copy_from_slice(head.part(values, token + 1, first, wide));
            } else {
                odd.fill(0.0);
            }
            let to = &mut to[(panel * padded + group) * columns..][..columns];
            for lane in (0..columns).step_by(I::LANES) {
                // SAFETY: both arrays and the destination hold `columns` values.
                unsafe {
                    let first = isa.load(even.as_ptr().add(lane));
                    if bf16 {
                        let second = isa.load(odd.as_ptr().add(lane));
                        isa.store_groups(to.as_mut_ptr().add(lane), isa.pair_bf16(first, second));
                    } else {
                        isa.store(to.as_mut_ptr().add(lane).cast(), first);
                    }
                }
            }
        }
    }
}
