//! Reads PyTorch's weight files (`pytorch_model.bin`): a zip archive with a pickle and one entry for the values of each
//! tensor.
//!
//! - `archive`: finds the entries of the zip file and the positions of their bytes.
//! - `pickle`: decodes the pickle into values.
//! - `state_dict`: finds the tensors among these values.
//! - this file: [`TorchFile`], a weight file whose tensors are read on demand.
//!
//! candle's reader is not used, because it copies a value each time the pickle refers to it, so that a pickle of 150
//! bytes can make it allocate gigabytes. It also drops nested values by recursion, decompresses data of any claimed
//! size, and trusts the sizes of tensors. The reader here executes nothing, neither copies nor nests values, and its
//! memory is bounded by the actual size of the file.
//!
//! Used by `model` (loading) and `hub` (`convert`).

mod archive;
mod error;
mod pickle;
mod state_dict;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use archive::Archive;
pub use error::TorchError;
use state_dict::TensorInfo;

/// Maximum size of the pickle. For 1,000 tensors it takes a quarter of a megabyte.
const MAX_PICKLE_BYTES: u64 = 8 << 20;

/// Maximum ratio of the bytes of all tensors to the bytes of the file. Tensors may share their values in the file, as
/// tied embeddings do, but in memory each tensor that is read has its own copy.
const MAX_SHARING: u64 = 8;

/// A weight file whose pickle has been read.
#[derive(Debug)]
pub struct TorchFile {
    archive: Archive,
    tensors: BTreeMap<String, StoredTensor>,
}

/// A tensor and the position of its values in the file.
#[derive(Debug)]
struct StoredTensor {
    info: TensorInfo,
    /// Offset of the tensor's first value in the file, in bytes.
    start: u64,
    bytes: usize,
}

impl TorchFile {
    /// Reads the archive's directory and the pickle, and checks that the file holds every tensor's values.
    ///
    /// # Errors
    /// `Io`; any other error if the file is not a state dict as torch.save writes it, or is too large for one.
    pub fn open(path: &Path) -> Result<Self, TorchError> {
        let archive = Archive::open(path)?;
        let (root, pickle) = archive.only_entry("/data.pkl")?;
        if pickle.size > MAX_PICKLE_BYTES {
            let limit = MAX_PICKLE_BYTES;
            return Err(TorchError::TooLarge { what: "bytes of data.pkl", limit });
        }
        if let Some(order) = archive.find(&format!("{root}/byteorder"))?
            && archive.read(order.start, order.size.min(16) as usize)? == b"big"
        {
            return Err(TorchError::BigEndian);
        }
        let pickle = archive.read(pickle.start, pickle.size as usize)?;
        let infos = state_dict::tensors(&pickle::read(&pickle)?)?;
        let mut tensors = BTreeMap::new();
        let mut total: u64 = 0;
        for (name, info) in infos {
            let place = StoredTensor::find(&archive, &root, &name, info)?;
            total = total.saturating_add(place.bytes as u64);
            tensors.insert(name, place);
        }
        if tensors.is_empty() {
            return Err(TorchError::NoStateDict);
        }
        if total > archive.length().saturating_mul(MAX_SHARING) {
            return Err(TorchError::Shared { limit: MAX_SHARING });
        }
        Ok(Self { archive, tensors })
    }

    /// Returns the names of the tensors in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Returns the number of floating-point values in all tensors.
    #[must_use]
    pub fn float_count(&self) -> u64 {
        let infos = self.tensors.values().map(|place| &place.info);
        infos.filter(|info| info.dtype.is_float()).map(|info| info.count as u64).sum()
    }

    /// Reads a tensor into host memory; returns `None` if there is no tensor of this name.
    ///
    /// # Errors
    /// `Io`; `Strided` for a view whose values have gaps; `Damaged` if the file has been truncated since it was opened.
    pub fn read(&self, name: &str) -> Result<Option<Tensor>, TorchError> {
        let Some(StoredTensor { info, start, bytes }) = self.tensors.get(name) else {
            return Ok(None);
        };
        let Some(order) = info.order() else {
            return Err(TorchError::Strided { name: error::shown(name) });
        };
        let values = self.archive.read(*start, *bytes)?;
        order.tensor(&values, info, &Device::Cpu).map(Some).map_err(|_| TorchError::Damaged)
    }
}

impl StoredTensor {
    /// Finds the values of a tensor. All of them must be in the file.
    fn find(
        archive: &Archive,
        root: &str,
        name: &str,
        info: TensorInfo,
    ) -> Result<Self, TorchError> {
        let section = archive.find(&format!("{root}/data/{}", info.key))?;
        let section = section.ok_or(TorchError::Damaged)?;
        let size = info.dtype.size_in_bytes() as u64;
        let bytes = (info.count as u64).checked_mul(size);
        let skipped = info.offset.checked_mul(size);
        let end = bytes.zip(skipped).and_then(|(bytes, skipped)| bytes.checked_add(skipped));
        match (bytes, skipped, end) {
            (Some(bytes), Some(skipped), Some(end)) if end <= section.size => {
                Ok(Self { info, start: section.start + skipped, bytes: bytes as usize })
            }
            _ => Err(TorchError::Truncated { name: error::shown(name) }),
        }
    }
}
