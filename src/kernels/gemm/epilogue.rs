//! What happens to a tile of sums before it is stored: scale, bias, activation, residual.

use super::super::activation::Activation;
use super::super::isa::Isa;
use super::super::pointwise::gelu;
use super::rows::{PackedRows, Shared};
use super::tile::MOST_COLUMNS;
use super::weights::{Format, Weights};

/// What a layer does with its product.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue<'a> {
    /// Nothing but the bias.
    None,
    /// An activation. Only [`Activation::Gelu`] is fused; `gemm::linear` applies the others to the finished product.
    Activation(Activation),
    /// Adds this `[rows, n]`.
    Residual(&'a [f32]),
}

/// A product's result and everything that its tiles need on their way there.
pub(super) struct Finish<'a> {
    weights: &'a Weights,
    packed: &'a PackedRows,
    epilogue: Epilogue<'a>,
    out: Out,
}

/// Where a result's rows go.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub(super) first: Shared<f32>,
    /// Values from one row to the next; n where nothing stands beside the result.
    pub(super) stride: usize,
}

impl<'a> Finish<'a> {
    /// `out` has a place for every row; a residual lies as it does.
    pub(super) fn new(
        weights: &'a Weights,
        packed: &'a PackedRows,
        epilogue: Epilogue<'a>,
        out: Out,
    ) -> Self {
        Self { weights, packed, epilogue, out }
    }

    /// Finishes `sums` `[height, columns]` of the tile at `row` and `panel`.
    ///
    /// # Safety
    /// `sums` is valid for that; no other part finishes this tile.
    #[inline(always)]
    #[expect(unsafe_code, reason = "a tile of the result, which is this part's alone")]
    pub(super) unsafe fn tile<I: Isa>(
        &self,
        isa: I,
        sums: *const u32,
        row: usize,
        height: usize,
        panel: usize,
    ) {
        let columns = I::LANES * I::VECTORS;
        let width = columns.min(self.weights.n() - panel * columns);
        // The last panel may reach beyond the result: its rows are finished here.
        let (mut residual, mut edge) = ([0.0f32; MOST_COLUMNS], [0.0f32; MOST_COLUMNS]);
        for r in 0..height {
            let at = (row + r) * self.out.stride + panel * columns;
            // SAFETY: `at` and `width` more lie in row `row + r` of the result; sums as the caller says.
            unsafe {
                let out = self.out.first.pointer().add(at);
                let whole = width == columns;
                let to = if whole { out } else { edge.as_mut_ptr() };
                let beside = match self.epilogue {
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
                    isa.store(to.add(lane), self.finish(isa, value, beside.add(lane)));
                }
                if !whole {
                    std::ptr::copy_nonoverlapping(edge.as_ptr(), out, width);
                }
            }
        }
    }

    /// The epilogue of one vector; `beside` is the residual's.
    ///
    /// # Safety
    /// `beside` is valid for a vector where there is a residual.
    #[inline(always)]
    #[expect(unsafe_code, reason = "a vector of the residual by pointer")]
    unsafe fn finish<I: Isa>(&self, isa: I, value: I::F, beside: *const f32) -> I::F {
        match self.epilogue {
            Epilogue::Activation(Activation::Gelu) => gelu(isa, value),
            Epilogue::None | Epilogue::Activation(_) => value,
            // SAFETY: as this function's.
            Epilogue::Residual(_) => isa.add(value, unsafe { isa.load(beside) }),
        }
    }

    /// A vector of sums as f32 with the bias; of 8-bit products `(sum - zero x column sum) x scales`.
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
