//! The fused operations on candle's tensors, for every device and dtype. They are the reference that the CPU kernels
//! are tested against. `attention` implements attention and stores its keys and values.

mod attention;

use candle_core::{D, DType, Device, Tensor};

pub use attention::CandleKvCache;
use attention::views;

use super::{
    Activation, Epilogue, HostRows, KvLifetime, Ops, PatchEmbeddingWeights, PersistentKvShape,
    RowRun,
};
use crate::engine::backend::BackendError;
use crate::task::Pixels;

/// Maximum number of rows for which `product` exchanges its operands. Up to this number, the weight is by far the
/// larger operand.
const FEW_ROWS: usize = 32;

/// candle's operations on one device in one dtype.
#[derive(Debug, Clone)]
pub struct CandleOps {
    device: Device,
    dtype: DType,
}

/// Linear layer `y = x W^T + b`; the weight is stored as `[out, in]`.
#[derive(Debug)]
pub struct CandleLinear {
    weight: Tensor,
    bias: Option<Tensor>,
}

/// Weights of one layer norm, in the dtype of the operations.
#[derive(Debug)]
pub struct CandleLayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

/// Weights of the patch embedding, which is a matrix product in which each patch is one row.
#[derive(Debug)]
pub struct CandlePatchEmbedding {
    /// Weight `[width, 3 x patch x patch]` and bias `[width]`.
    linear: CandleLinear,
    class_embedding: Tensor,
    position_embedding: Tensor,
    /// For each channel, the normalised value of every 8-bit value.
    normalised: [[f32; 256]; 3],
    patch: usize,
}

impl From<candle_core::Error> for BackendError {
    fn from(error: candle_core::Error) -> Self {
        let text = error.to_string();
        if text.contains("OUT_OF_MEMORY") || text.contains("out of memory") {
            Self::OutOfMemory(text)
        } else {
            Self::Device(text)
        }
    }
}

impl CandleOps {
    /// Creates the operations on `device` in `dtype`, which is f32, bf16 or f16.
    #[must_use]
    pub fn new(device: Device, dtype: DType) -> Self {
        Self { device, dtype }
    }

    fn place(&self, tensor: &Tensor) -> Result<Tensor, BackendError> {
        Ok(tensor.to_device(&self.device)?.to_dtype(self.dtype)?.contiguous()?)
    }

    /// Computes `x W^T`. On a CPU, with up to [`FEW_ROWS`] rows, the bits of a row's result do not depend on the other
    /// rows of the batch. With more rows, the `gemm` crate sums in another order, which changes the last bits.
    ///
    /// `gemm` also takes another code path for a single row, so a single row is computed together with a copy of
    /// itself. (It takes yet another path for products of up to 256 values, which occur only in the tiny models of the
    /// tests.) With few rows, `gemm` packs the whole weight on one thread. If the operands are exchanged, it packs the
    /// rows instead. For a 768 x 3072 weight and 8 rows, this reduces the time from 4 ms to 0.7 ms (2 cores with
    /// AVX-512, 2026-11).
    fn product(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor, BackendError> {
        let rows = x.dim(0)?;
        if !self.device.is_cpu() || rows > FEW_ROWS {
            return Ok(x.matmul(&weight.t()?)?);
        }
        let x = if rows == 1 { Tensor::cat(&[x, x], 0)? } else { x.clone() };
        Ok(weight.matmul(&x.t()?)?.t()?.narrow(0, 0, rows)?.contiguous()?)
    }

    /// Returns the normalised patches, `[images x patches, 3 x patch x patch]`. The outermost dimension of a patch is
    /// the channel, as in the convolution's kernel.
    fn patches(
        &self,
        weights: &CandlePatchEmbedding,
        images: &[&Pixels],
    ) -> Result<Tensor, BackendError> {
        let patch = weights.patch;
        let mut values = Vec::new();
        let mut rows = 0;
        for pixels in images {
            let (width, height) = (pixels.width() as usize, pixels.height() as usize);
            let (columns, lines) = (width / patch, height / patch);
            rows += columns * lines;
            values.reserve(columns * lines * 3 * patch * patch);
            for (line, column) in (0..lines).flat_map(|y| (0..columns).map(move |x| (y, x))) {
                for (channel, table) in weights.normalised.iter().enumerate() {
                    for y in line * patch..(line + 1) * patch {
                        let start = (y * width + column * patch) * 3;
                        let pixels = &pixels.as_bytes()[start..start + patch * 3];
                        values.extend(
                            pixels.chunks_exact(3).map(|rgb| table[usize::from(rgb[channel])]),
                        );
                    }
                }
            }
        }
        let values = Tensor::from_vec(values, (rows, 3 * patch * patch), &Device::Cpu)?;
        Ok(values.to_device(&self.device)?.to_dtype(self.dtype)?)
    }
}

fn activate(x: &Tensor, activation: Activation) -> Result<Tensor, BackendError> {
    Ok(match activation {
        Activation::Gelu => x.gelu_erf()?,
        // candle's `gelu` is the tanh approximation.
        Activation::GeluTanh => x.gelu()?,
        Activation::QuickGelu => (x * candle_nn::ops::sigmoid(&(x * 1.702)?)?)?,
        Activation::Relu => x.relu()?,
        Activation::Silu => x.silu()?,
        Activation::Tanh => x.tanh()?,
    })
}

impl Ops for CandleOps {
    type Act = Tensor;
    type Linear = CandleLinear;
    type KvProjection = CandleLinear;
    type LayerNorm = CandleLayerNorm;
    type Table = Tensor;
    type PatchEmbedding = CandlePatchEmbedding;
    type KvCache = CandleKvCache;

