//! Epilogue of the matrix product: scale, bias, activation and residual are applied to a tile of sums before it is
//! stored.

use std::ops::Range;

use super::super::activation::Activation;
use super::super::disjoint::DisjointMutPtr;
use super::super::isa::{Isa, MOST_COLUMNS};
use super::super::pointwise::gelu;
use super::format::{Bf16, F32, Format, RowFormat, WideBf16};
use super::rows::{ConvertPair, PackedOut, PackedRows};
use super::weights::PackedWeights;

/// What a layer applies to its product in addition to the bias.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue<'a> {
    /// Nothing in addition to the bias.
    None,
    /// An activation function. Only [`Activation::Gelu`] is fused; `gemm::linear` applies the others to the finished
    /// product.
    Activation(Activation),
    /// Adds a residual of shape `[rows, n]`.
    Residual(&'a [f32]),
}

/// The destination of a product, and everything that its epilogue needs.
pub(super) struct Finish<'a> {
    pub(super) weights: &'a PackedWeights,
    pub(super) packed: &'a PackedRows,
    epilogue: Epilogue<'a>,
    out: Out,
}

/// Destination of a product's rows.
#[derive(Clone, Copy)]
pub(super) enum Out {
    /// Rows of f32.
    Rows {
        first: DisjointMutPtr<f32>,
        /// Number of values from the start of one row to the next; n if the destination holds only this result.
        stride: usize,
    },
    /// The left operand of another product. There is no residual.
    Packed(PackedOut),
}

impl Out {
    /// Rows of `n` values, one after the other in `out`.
    pub(super) fn rows(out: &mut [f32], n: usize) -> Self {
        Self::Rows { first: DisjointMutPtr(out.as_mut_ptr()), stride: n }
    }
}

impl<'a> Finish<'a> {
    /// `out` must have room for every row; a residual has the same layout as `out`.
    pub(super) fn new(
        weights: &'a PackedWeights,
        packed: &'a PackedRows,
        epilogue: Epilogue<'a>,
        out: Out,
    ) -> Self {
        Self { weights, packed, epilogue, out }
    }

    /// Applies the epilogue to the `sums` `[height, columns]` of the tile at `row` and `panel`, and stores the result.
    ///
    /// # Safety
    /// `sums` is valid for this shape, and no other part of the job writes this tile.
    #[inline(always)]
    #[expect(unsafe_code, reason = "writes a tile of the result that no other part writes")]
    pub(super) unsafe fn tile<I: Isa>(
        &self,
        isa: I,
        sums: *const u32,
        row: usize,
        height: usize,
        panel: usize,
    ) {
        let (first, stride) = match self.out {
            Out::Rows { first, stride } => (first, stride),
            Out::Packed(out) => {
                // SAFETY: this function's contract.
                unsafe { self.pack(isa, sums, row..row + height, panel, out) };
                return;
            }
        };
        let columns = I::LANES * I::VECTORS;
        let width = columns.min(self.weights.n() - panel * columns);
        // The last panel may extend beyond the result, so its rows pass through these buffers.
        let (mut residual, mut edge) = ([0.0f32; MOST_COLUMNS], [0.0f32; MOST_COLUMNS]);
        for r in 0..height {
            let at = (row + r) * stride + panel * columns;
            // SAFETY: the `width` values that start at `at` lie in row `row + r` of the result; the caller guarantees
            // that the sums are valid.
            unsafe {
                let out = first.pointer().add(at);
                let whole = width == columns;
                let to = if whole { out } else { edge.as_mut_ptr() };
                let residual = match self.epilogue {
                    Epilogue::Residual(all) if whole => all.as_ptr().add(at),
                    Epilogue::Residual(all) => {
                        residual[..width].copy_from_slice(&all[at..at + width]);
                        residual.as_ptr()
                    }
                    Epilogue::None | Epilogue::Activation(_) => residual.as_ptr(),
                };
                for lane in (0..columns).step_by(I::LANES) {
                    let sums = sums.add(r * columns + lane);
                    let value = self.value(isa, sums, row + r, panel * columns + lane);
                    isa.store(to.add(lane), self.finish(isa, value, residual.add(lane)));
                }
                if !whole {
                    std::ptr::copy_nonoverlapping(edge.as_ptr(), out, width);
                }
            }
        }
    }

