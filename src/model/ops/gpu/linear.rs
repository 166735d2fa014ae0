//! Linear layers and layer norms on a GPU.

use std::sync::Arc;

use super::weights::{GpuLayerNorm, GpuLinear};
use super::{GpuActivations, GpuOps};
use crate::engine::backend::BackendError;
use crate::gpu::device::{Address, Device as _, Format, Product};
use crate::gpu::kernels::products::{self, FewRowProduct};
use crate::gpu::kernels::rows;
use crate::kernels::activation::Activation;

/// Maximum number of rows of a text step whose products do not depend on the number of rows. The bits of a text's result
/// therefore do not depend on its batch neighbours, up to this number of tokens in a step.
const MOST_INVARIANT_ROWS: usize = 1024;

/// In which order the sums of a product may be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sums {
    /// In the same order for any number of rows, up to [`MOST_INVARIANT_ROWS`], and outside of vision passes.
    Invariant,
    /// In the order that is the fastest for this number of rows.
    Fastest,
}

/// Where a product goes, and what happens to it before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    pub(super) out: Address,
    pub(super) is_narrow: bool,
    pub(super) activation: rows::Activation,
    /// Added after the activation; wide. Only products without activation have one.
    pub(super) residual: Option<Address>,
}

impl Output {
    /// A wide result, without activation and residual.
    pub(super) fn wide(out: Address) -> Self {
        let activation = rows::Activation::Identity;
        Self { out, is_narrow: false, activation, residual: None }
    }

    /// A narrow result, without activation and residual.
    pub(super) fn narrow(out: Address) -> Self {
        Self { is_narrow: true, ..Self::wide(out) }
    }
}

impl From<Activation> for rows::Activation {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Gelu => Self::Gelu,
            Activation::GeluTanh => Self::GeluTanh,
            Activation::QuickGelu => Self::QuickGelu,
            Activation::Relu => Self::Relu,
            Activation::Silu => Self::Silu,
            Activation::Tanh => Self::Tanh,
        }
    }
}

impl GpuOps {
    /// Computes a linear layer of `rows` rows. Images have hundreds of rows each, so vision passes always take the fastest
    /// product.
    pub(super) fn product(
        &self,
        x: Address,
        rows: usize,
        weights: &GpuLinear,
        into: Output,
        sums: Sums,
    ) -> Result<(), BackendError> {
        let (n, k) = (weights.n, weights.k);
        let bias = weights.bias.as_ref();
        let (out_format, bias) = if into.is_narrow {
            (self.format, bias.map(|bias| bias.narrow.address()))
        } else {
            (Format::F32, bias.map(|bias| bias.wide.address()))
        };
        let is_fastest = sums == Sums::Fastest || self.memory.is_vision_pass();
        if is_fastest || rows > MOST_INVARIANT_ROWS {
            let Output { out, residual, .. } = into;
            let (format, w) = (self.format, weights.weight.address());
            self.device.product(&Product {
                format,
                out_format,
                m: rows,
                n,
                k,
                x,
                w,
                bias,
                residual,
                out,
            })?;
            return self.activate(into, rows * n);
        }
        for start in (0..rows).step_by(products::MOST_ROWS) {
            let out = into.out.offset(start * n * out_format.bytes());
            products::few_row_product(
                self.device(),
                self.format,
                FewRowProduct {
                    x: x.offset(start * k * self.format.bytes()),
                    w: weights.weight.address(),
                    bias: weights.bias.as_ref().map(|bias| bias.wide.address()),
                    residual: into.residual.map(|all| all.offset(start * n * size_of::<f32>())),
                    wide: (!into.is_narrow).then_some(out),
                    narrow: into.is_narrow.then_some(out),
                    rows: (rows - start).min(products::MOST_ROWS),
                    n,
                    k,
                    activation: into.activation,
                },
            )?;
        }
        Ok(())
    }

    /// Applies the activation of `into` to `count` values of its result.
    fn activate(&self, into: Output, count: usize) -> Result<(), BackendError> {
        if into.activation == rows::Activation::Identity {
            return Ok(());
        }
        let format = if into.is_narrow { self.format } else { Format::F32 };
        Ok(rows::activate(self.device(), format, into.out, count, into.activation)?)
    }

    /// Computes the layer norm of `x`, in the formats that `wide` and `narrow` ask for.
    pub(super) fn norm(
        &self,
        x: &GpuActivations,
        weights: &GpuLayerNorm,
        is_wide: bool,
    ) -> Result<GpuActivations, BackendError> {
        let (rows, width, count) = (x.launched(), x.width(), x.launched() * x.width());
        let input = self.wide(x)?;
        let narrow = Arc::new(self.narrow_buffer(count)?);
        // With f32, the narrow result is the wide one.
        let wide = match (is_wide, self.format) {
            (false, _) => None,
            (true, Format::F32) => Some(Arc::clone(&narrow)),
            (true, Format::Bf16 | Format::F16) => Some(Arc::new(self.wide_buffer(count)?)),
        };
        rows::layer_norm(
            self.device(),
            self.format,
            rows::LayerNorm {
                x: input.address(),
                weight: weights.weight.address(),
                bias: weights.bias.address(),
                wide: wide.as_ref().filter(|_| self.format != Format::F32).map(|to| to.address()),
                narrow: Some(narrow.address()),
                rows,
                width,
                eps: weights.eps,
            },
        )?;
        Ok(self.act(x.rows(), width, wide, Some(narrow)))
    }
}
