//! Weights of a linear layer, converted and packed once, when the model is loaded.
//!
//! `W` `[n, k]` is stored as **panels** that are as wide as a tile: `[panels][groups of K][columns]`. A group is four
//! bytes of values along K (see `isa::lanes::Isa`). The inner loop reads a panel from front to back. Columns beyond `n`
//! are zero.

use super::super::aligned_buffer::AlignedBuffer;
use super::super::context::KernelContext;
use super::super::disjoint::DisjointMutPtr;
use super::super::isa::{Level, to_bf16};
use super::super::pool::Pool;
use super::format::{Format, Shape};

/// Packed weights and bias of `y = x W^T + b`.
#[derive(Debug)]
pub struct PackedWeights {
    level: Level,
    format: Format,
    n: usize,
    k: usize,
    columns: usize,
    /// Number of groups of K, including padding.
    groups: usize,
    packed: AlignedBuffer,
    /// The bias; zeros if the layer has none. `bias`, `scales` and `column_sums` are padded to whole panels.
    bias: Vec<f32>,
    scales: Vec<f32>,
    column_sums: Vec<i32>,
}

impl PackedWeights {
    /// Packs `weight` `[n, k]`, in row-major order, and `bias` `[n]`.
    ///
    /// # Panics
    /// When the lengths do not match.
    #[must_use]
    pub fn pack(
        context: &mut KernelContext,
        format: Format,
        weight: &[f32],
        bias: Option<&[f32]>,
        n: usize,
    ) -> Self {
        let k = weight.len() / n;
        assert_eq!(weight.len(), n * k, "the weight is [n, k]");
        let level = context.level;
        let shape = Shape::of(level);
        let (columns, groups) = (shape.columns, shape.groups(format, k));
        let padded = n.next_multiple_of(columns);
        let mut padded_bias = vec![0.0; padded];
        if let Some(bias) = bias {
            padded_bias[..n].copy_from_slice(bias);
        }
        let scaled = if format == Format::Int8 { padded } else { 0 };
        let mut packed = Self {
            level,
            format,
            n,
            k,
            columns,
            groups,
            packed: AlignedBuffer::zeroed(padded * groups),
            bias: padded_bias,
            scales: vec![0.0; scaled],
            column_sums: vec![0; scaled],
        };
        packed.pack_panels(&mut context.pool, weight);
        packed
    }

    /// Writes the panels and, for 8-bit weights, the scale and the sum of each column.
    fn pack_panels(&mut self, pool: &mut Pool, weight: &[f32]) {
        let Self { format, n, k, columns, groups, .. } = *self;
        let int8 = format == Format::Int8;
        let to = DisjointMutPtr(self.packed.as_mut_ptr());
        let (scale_to, sum_to) = (
            DisjointMutPtr(self.scales.as_mut_ptr()),
            DisjointMutPtr(self.column_sums.as_mut_ptr()),
        );
        pool.run(self.panels(), &|panel| {
            let first = panel * columns;
            for column in 0..columns.min(n - first) {
                let row = &weight[(first + column) * k..][..k];
                let scale = if int8 { largest(row) / 127.0 } else { 0.0 };
                let mut sum = 0;
                for (index, group) in row.chunks(format.group()).enumerate() {
                    let (bits, of_group) = pack_group(format, group, scale);
                    sum += of_group;
                    #[expect(unsafe_code, reason = "panels are packed by several threads")]
                    // SAFETY: the element lies in the panel of this part.
                    unsafe {
                        *to.pointer().add((panel * groups + index) * columns + column) = bits;
                    }
                }
                if int8 {
                    #[expect(unsafe_code, reason = "panels are packed by several threads")]
                    // SAFETY: only this part writes the column.
                    unsafe {
                        *scale_to.pointer().add(first + column) = scale;
                        *sum_to.pointer().add(first + column) = sum;
                    }
                }
            }
        });
    }

    /// Returns the instruction set level that the weights are packed for.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// Returns the number format of the packed weights.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Returns n, the number of columns of the result.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Returns k, the number of columns of the rows that are multiplied.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    pub(super) fn panels(&self) -> usize {
        self.n.div_ceil(self.columns)
    }

    /// Returns a pointer to group `k` of a panel.
    #[inline(always)]
    pub(super) fn panel(&self, panel: usize, k: usize) -> *const u32 {
        self.packed[(panel * self.groups() + k) * self.columns..].as_ptr()
    }

    #[inline(always)]
    pub(super) fn bias(&self) -> &[f32] {
        &self.bias
    }

    #[inline(always)]
    pub(super) fn scales(&self) -> &[f32] {
        &self.scales
    }

    #[inline(always)]
    pub(super) fn column_sums(&self) -> &[i32] {
        &self.column_sums
    }
}

fn largest(row: &[f32]) -> f32 {
    row.iter().fold(0.0, |most, x| most.max(x.abs()))
}

/// Packs the values of one group; missing values count as zero. Returns the bits of the group, and the sum of its
/// integers (0 unless the format is 8-bit).
fn pack_group(format: Format, values: &[f32], scale: f32) -> (u32, i32) {
    match format {
        Format::F32 => (values[0].to_bits(), 0),
        Format::Bf16 => (to_bf16(values[0]) | values.get(1).map_or(0, |x| to_bf16(*x) << 16), 0),
        Format::Int8 => {
            let mut bytes = [0u8; 4];
            let mut sum = 0;
            for (byte, value) in bytes.iter_mut().zip(values) {
                let whole = if scale > 0.0 { (value / scale).round_ties_even() as i32 } else { 0 };
                let whole = whole.clamp(-127, 127);
                sum += whole;
                *byte = whole as i8 as u8;
            }
            (u32::from_le_bytes(bytes), sum)
        }
    }
}
