//! Conversion of a pickled checkpoint that transformers wrote.

use std::path::{Path, PathBuf};

use blip_server::hub::{CheckpointFiles, HubError, WeightFiles, convert_to_safetensors};
use safetensors::{Dtype, SafeTensors};

/// A copy of the fixture whose weights are pickled.
fn pickled() -> tempfile::TempDir {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vqa-varied");
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

fn weights(directory: &Path) -> WeightFiles {
    CheckpointFiles::resolve(directory).unwrap().weights
}

fn names(directory: &Path) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names
}

#[test]
fn every_tensor_keeps_name_shape_dtype_and_values() {
    let checkpoint = pickled();
    let pickle = checkpoint.path().join("pytorch_model.bin");
    assert_eq!(weights(checkpoint.path()), WeightFiles::Pickle(vec![pickle.clone()]));
    let converted = convert_to_safetensors(checkpoint.path()).unwrap();
    assert_eq!(weights(checkpoint.path()), WeightFiles::Safetensors(vec![converted.path.clone()]));

    let bytes = std::fs::read(&converted.path).unwrap();
    assert_eq!(bytes.len() as u64, converted.bytes);
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let originals = candle_core::pickle::read_all(&pickle).unwrap();
    assert_eq!(tensors.len(), originals.len());
    assert_eq!(converted.tensors.values().sum::<usize>(), originals.len());
    for (name, original) in originals {
        let tensor = tensors.tensor(&name).unwrap();
        assert_eq!(tensor.shape(), original.dims(), "{name}");
        if tensor.dtype() == Dtype::F32 {
            let values: Vec<f32> = original.flatten_all().unwrap().to_vec1().unwrap();
            let written: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            assert!(tensor.data() == written, "{name}");
        }
    }
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let format = metadata.metadata().as_ref().and_then(|metadata| metadata.get("format"));
    assert_eq!(format.map(String::as_str), Some("pt"), "transformers refuses files without it");
}

#[test]
fn there_is_nothing_to_convert_twice() {
    let checkpoint = pickled();
    convert_to_safetensors(checkpoint.path()).unwrap();
    let error = convert_to_safetensors(checkpoint.path()).unwrap_err();
    assert!(matches!(error, HubError::Convert { .. }), "{error}");
}

#[test]
fn a_damaged_pickle_leaves_no_file_behind() {
    let checkpoint = pickled();
    let pickle = checkpoint.path().join("pytorch_model.bin");
    let bytes = std::fs::read(&pickle).unwrap();
    std::fs::write(&pickle, &bytes[..bytes.len() / 2]).unwrap();
    let before = names(checkpoint.path());
    let error = convert_to_safetensors(checkpoint.path()).unwrap_err().to_string();
    assert!(error.contains("pytorch_model.bin"), "{error}");
    assert_eq!(names(checkpoint.path()), before);
}

#[test]
fn a_directory_without_weights_is_named() {
    let empty = tempfile::tempdir().unwrap();
    let error = convert_to_safetensors(empty.path()).unwrap_err();
    assert!(matches!(error, HubError::MissingFile { .. }), "{error}");
    let error = convert_to_safetensors(&empty.path().join("gone")).unwrap_err();
    assert!(matches!(error, HubError::NotADirectory { .. }), "{error}");
}

#[test]
fn a_planted_link_is_not_written_through() {
    let checkpoint = pickled();
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("precious");
    std::fs::write(&target, "precious").unwrap();
    let link = checkpoint.path().join("model.safetensors.incomplete");
    std::os::unix::fs::symlink(&target, link).unwrap();
    let converted = convert_to_safetensors(checkpoint.path()).unwrap();
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
    assert!(!converted.path.is_symlink());
}
