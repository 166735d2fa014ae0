//! Tests that models share byte-identical parts, on the demo checkpoints, which were exported with such parts.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device as CandleDevice, Tensor};

use super::{CPU_F32, files};
use crate::model::ops::candle::CandleOps;
use crate::model::{BlipBackend, ModelSpec};

const CAPTION: usize = 0;
const VQA: usize = 1;
const RETRIEVAL: usize = 2;

fn demo(folder: &str) -> ModelSpec {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/models").join(folder);
    spec(folder, &directory)
}

fn spec(name: &str, directory: &Path) -> ModelSpec {
    ModelSpec {
        name: name.to_owned(),
        source: name.to_owned(),
        revision: None,
        demo: false,
        files: files(directory),
        image_size: None,
    }
}

fn share_encoders(backend: &BlipBackend<CandleOps>, one: usize, other: usize) -> bool {
    let encoder = |model: usize| backend.models[model].text_encoder().unwrap();
    Arc::ptr_eq(encoder(one), encoder(other))
}

#[test]
fn demo_models_share_one_vision_tower_and_one_text_encoder() {
    let specs = ["caption", "vqa", "retrieval"].map(demo);
    let backend =
        BlipBackend::load(CPU_F32.candle_ops().unwrap(), &specs, CPU_F32, |_| {}).unwrap();
    assert_eq!(backend.towers.len(), 1);
    assert!(share_encoders(&backend, VQA, RETRIEVAL));
    assert!(backend.models[CAPTION].text_encoder().is_none());
}

#[test]
fn a_text_encoder_that_differs_in_one_value_is_not_shared() {
    let directory = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/models/retrieval");
    for entry in std::fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, directory.path().join(path.file_name().unwrap())).unwrap();
    }
    let shard = directory.path().join("text-encoder.safetensors");
    let mut tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load(&shard, &CandleDevice::Cpu).unwrap();
    let bias = tensors.get_mut("text_encoder.encoder.layer.0.output.dense.bias").unwrap();
    *bias = (&*bias + 1.0).unwrap();
    candle_core::safetensors::save(&tensors, &shard).unwrap();
    let specs = [demo("caption"), demo("vqa"), spec("retrieval", directory.path())];
    let backend =
        BlipBackend::load(CPU_F32.candle_ops().unwrap(), &specs, CPU_F32, |_| {}).unwrap();
    assert_eq!(backend.towers.len(), 1);
    assert!(!share_encoders(&backend, VQA, RETRIEVAL));
}
