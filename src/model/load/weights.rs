//! Finds tensors by name in memory-mapped safetensors files, in PyTorch files (whose reader executes no code), or in
//! TensorFlow files (whose reader gives the tensors PyTorch's names and axes).

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use candle_core::safetensors::{Load, MmapedSafetensors, SliceSafetensors};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::TensorView;
use sha2::{Digest, Sha256};

use super::{File, WeightFiles};
use crate::document::{DocumentError, LFS_POINTER};
use crate::model::error::LoadError;
use crate::tensorflow::{TensorFlowError, TensorFlowFile};
use crate::torch::{TorchError, TorchFile};

/// The tensors of one checkpoint, which may be in several files. A tensor is read only when it is requested.
pub struct CheckpointWeights {
    files: Vec<(PathBuf, TensorFile)>,
    /// Location of each tensor by name. `LayerNorm.gamma` and `.beta` are listed as `LayerNorm.weight` and `.bias`.
    places: HashMap<String, TensorLocation>,
    /// What precedes each of these names in the state dict of a whole model.
    prefix: String,
}

/// Location of one tensor in the files.
struct TensorLocation {
    /// Index of the file in `files`.
    file: usize,
    /// Name of the tensor in that file.
    name: String,
}

enum TensorFile {
    Mapped(MmapedSafetensors),
    InBinary(SliceSafetensors<'static>),
    Pickle(TorchFile),
    TensorFlow(TensorFlowFile),
}

impl std::fmt::Debug for CheckpointWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CheckpointWeights({}, {} tensors)", self.file_names(), self.places.len())
    }
}

impl CheckpointWeights {
    /// Opens the files and reads their headers.
    ///
    /// # Errors
    /// When a file cannot be read or does not have the expected format.
    pub fn open(files: &WeightFiles) -> Result<Self, LoadError> {
        Self::open_below(String::new(), files)
    }

    /// Opens the files of a part of a model. Its tensors are found under the names that they have in a whole model: those
    /// in the files, preceded by `prefix`.
    pub(in crate::model) fn open_below(
        prefix: String,
        files: &WeightFiles,
    ) -> Result<Self, LoadError> {
        let mut weights = Self { files: Vec::new(), places: HashMap::new(), prefix };
        match files {
            WeightFiles::Safetensors(files) => {
                for file in files {
                    weights.add(file.path(), open_safetensors(file)?);
                }
            }
            WeightFiles::Pickle(paths) => {
                for path in paths {
                    weights.add(path, open_pickle(path)?);
                }
            }
            WeightFiles::TensorFlow(path) => weights.add(path, open_tensorflow(path)?),
        }
        Ok(weights)
    }

    fn add(&mut self, path: &Path, source: TensorFile) {
        let index = self.files.len();
        for name in source.names() {
            let place = TensorLocation { file: index, name: name.clone() };
            // If a tensor occurs under its old and its current name, the one with the current name takes precedence.
            if let Some(current) = current_name(&name) {
                self.places.entry(current).or_insert(place);
            } else {
                self.places.insert(name, place);
            }
        }
        self.files.push((path.to_owned(), source));
    }