    /// Applies the epilogue to the `sums` of some rows of one panel, and stores the result as packed rows. In the columns
    /// beyond n the result is zero, as the weights and biases are, and so is the padding of the packed rows.
    ///
    /// # Safety
    /// As for [`tile`](Self::tile).
    #[inline(always)]
    #[expect(unsafe_code, reason = "writes a tile of the result that no other part writes")]
    unsafe fn pack<I: Isa>(
        &self,
        isa: I,
        sums: *const u32,
        rows: Range<usize>,
        panel: usize,
        out: PackedOut,
    ) {
        let columns = I::LANES * I::VECTORS;
        for (r, row) in rows.enumerate() {
            let (to, stride) = out.row::<I>(row);
            // SAFETY: the caller guarantees that the sums are valid. `prepare` made room for whole panels.
            unsafe {
                let sums = sums.add(r * columns);
                let vector = |lane: usize| (sums.add(lane), panel * columns + lane);
                let (first, second) = (vector(0), vector(I::LANES));
                let pair = [
                    self.finish(isa, self.value(isa, first.0, row, first.1), std::ptr::null()),
                    self.finish(isa, self.value(isa, second.0, row, second.1), std::ptr::null()),
                ];
                match out.format {
                    RowFormat::Bf16 => Bf16::pair(isa, pair, to, stride, panel),
                    RowFormat::WideBf16 => WideBf16::pair(isa, pair, to, stride, panel),
                    RowFormat::F32 | RowFormat::Int8 => F32::pair(isa, pair, to, stride, panel),
                }
            }
        }
    }

    /// Applies the epilogue to one vector and returns the result. `residual` points to the corresponding vector of the
    /// residual.
    ///
    /// # Safety
    /// If there is a residual, `residual` is valid for reading a vector.
    #[inline(always)]
    #[expect(unsafe_code, reason = "a vector of the residual by pointer")]
    unsafe fn finish<I: Isa>(&self, isa: I, value: I::F, residual: *const f32) -> I::F {
        match self.epilogue {
            Epilogue::Activation(Activation::Gelu) => gelu(isa, value),
            Epilogue::None | Epilogue::Activation(_) => value,
            // SAFETY: this function's contract.
            Epilogue::Residual(_) => isa.add(value, unsafe { isa.load(residual) }),
        }
    }

    /// Returns one vector of sums as f32, with the bias added. For 8-bit products the result is
    /// `(sum - zero x column sum) x scales + bias`.
    #[inline(always)]
    #[expect(unsafe_code, reason = "vectors of padded columns")]
    unsafe fn value<I: Isa>(&self, isa: I, sums: *const u32, row: usize, column: usize) -> I::F {
        // SAFETY: biases, scales and column sums are padded to whole panels.
        unsafe {
            let bias = isa.load(self.weights.bias().as_ptr().add(column));
            if self.weights.format() != Format::Int8 {
                return isa.add(isa.load(sums.cast()), bias);
            }
            let quantised = self.packed.quantised(row);
            let column_sums = isa.load_i32(self.weights.column_sums().as_ptr().add(column));
            let zero = isa.splat_group(quantised.zero as u32);
            let sum = isa.sub_i32(isa.load_i32(sums.cast()), isa.mul_i32(zero, column_sums));
            let scale = isa.mul(
                isa.load(self.weights.scales().as_ptr().add(column)),
                isa.splat(quantised.scale),
            );
            isa.mul_add(isa.to_f32(sum), scale, bias)
        }
    }
}
