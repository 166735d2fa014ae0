//! What happens to a tile of sums before it is stored: scale, bias, activation, residual.

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
    /// GELU by erf.
    Gelu,
    /// tanh.
    Tanh,
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
        let n = self.weights.n();
        let width = columns.min(n - panel * columns);
        for r in 0..height {
            let at = (row + r) * self.out.stride + panel * columns;
            let mut finished = [0.0f32; MOST_COLUMNS];
            // SAFETY: `at` and `width` more lie in row `row + r` of the result; sums as the caller says.
            unsafe {
                if width == columns {
                    for lane in (0..columns).step_by(I::LANES) {
                        let value = self.value(
                            isa,
                            sums.add(r * columns + lane),
                            row + r,
                            panel * columns + lane,
                        );
                        let value = match self.epilogue {
                            Epilogue::None => value,
                            Epilogue::Gelu => gelu(isa, value),
                            Epilogue::Tanh => {
                                isa.store(finished.as_mut_ptr(), value);
                                finished[..I::LANES].iter_mut().for_each(|x| *x = x.tanh());
                                isa.load(finished.as_ptr())
                            }
                            Epilogue::Residual(residual) => {
                                isa.add(value, isa.load(residual.as_ptr().add(at + lane)))
                            }
                        };
                        isa.store(self.out.first.pointer().add(at + lane), value);
                    }
                    continue;
                }
                for lane in (0..columns).step_by(I::LANES) {
                    let value = self.value(
                        isa,
                        sums.add(r * columns + lane),
                        row + r,
                        panel * columns + lane,
                    );
                    let value = if matches!(self.epilogue, Epilogue::Gelu) {
                        gelu(isa, value)
                    } else {
                        value
                    };
                    isa.store(finished.as_mut_ptr().add(lane), value);
                }
                for (column, value) in finished[..width].iter().enumerate() {
                    let value = match self.epilogue {
                        Epilogue::None | Epilogue::Gelu => *value,
                        Epilogue::Tanh => value.tanh(),
                        Epilogue::Residual(residual) => value + residual[at + column],
                    };
                    *self.out.first.pointer().add(at + column) = value;
                }
            }
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