    /// True if one of the files has a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.place(name).is_some()
    }

    /// Returns all tensor names in alphabetical order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.places.keys().map(|name| format!("{}{name}", self.prefix)).collect();
        names.sort_unstable();
        names
    }

    /// Returns the total number of float values in the files.
    #[must_use]
    pub fn parameter_count(&self) -> u64 {
        self.files.iter().map(|(_, source)| source.parameter_count()).sum()
    }

    /// Reads a tensor into host memory, in the file's dtype. The tensor must have this shape and contain only finite
    /// floats.
    ///
    /// # Errors
    /// When the tensor is missing, has another shape, does not hold floats, or contains NaN or infinity.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let (tensor, path) = self.read(name, shape)?;
        let name = self.own_name(name);
        if !tensor.dtype().is_float() {
            let found = format!("{:?}", tensor.dtype());
            return Err(LoadError::TensorDtype {
                name: name.to_owned(),
                found,
                path: path.to_owned(),
            });
        }
        if tensor.dims() != shape {
            return Err(LoadError::TensorShape {
                name: name.to_owned(),
                found: tensor.dims().to_vec(),
                expected: shape.to_vec(),
                path: path.to_owned(),
            });
        }
        if !is_finite(&tensor).map_err(|error| unreadable(path, &error))? {
            return Err(LoadError::NonFinite { name: name.to_owned(), path: path.to_owned() });
        }
        Ok(tensor)
    }

    /// Returns a digest of the names, shapes, dtypes and values of all tensors under `prefix`. Two digests are equal
    /// exactly when all of these are equal. The exception is f64 values, which are compared after rounding to f32.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn fingerprint(&self, prefix: &str) -> Result<[u8; 32], LoadError> {
        let mut digest = Sha256::new();
        for name in self.names() {
            if !name.starts_with(prefix) {
                continue;
            }
            let (tensor, path) = self.read(&name, &[])?;
            digest.update(format!("{name} {:?} {:?}\n", tensor.dtype(), tensor.dims()));
            update_with_values(&mut digest, &tensor).map_err(|error| unreadable(path, &error))?;
        }
        Ok(digest.finalize().into())
    }

    /// Returns the location of the tensor with this name in a whole model.
    fn place(&self, name: &str) -> Option<&TensorLocation> {
        self.places.get(name.strip_prefix(self.prefix.as_str())?)
    }

    /// Returns the name that a tensor of this name in a whole model has in these files.
    fn own_name<'n>(&self, name: &'n str) -> &'n str {
        name.strip_prefix(self.prefix.as_str()).unwrap_or(name)
    }

    /// Reads the tensor without checking it, and returns it with the path of its file. If the tensor is missing, the error
    /// gives `expected` as its shape.
    fn read(&self, name: &str, expected: &[usize]) -> Result<(Tensor, &Path), LoadError> {
        let missing = || LoadError::MissingTensor {
            name: self.own_name(name).to_owned(),
            expected: expected.to_vec(),
            files: self.file_names(),
        };
        let TensorLocation { file, name } = self.place(name).ok_or_else(missing)?;
        let (path, source) = &self.files[*file];
        let tensor = match source {
            TensorFile::Mapped(file) => file
                .get(name)
                .and_then(|view| {
                    let tensor = view.load(&Device::Cpu);
                    release(view.data());
                    tensor
                })
                .map_err(|error| unreadable(path, &error)),
            TensorFile::InBinary(file) => file
                .get(name)
                .and_then(|view| view.load(&Device::Cpu))
                .map_err(|error| unreadable(path, &error)),
            TensorFile::Pickle(file) => {
                file.read(name).map_err(|error| of_torch(path, error))?.ok_or_else(missing)
            }
            TensorFile::TensorFlow(file) => {
                file.read(name).map_err(|error| of_tensorflow(path, error))?.ok_or_else(missing)
            }
        };
        Ok((tensor?, path))
    }

    fn file_names(&self) -> String {
        let names: Vec<_> = self.files.iter().map(|(path, _)| path.display().to_string()).collect();
        names.join(", ")
    }
}

impl TensorFile {
    fn names(&self) -> Vec<String> {
        match self {
            Self::Mapped(file) => file.tensors().into_iter().map(|(name, _)| name).collect(),
            Self::InBinary(file) => file.tensors().into_iter().map(|(name, _)| name).collect(),
            Self::Pickle(file) => file.names().map(str::to_owned).collect(),
            Self::TensorFlow(file) => file.names().map(str::to_owned).collect(),
        }
    }

    fn parameter_count(&self) -> u64 {
        match self {
            Self::Mapped(file) => floats(&file.tensors()),
            Self::InBinary(file) => floats(&file.tensors()),
            Self::Pickle(file) => file.float_count(),
            Self::TensorFlow(file) => file.float_count(),
        }
    }
}