    fn load_linear(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<CandleLinear, BackendError> {
        let bias = bias.map(|bias| self.place(bias)).transpose()?;
        Ok(CandleLinear { weight: self.place(weight)?, bias })
    }

    fn load_key_value(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        _: usize,
        _: KvLifetime,
    ) -> Result<CandleLinear, BackendError> {
        self.load_linear(weight, Some(bias))
    }

    fn has_few_row_form(&self) -> bool {
        false
    }

    fn load_layer_norm(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        eps: f64,
    ) -> Result<CandleLayerNorm, BackendError> {
        Ok(CandleLayerNorm {
            weight: self.place(weight)?,
            bias: self.place(bias)?,
            eps: eps as f32,
        })
    }

    fn load_table(&self, table: &Tensor) -> Result<Tensor, BackendError> {
        self.place(table)
    }

    fn load_patch_embedding(
        &self,
        weights: &PatchEmbeddingWeights,
    ) -> Result<CandlePatchEmbedding, BackendError> {
        let (width, channels, patch, _) = weights.weight.dims4()?;
        let kernel = weights.weight.reshape((width, channels * patch * patch))?;
        Ok(CandlePatchEmbedding {
            linear: self.load_linear(&kernel, Some(&weights.bias))?,
            class_embedding: self.place(&weights.class_embedding)?,
            position_embedding: self.place(&weights.position_embedding)?,
            normalised: weights.normalised(),
            patch,
        })
    }

    fn patch_embedding(
        &self,
        weights: &CandlePatchEmbedding,
        images: &[&Pixels],
    ) -> Result<Tensor, BackendError> {
        let patches = self.patches(weights, images)?;
        let embedded = self.linear(&patches, &weights.linear, Epilogue::None)?;
        let (_, tokens, width) = weights.position_embedding.dims3()?;
        let embedded = embedded.reshape((images.len(), tokens - 1, width))?;
        let class = weights.class_embedding.broadcast_as((images.len(), 1, width))?;
        let sequence = Tensor::cat(&[&class, &embedded], 1)?;
        let positioned = sequence.broadcast_add(&weights.position_embedding)?;
        Ok(positioned.reshape((images.len() * tokens, width))?)
    }

    fn embed_tokens(
        &self,
        words: &Tensor,
        positions: &Tensor,
        tokens: &[(u32, u32)],
    ) -> Result<Tensor, BackendError> {
        let (ids, places): (Vec<u32>, Vec<u32>) = tokens.iter().copied().unzip();
        let words = words.index_select(&Tensor::new(ids, &self.device)?, 0)?;
        let positions = positions.index_select(&Tensor::new(places, &self.device)?, 0)?;
        Ok((words + positions)?)
    }

    fn layer_norm(&self, x: &Tensor, weights: &CandleLayerNorm) -> Result<Tensor, BackendError> {
        Ok(candle_nn::ops::layer_norm(x, &weights.weight, &weights.bias, weights.eps)?)
    }

    fn linear(
        &self,
        x: &Tensor,
        weights: &CandleLinear,
        epilogue: Epilogue<'_, Tensor>,
    ) -> Result<Tensor, BackendError> {
        let product = self.product(x, &weights.weight)?;
        let product = match &weights.bias {
            Some(bias) => product.broadcast_add(bias)?,
            None => product,
        };
        Ok(match epilogue {
            Epilogue::None => product,
            Epilogue::Activation(activation) => activate(&product, activation)?,
            Epilogue::Residual(residual) => (product + residual)?,
        })
    }

    fn self_attention(
        &self,
        qkv: &Tensor,
        heads: usize,
        lengths: &[usize],
    ) -> Result<Tensor, BackendError> {
        self.attend_bidirectionally(qkv, heads, lengths)
    }

    fn cached_attention(
        &self,
        qkv: &Tensor,
        heads: usize,
        lengths: &[usize],
        caches: &[Option<&CandleKvCache>],
    ) -> Result<(Tensor, Vec<CandleKvCache>), BackendError> {
        self.attend_causally(qkv, heads, lengths, caches)
    }

    fn keys_values(
        &self,
        memory: &Tensor,
        weights: &Self::KvProjection,
        heads: usize,
    ) -> Result<CandleKvCache, BackendError> {
        self.project_keys_values(memory, weights, heads)
    }

    fn cross_attention(
        &self,
        query: &Tensor,
        heads: usize,
        runs: &[RowRun<&CandleKvCache>],
    ) -> Result<Tensor, BackendError> {
        self.attend_across(query, heads, runs)
    }

    fn attention_weights(
        &self,
        query: &Tensor,
        heads: usize,
        memory: &Tensor,
        weights: &CandleLinear,
    ) -> Result<Vec<Vec<f32>>, BackendError> {
        self.weights_across(query, heads, memory, weights)
    }

    fn select_rows(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor, BackendError> {
        let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        Ok(x.index_select(&Tensor::new(rows, &self.device)?, 0)?)
    }

    fn split_rows(&self, x: &Tensor, lengths: &[usize]) -> Result<Vec<Tensor>, BackendError> {
        let views = views(x, lengths)?;
        if let [whole] = views.as_slice()
            && whole.dims() == x.dims()
        {
            return Ok(views);
        }
        // A view would keep the storage of the whole batch alive.
        Ok(views.iter().map(Tensor::force_contiguous).collect::<Result<_, _>>()?)
    }

    fn images_per_pass(&self, _: usize, _: usize) -> usize {
        usize::MAX
    }

    fn feature_bytes(&self, tokens: usize, width: usize) -> u64 {
        (tokens * width * self.dtype.size_in_bytes()) as u64
    }

    fn cross_kv_bytes(&self, memory: PersistentKvShape) -> u64 {
        2 * memory.layers as u64 * self.feature_bytes(memory.tokens, memory.width)
    }

    fn kv_bytes_per_token(&self, width: usize) -> u64 {
        2 * self.feature_bytes(1, width)
    }

    fn to_host(&self, x: &Tensor) -> Result<Vec<Vec<f32>>, BackendError> {
        Ok(x.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.to_vec2()?)
    }

    fn host_rows<'a>(&self, x: &'a Tensor) -> Result<HostRows<'a>, BackendError> {
        let values: Vec<f32> =
            x.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
        Ok(HostRows::new(values, x.dim(D::Minus1)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::IndexOp as _;

    use super::*;

    /// Returns pseudo-random numbers without a pattern, so that another order of summation changes the result.
    fn noise(rows: usize, width: usize, seed: u32) -> Tensor {
        let mut state = seed;
        let values: Vec<f32> = (0..rows * width)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1u32 << 24) as f32 - 0.5
            })
            .collect();
        Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap()
    }

