//! Reads TensorFlow's weight files (`tf_model.h5`), which the `TFBlip` classes of transformers 4 write with Keras: HDF5
//! files with one dataset per weight.
//!
//! - `source`: reads ranges of the file, within its length.
//! - `header`: decodes the header of a group or a dataset.
//! - `group`: finds all datasets and their paths.
//! - `names`: translates a path to the name in PyTorch's state dict, and says how the axes differ.
//! - this file: [`TensorFlowFile`], a weight file whose tensors are read on demand.
//!
//! The crate `hdf5-reader` 0.12 reads such files too, but it is not used. Most of its 30,000 lines are for forms that
//! Keras does not write and that this server refuses: chunks, seven filters, newer groups, links. It would also add seven
//! packages. The reader here decodes only what Keras writes and uses no recursion. Its memory is bounded by the actual
//! size of the file and by the limits in `source` and `group`.
//!
//! Used by `model` (loading) and `hub` (`convert`).

mod error;
mod group;
mod header;
mod names;
mod source;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

pub use error::TensorFlowError;
use header::Dataset;
use names::StateDictEntry;
use source::Source;

/// A weight file whose headers have been read. Its tensors have the names and the axes of PyTorch's state dict.
#[derive(Debug)]
pub struct TensorFlowFile {
    source: Source,
    tensors: BTreeMap<String, StoredTensor>,
}

/// A tensor and the position of its values in the file.
#[derive(Debug)]
struct StoredTensor {
    dtype: DType,
    /// Dimensions in the file.
    dims: Vec<usize>,
    /// For each axis of the tensor the axis in the file; `None` if they are the same.
    axes: Option<Vec<usize>>,
    count: usize,
    start: u64,
    bytes: u64,
}

impl TensorFlowFile {
    /// Reads all headers, and checks that the file holds every tensor's values.
    ///
    /// # Errors
    /// `Io`; any other error if the file is not as Keras writes it, or is too large for a BLIP checkpoint.
    pub fn open(path: &Path) -> Result<Self, TensorFlowError> {
        let source = Source::open(path)?;
        let mut tensors = BTreeMap::new();
        let mut total: u64 = 0;
        for (path, dataset) in group::datasets(&source)? {
            let Some(dtype) = dataset.dtype else {
                tracing::warn!(dataset.path = path, "skipping a dataset of an unsupported type");
                continue;
            };
            let StateDictEntry { name, axes } = StateDictEntry::of(&path, dataset.dims.len());
            let tensor = StoredTensor::find(&source, path, dtype, dataset, axes)?;
            total = total.saturating_add(tensor.bytes);
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(TensorFlowError::Duplicate { name });
            }
        }
        if tensors.is_empty() {
            return Err(TensorFlowError::NoWeights);
        }
        if total > source.length() {
            return Err(TensorFlowError::Shared);
        }
        Ok(Self { source, tensors })
    }

    /// Returns the names of the tensors in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Returns the number of floating-point values in all tensors.
    #[must_use]
    pub fn float_count(&self) -> u64 {
        let floats = self.tensors.values().filter(|tensor| tensor.dtype.is_float());
        floats.map(|tensor| tensor.count as u64).sum()
    }

    /// Reads a tensor into host memory; returns `None` if there is no tensor of this name.
    ///
    /// # Errors
    /// `Io`; `Damaged` if the file has been truncated since it was opened.
    pub fn read(&self, name: &str) -> Result<Option<Tensor>, TensorFlowError> {
        let Some(tensor) = self.tensors.get(name) else { return Ok(None) };
        let values = self.source.read(tensor.start, tensor.bytes)?;
        tensor.build(&values).map(Some).map_err(|_| TensorFlowError::Damaged)
    }
}

impl StoredTensor {
    /// Finds the values of a dataset. All of them must be in the file.
    fn find(
        source: &Source,
        path: String,
        dtype: DType,
        dataset: Dataset,
        axes: Option<Vec<usize>>,
    ) -> Result<Self, TensorFlowError> {
        let Dataset { dims, start, bytes: stored, .. } = dataset;
        // The product of the dimensions must not overflow. A dimension of zero counts as one here, because products of
        // only some of the dimensions are computed later, and these must not overflow either.
        let most = dims.iter().try_fold(1_usize, |count, &side| count.checked_mul(side.max(1)));
        let bytes = most.and_then(|most| most.checked_mul(dtype.size_in_bytes()));
        if bytes.is_none() {
            return Err(TensorFlowError::Truncated { name: path });
        }
        let count: usize = dims.iter().product();
        let bytes = (count * dtype.size_in_bytes()) as u64;
        // A dataset without values has no place in the file.
        let start = if bytes == 0 { 0 } else { start };
        if bytes > stored || !source.has(start, bytes) {
            return Err(TensorFlowError::Truncated { name: path });
        }
        Ok(Self { dtype, dims, axes, count, start, bytes })
    }

    /// Builds the tensor, with PyTorch's axes, from the bytes of its values.
    fn build(&self, values: &[u8]) -> candle_core::Result<Tensor> {
        let tensor = Tensor::from_raw_buffer(values, self.dtype, &self.dims, &Device::Cpu)?;
        match &self.axes {
            Some(axes) => tensor.permute(axes.clone())?.contiguous(),
            None => Ok(tensor),
        }
    }
}