/// Returns the current name of a tensor with an old name, or `None` if the name is still in use. Source: transformers
/// 5.23 `conversion_mapping.py`, "legacy". It renames only `LayerNorm.gamma` and `LayerNorm.beta`, no other `gamma` or
/// `beta`.
fn current_name(name: &str) -> Option<String> {
    let renamed = |old, new| name.strip_suffix(old).map(|prefix| format!("{prefix}{new}"));
    renamed("LayerNorm.gamma", "LayerNorm.weight")
        .or_else(|| renamed("LayerNorm.beta", "LayerNorm.bias"))
}

/// Returns the number of float values in these tensors.
fn floats(tensors: &[(String, TensorView<'_>)]) -> u64 {
    let is_float =
        |view: &TensorView<'_>| DType::try_from(view.dtype()).is_ok_and(|dtype| dtype.is_float());
    let views = tensors.iter().map(|(_, view)| view).filter(|view| is_float(view));
    views.map(|view| view.shape().iter().product::<usize>() as u64).sum()
}

fn open_safetensors(file: &File) -> Result<TensorFile, LoadError> {
    match file {
        File::OnDisk(path) => open_mapped(path),
        File::InBinary { bytes, .. } => SliceSafetensors::new(bytes)
            .map(TensorFile::InBinary)
            .map_err(|_| unusable(file.path(), safetensors_problem(bytes))),
    }
}

/// Returns the first bytes of a file, enough to recognise its format, or the whole file if it is shorter.
///
/// # Errors
/// `Read` if the file cannot be read; `LfsPointer` if it is a Git LFS pointer.
fn beginning(path: &Path) -> Result<Vec<u8>, DocumentError> {
    let read_error = |source| DocumentError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(read_error)?;
    let mut bytes = Vec::new();
    file.take(LFS_POINTER.len() as u64).read_to_end(&mut bytes).map_err(read_error)?;
    if bytes == LFS_POINTER {
        return Err(DocumentError::LfsPointer { path: path.to_owned() });
    }
    Ok(bytes)
}

fn open_mapped(path: &Path) -> Result<TensorFile, LoadError> {
    let beginning = beginning(path)?;
    // SAFETY: the mapping is read only while the model loads, and every tensor is copied out of it. The header check of
    // safetensors has verified that the file is as long as its tensors need. If another process truncated the file
    // while the model loads, our process would be killed. This is acceptable because weight files are not edited in
    // place.
    #[expect(unsafe_code, reason = "mapping a file is unsafe by nature")]
    let file = unsafe { MmapedSafetensors::new(path) };
    let file = file.map_err(|error| match os_error(error) {
        Some(source) => DocumentError::Read { path: path.to_owned(), source }.into(),
        None => unusable(path, safetensors_problem(&beginning)),
    })?;
    Ok(TensorFile::Mapped(file))
}

/// Gives back the memory of these bytes of a mapped file, which have been copied. Otherwise the whole file would stay in memory
/// beside the packed weights until the model is loaded. If the bytes are read again, the system reads them from the file again.
fn release(bytes: &[u8]) {
    #[cfg(target_os = "linux")]
    {
        let page = rustix::param::page_size();
        let skipped = bytes.as_ptr().align_offset(page);
        let length = bytes.len().saturating_sub(skipped) / page * page;
        if length == 0 {
            return;
        }
        let start = bytes[skipped..].as_ptr().cast_mut().cast();
        // SAFETY: the range consists of whole pages within `bytes`, which are in a private mapping of a file that is only
        // read. Dropping such pages does not change their content.
        #[expect(unsafe_code, reason = "part of the mapping of a file")]
        let released =
            unsafe { rustix::mm::madvise(start, length, rustix::mm::Advice::LinuxDontNeed) };
        // A system that refuses keeps the pages for longer.
        let _ = released;
    }
    #[cfg(not(target_os = "linux"))]
    let _ = bytes;
}

/// Returns the error of the operating system in an error of candle; `None` if the content of a file is at fault.
fn os_error(error: candle_core::Error) -> Option<std::io::Error> {
    use candle_core::Error;
    if let Error::WithPath { inner, .. } | Error::WithBacktrace { inner, .. } = error {
        return os_error(*inner);
    }
    if let Error::Io(source) = error { Some(source) } else { None }
}

fn open_pickle(path: &Path) -> Result<TensorFile, LoadError> {
    const ZIP: &[u8] = b"PK";
    // Pickled magic number at the start of the files that `torch.save` wrote before version 1.6
    // (`torch/serialization.py`, `MAGIC_NUMBER`).
    const OLD: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let beginning = beginning(path)?;
    if beginning.starts_with(OLD) {
        return Err(LoadError::OldPickle { path: path.to_owned() });
    }
    if beginning.is_empty() {
        return Err(unusable(path, EMPTY));
    }
    if !beginning.starts_with(ZIP) {
        return Err(unusable(path, "it was not written by torch.save; download it again"));
    }
    TorchFile::open(path).map(TensorFile::Pickle).map_err(|error| of_torch(path, error))
}

fn open_tensorflow(path: &Path) -> Result<TensorFile, LoadError> {
    if beginning(path)?.is_empty() {
        return Err(unusable(path, EMPTY));
    }
    TensorFlowFile::open(path)
        .map(TensorFile::TensorFlow)
        .map_err(|error| of_tensorflow(path, error))
}

const EMPTY: &str = "it is empty; download it again";
const DAMAGED: &str = "it is cut off or damaged; download it again";

/// Returns why a file with these first bytes cannot be read as safetensors. A safetensors file starts with a length in
/// eight bytes, followed by a JSON object of that length.
fn safetensors_problem(beginning: &[u8]) -> &'static str {
    match beginning {
        [] => EMPTY,
        [_, _, _, _, _, _, _, _, b'{', ..] => DAMAGED,
        _ => "its format does not match its name; download it again",
    }
}

fn unusable(path: &Path, detail: &str) -> LoadError {
    LoadError::WeightsFile { path: path.to_owned(), detail: detail.to_owned() }
}

fn of_torch(path: &Path, error: TorchError) -> LoadError {
    if let TorchError::Io(source) = error {
        return DocumentError::Read { path: path.to_owned(), source }.into();
    }
    unusable(path, &error.to_string())
}

fn of_tensorflow(path: &Path, error: TensorFlowError) -> LoadError {
    if let TensorFlowError::Io(source) = error {
        return DocumentError::Read { path: path.to_owned(), source }.into();
    }
    unusable(path, &error.to_string())
}

fn unreadable(path: &Path, error: &candle_core::Error) -> LoadError {
    LoadError::WeightsFile { path: path.to_owned(), detail: error.to_string() }
}

fn is_finite(tensor: &Tensor) -> candle_core::Result<bool> {
    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    // The sum of x * 0 is NaN if any x is not finite. Compilers vectorise this sum, but they would not vectorise a
    // search.
    Ok(values.chunks(4096).all(|chunk| chunk.iter().map(|value| value * 0.0).sum::<f32>() == 0.0))
}

/// Adds the values to the digest: integers as i64, floats as the bit patterns of their f32 values. f16 and bf16 values
/// keep their exact value in f32, and `fingerprint` has already added the dtype, so two tensors of different dtypes do
/// not get the same digest. f64 values are rounded.
fn update_with_values(digest: &mut Sha256, tensor: &Tensor) -> candle_core::Result<()> {
    if !tensor.dtype().is_float() {
        let values = tensor.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
        for value in values {
            digest.update(value.to_le_bytes());
        }
        return Ok(());
    }
    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let mut bytes = Vec::with_capacity(4 * 4096);
    for chunk in values.chunks(4096) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
        digest.update(&bytes);
    }
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_mapped_is_not_called_damaged() {
        // Files of /proc can be read, but not mapped.
        let error = CheckpointWeights::open(&WeightFiles::Safetensors(vec![
            PathBuf::from("/proc/self/status").into(),
        ]));
        let error = error.unwrap_err();
        assert_eq!(error.to_string(), "cannot read /proc/self/status");
        assert!(!error.is_content());
    }
}
