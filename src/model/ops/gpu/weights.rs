//! Weights on a GPU.

use candle_core::{DType, Tensor};

use super::GpuOps;
use crate::engine::backend::BackendError;
use crate::gpu::device::{Device as _, Format};
use crate::gpu::heap::Buffer;

/// Weights of one linear layer.
#[derive(Debug)]
pub struct GpuLinear {
    /// `[n, k]`, narrow.
    pub(super) weight: Buffer,
    pub(super) bias: Option<Bias>,
    pub(super) n: usize,
    pub(super) k: usize,
}

/// A bias `[n]`, in the formats of the results that it is added to.
#[derive(Debug)]
pub(super) struct Bias {
    pub(super) wide: Buffer,
    pub(super) narrow: Buffer,
}

/// Weights of one layer norm, in f32.
#[derive(Debug)]
pub struct GpuLayerNorm {
    pub(super) weight: Buffer,
    pub(super) bias: Buffer,
    pub(super) eps: f32,
}

/// An embedding table `[n, width]` in f32.
#[derive(Debug)]
pub struct GpuTable {
    pub(super) values: Buffer,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl GpuOps {
    /// Copies bytes of weights to the device.
    pub(super) fn place_bytes(&self, bytes: &[u8]) -> Result<Buffer, BackendError> {
        let buffer = self.memory.lasting().buffer(bytes.len())?;
        self.device.upload(buffer.address(), bytes)?;
        Ok(buffer)
    }

    /// Copies a tensor to the device as f32.
    pub(super) fn place_wide(&self, tensor: &Tensor) -> Result<Buffer, BackendError> {
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.place_bytes(&bytes)
    }

    /// Copies a tensor to the device in the format of the weights.
    pub(super) fn place_narrow(&self, tensor: &Tensor) -> Result<Buffer, BackendError> {
        let flat = tensor.flatten_all()?;
        let bytes: Vec<u8> = match self.format {
            Format::F32 => return self.place_wide(tensor),
            Format::Bf16 => {
                let values = flat.to_dtype(DType::BF16)?.to_vec1::<half::bf16>()?;
                values.iter().flat_map(|value| value.to_le_bytes()).collect()
            }
            Format::F16 => {
                let values = flat.to_dtype(DType::F16)?.to_vec1::<half::f16>()?;
                values.iter().flat_map(|value| value.to_le_bytes()).collect()
            }
        };
        self.place_bytes(&bytes)
    }
}
