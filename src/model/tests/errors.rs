//! Tests the errors for checkpoints that cannot be loaded. Each error names the tensor or file, and says what was found
//! and what was expected.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device as CandleDevice, Tensor};

use super::{CPU_F32, fixtures, spec};
use crate::model::{BlipBackend, LoadError};

/// Loads a copy of `retrieval` whose tensors were modified by `change`.
fn changed(
    directory: &Path,
    change: impl FnOnce(&mut HashMap<String, Tensor>),
) -> Result<(), LoadError> {
    let source = fixtures().join("retrieval");
    for name in ["config.json", "preprocessor_config.json"] {
        std::fs::copy(source.join(name), directory.join(name)).unwrap();
    }
    let weights = source.join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(weights, &CandleDevice::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, directory.join("model.safetensors")).unwrap();
    let mut spec = spec("retrieval");
    spec.files = super::files(directory);
    BlipBackend::load(CPU_F32.candle_ops().unwrap(), &[spec], CPU_F32, |_| {}).map(|_| ())
}

fn error_of(change: impl FnOnce(&mut HashMap<String, Tensor>)) -> String {
    let directory = tempfile::tempdir().unwrap();
    let error = changed(directory.path(), change).unwrap_err().to_string();
    error.replace(&directory.path().display().to_string(), "DIR")
}

#[test]
fn an_unchanged_copy_loads() {
    let directory = tempfile::tempdir().unwrap();
    changed(directory.path(), |_| {}).unwrap();
}

#[test]
fn a_missing_tensor_is_named_with_its_shape_and_the_file() {
    let error = error_of(|tensors| drop(tensors.remove("itm_head.weight")));
    assert!(error.starts_with("tensor itm_head.weight [2, "), "{error}");
    assert!(error.contains("is missing from DIR/model.safetensors; the weights are"), "{error}");
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    let error = error_of(|tensors| {
        let wrong = Tensor::zeros((3, 5), DType::F32, &CandleDevice::Cpu).unwrap();
        tensors.insert("text_proj.weight".to_owned(), wrong);
    });
    assert!(
        error.contains("tensor text_proj.weight in DIR/model.safetensors has shape [3, 5]"),
        "{error}"
    );
    assert!(error.contains("the configuration implies [256, "), "{error}");
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    let error = error_of(|tensors| {
        let bias = &tensors["itm_head.bias"];
        let bad = (bias * f64::NAN).unwrap();
        tensors.insert("itm_head.bias".to_owned(), bad);
    });
    assert_eq!(error, "tensor itm_head.bias in DIR/model.safetensors holds NaN or infinite values");
}

#[test]
fn integers_where_floats_belong_are_refused() {
    let error = error_of(|tensors| {
        let integers = tensors["itm_head.bias"].to_dtype(DType::I64).unwrap();
        tensors.insert("itm_head.bias".to_owned(), integers);
    });
    assert_eq!(error, "tensor itm_head.bias in DIR/model.safetensors holds I64, floats are needed");
}

#[test]
fn a_file_cut_short_is_an_error_and_not_a_crash() {
    for (checkpoint, file) in
        [("retrieval", "model.safetensors"), ("vqa-varied", "pytorch_model.bin")]
    {
        let directory = tempfile::tempdir().unwrap();
        let source = fixtures().join(checkpoint);
        for entry in std::fs::read_dir(&source).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, directory.path().join(path.file_name().unwrap())).unwrap();
        }
        let bytes = std::fs::read(source.join(file)).unwrap();
        for part in [0, 7, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(directory.path().join(file), &bytes[..part]).unwrap();
            let mut spec = spec(checkpoint);
            spec.files = super::files(directory.path());
            let error = BlipBackend::load(CPU_F32.candle_ops().unwrap(), &[spec], CPU_F32, |_| {})
                .unwrap_err();
            let text = error.to_string();
            assert!(text.contains(file), "{checkpoint} cut to {part} bytes: {text}");
        }
    }
}

#[test]
fn an_unknown_class_lists_those_that_are_served() {
    for (config, words) in [
        (r#"{"architectures": ["BertModel"]}"#, ": architectures is [\"BertModel\"]; accepted: "),
        (r#"{"model_type": "blip"}"#, " has no architectures; accepted: "),
        (r#"{"architectures": []}"#, " has no architectures; accepted: "),
    ] {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.json"), config).unwrap();
        let mut spec = spec("retrieval");
        spec.files.config = directory.path().join("config.json").into();
        let error = BlipBackend::load(CPU_F32.candle_ops().unwrap(), &[spec], CPU_F32, |_| {})
            .unwrap_err()
            .to_string();
        let words = format!("config.json{words}BlipForConditionalGeneration");
        assert!(error.contains(&words), "{error}");
    }
}

/// Returns the error of loading a copy of `vqa-varied` in which one file has different content.
fn error_with(file: &str, content: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixtures().join("vqa-varied")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, directory.path().join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(directory.path().join(file), content).unwrap();
    let mut spec = spec("vqa-varied");
    spec.files = super::files(directory.path());
    let error = BlipBackend::load(CPU_F32.candle_ops().unwrap(), &[spec], CPU_F32, |_| {})
        .unwrap_err()
        .to_string();
    error.replace(&directory.path().display().to_string(), "DIR")
}

#[test]
fn a_git_lfs_pointer_is_called_that() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n";
    for file in ["config.json", "processor_config.json", "pytorch_model.bin"] {
        let expected = format!(
            "DIR/{file} is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`"
        );
        assert_eq!(error_with(file, pointer), expected);
    }
}

#[test]
fn the_error_for_a_pickle_of_an_old_torch_says_how_to_save_it_again() {
    // Before version 1.6, every file that `torch.save` wrote started with these bytes, a pickled magic number.
    let error = error_with("pytorch_model.bin", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.");
    assert!(
        error.starts_with(
            "DIR/pytorch_model.bin is not in the format of torch 1.6 or later; save it again"
        ),
        "{error}"
    );
}

#[test]
fn a_file_that_is_not_from_torch_gets_another_error_than_a_damaged_one() {
    let whole = std::fs::read(fixtures().join("vqa-varied/pytorch_model.bin")).unwrap();
    let cases: [(&[u8], &str); 3] = [
        (b"", "it is empty; download it again"),
        (
            b"<!doctype html><title>Not found</title>",
            "it was not written by torch.save; download it again",
        ),
        (&whole[..whole.len() / 2], "it is cut off or damaged; download it again"),
    ];
    for (content, detail) in cases {
        let expected = format!("DIR/pytorch_model.bin is not a readable weights file: {detail}");
        assert_eq!(error_with("pytorch_model.bin", content), expected);
    }
}
