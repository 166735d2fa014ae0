//! Converts `pytorch_model.bin` (or its shards) or `tf_model.h5` to `model.safetensors` in the same directory.
//!
//! The module `torch` of this crate reads the pickle without executing anything. Every tensor keeps its name, shape,
//! values and dtype. Integer tensors and duplicates of tied weights are converted too. The tensors of `tf_model.h5` get
//! the names and axes of PyTorch's state dict from the module `tensorflow`. Called by the command `convert`.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use safetensors::tensor::{Metadata, View};

use super::checkpoint::{find_weights, require_directory};
use super::{HubError, WeightFiles};
use crate::tensorflow::{TensorFlowError, TensorFlowFile};
use crate::torch::{TorchError, TorchFile};

/// Result of a conversion, for the command's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// Path of the new file.
    pub path: PathBuf,
    /// Size of the new file in bytes.
    pub bytes: u64,
    /// Number of tensors of each dtype.
    pub tensors: BTreeMap<String, usize>,
}

/// Converts the weights of a checkpoint directory. Holds one copy of all tensors in memory. Writes a temporary file
/// next to the target, reads all of it back, and only then renames it to the target.
///
/// # Errors
/// `NotADirectory`, `MissingFile` if there are no weights, `Convert` if there is nothing to do or a file is damaged,
/// `Io`.
pub fn convert_to_safetensors(directory: &Path) -> Result<Converted, HubError> {
    require_directory(directory)?;
    let (source, tensors) = match find_weights(directory)? {
        Some(WeightFiles::Pickle(mut files)) => {
            let tensors = read_pickles(&files)?;
            (files.swap_remove(0), tensors)
        }
        Some(WeightFiles::TensorFlow(file)) => {
            let tensors = read_tensorflow(&file)?;
            (file, tensors)
        }
        Some(WeightFiles::Safetensors(files)) => {
            return Err(refuse(
                &files[0],
                "it is already in safetensors format; nothing to convert".to_owned(),
            ));
        }
        None => {
            return Err(HubError::MissingFile {
                directory: directory.to_owned(),
                missing: "pytorch_model.bin or tf_model.h5".to_owned(),
                hint: "pass the directory of a checkpoint",
            });
        }
    };
    let target = directory.join("model.safetensors");
    let partial = directory.join("model.safetensors.incomplete");
    // Delete the file that an interrupted run may have left. If that file were a link, this run would write to another
    // file through it.
    match std::fs::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(HubError::io("delete", &partial)(error));
        }
        _ => {}
    }
    let written = write_verified(&tensors, &partial);
    if written.is_err() {
        // Ignore a failure to delete: the first error is the one to report, and the file may not exist.
        let _ = std::fs::remove_file(&partial);
    }
    let bytes = written?;
    // Copy the permissions of the source, so that the user of a container can read the new file, too.
    let permissions =
        std::fs::metadata(&source).map_err(HubError::io("read", &source))?.permissions();
    std::fs::set_permissions(&partial, permissions)
        .map_err(HubError::io("set the permissions of", &partial))?;
    std::fs::rename(&partial, &target).map_err(HubError::io("rename", &partial))?;
    let mut counts = BTreeMap::new();
    for tensor in tensors.values() {
        *counts.entry(tensor.dtype().as_str().to_owned()).or_insert(0) += 1;
    }
    Ok(Converted { path: target, bytes, tensors: counts })
}

fn read_pickles(files: &[PathBuf]) -> Result<BTreeMap<String, Tensor>, HubError> {
    let mut tensors = BTreeMap::new();
    for file in files {
        let failed = |error| {
            if let TorchError::Io(source) = error {
                return HubError::io("read", file)(source);
            }
            refuse(file, error.to_string())
        };
        let pickle = TorchFile::open(file).map_err(failed)?;
        for name in pickle.names() {
            let tensor = pickle
                .read(name)
                .map_err(failed)?
                .ok_or_else(|| refuse(file, format!("{name} is listed but missing")))?;
            if tensors.insert(name.to_owned(), tensor).is_some() {
                return Err(refuse(file, format!("{name} is in two shards")));
            }
        }
    }
    Ok(tensors)
}

fn read_tensorflow(file: &Path) -> Result<BTreeMap<String, Tensor>, HubError> {
    let failed = |error| {
        if let TensorFlowError::Io(source) = error {
            return HubError::io("read", file)(source);
        }
        refuse(file, error.to_string())
    };
    let weights = TensorFlowFile::open(file).map_err(failed)?;
    let mut tensors = BTreeMap::new();
    for name in weights.names() {
        let tensor = weights
            .read(name)
            .map_err(failed)?
            .ok_or_else(|| refuse(file, format!("{name} is listed but missing")))?;
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(tensors)
}

/// Writes the tensors, flushes them to the disk, and reads every tensor back. Returns the size of the file in bytes.
fn write_verified(tensors: &BTreeMap<String, Tensor>, path: &Path) -> Result<u64, HubError> {
    // transformers rejects files whose metadata names no format.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(metadata), path)
        .map_err(|error| refuse(path, error.to_string()))?;
    let io = |action| HubError::io(action, path);
    let file = File::open(path).map_err(io("open"))?;
    file.sync_all().map_err(io("flush"))?;
    let bytes = file.metadata().map_err(io("read"))?.len();
    read_back(&mut BufReader::new(file), tensors, path)?;
    Ok(bytes)
}

fn read_back(
    file: &mut impl Read,
    tensors: &BTreeMap<String, Tensor>,
    path: &Path,
) -> Result<(), HubError> {
    let io = |error| HubError::io("read", path)(error);
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(io)?;
    let length = usize::try_from(u64::from_le_bytes(length))
        .map_err(|_| refuse(path, "its header is larger than memory".to_owned()))?;
    let mut header = vec![0; length];
    file.read_exact(&mut header).map_err(io)?;
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|error| refuse(path, format!("its header cannot be read back: {error}")))?;
    if metadata.tensors().len() != tensors.len() {
        return Err(refuse(path, "it has a different number of tensors when read back".to_owned()));
    }
    let mut bytes = Vec::new();
    // `offset_keys` lists the tensors by offset, which is their order in the file.
    for name in metadata.offset_keys() {
        let info = metadata.info(&name).expect("offset_keys lists the tensors of info");
        bytes.resize(info.data_offsets.1 - info.data_offsets.0, 0);
        file.read_exact(&mut bytes).map_err(io)?;
        let same = tensors.get(&name).is_some_and(|tensor| {
            info.dtype == View::dtype(&tensor)
                && info.shape == tensor.dims()
                && bytes == *View::data(&tensor)
        });
        if !same {
            return Err(refuse(path, format!("{name} is different when read back")));
        }
    }
    Ok(())
}

fn refuse(path: &Path, reason: String) -> HubError {
    HubError::Convert { path: path.to_owned(), reason }
}