    fn bits(x: &Tensor, row: usize) -> Vec<u32> {
        let row: Vec<f32> = x.i(row).unwrap().to_vec1().unwrap();
        row.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_with_few_batch_neighbours_and_nearly_so_with_many() {
        let ops = CandleOps::new(Device::Cpu, DType::F32);
        for (out, width) in [(768, 768), (256, 3072), (1030, 96)] {
            let weights = ops
                .load_linear(&noise(out, width, 1), Some(&noise(1, out, 2).i(0).unwrap()))
                .unwrap();
            let x = noise(577, width, 3);
            let first = |rows: usize| {
                let x = x.i(..rows).unwrap();
                ops.linear(&x, &weights, Epilogue::None).unwrap().i(0..1).unwrap()
            };
            let alone = first(1);
            for rows in [2, 3, 7, FEW_ROWS] {
                assert_eq!(bits(&first(rows), 0), bits(&alone, 0), "{out}x{width}, {rows} rows");
            }
            for rows in [FEW_ROWS + 1, 64, 577] {
                let difference = (first(rows) - &alone).unwrap().abs().unwrap().max_all().unwrap();
                let magnitude = alone.abs().unwrap().max_all().unwrap();
                let relative = (difference / magnitude).unwrap().to_scalar::<f32>().unwrap();
                assert!(relative < 1e-6, "{out}x{width}, {rows} rows: {relative}");
            }
        }
    }

    #[test]
    fn a_query_has_the_same_bits_alone_and_with_any_batch_neighbours() {
        let ops = CandleOps::new(Device::Cpu, DType::F32);
        let memory = noise(577, 96, 1);
        let weights = ops.load_linear(&noise(2 * 96, 96, 2), None).unwrap();
        let kv = ops.keys_values(&memory, &weights, 4).unwrap();
        let queries = noise(40, 96, 3);
        let run = |rows| [RowRun { memory: &kv, rows }];
        let all = ops.cross_attention(&queries, 4, &run(40)).unwrap();
        for row in [0, 13, 39] {
            let query = queries.i(row..=row).unwrap();
            let alone = ops.cross_attention(&query, 4, &run(1)).unwrap();
            assert_eq!(bits(&alone, 0), bits(&all, row), "query {row}");
        }
    }
}
