//! Tests that models share byte-identical parts, on the demo checkpoints, which were exported with such parts.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device as CandleDevice, Tensor};

use super::{CPU_F32, files, fixtures};
use crate::engine::backend::{Backend as _, SinglePassRow};
use crate::model::ops::candle::CandleOps;
use crate::model::{BlipBackend, ModelSpec};
use crate::task::{EmbedOutput, ModelId, Pooling, TokenIds};

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

fn copy(source: &Path) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, directory.path().join(path.file_name().unwrap())).unwrap();
    }
    directory
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
    let directory = copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/models/retrieval"));
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

#[test]
fn a_vision_tower_alone_is_shared_with_a_model_that_has_it() {
    let specs = ["base", "vision", "text"].map(|name| spec(name, &fixtures().join(name)));
    let backend =
        BlipBackend::load(CPU_F32.candle_ops().unwrap(), &specs, CPU_F32, |_| {}).unwrap();
    assert_eq!(backend.towers.len(), 1);
    let [base, vision, text] = backend.models() else { panic!("three models") };
    assert_eq!(vision.vision, base.vision);
    assert_eq!((vision.text.is_some(), text.vision.is_some()), (false, false));
    assert_eq!(text.text, base.text);
}

#[test]
fn a_text_encoder_alone_may_lack_its_pooler() {
    let directory = copy(&fixtures().join("text"));
    let path = directory.path().join("model.safetensors");
    let mut tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load(&path, &CandleDevice::Cpu).unwrap();
    tensors.retain(|name, _| !name.starts_with("pooler."));
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let specs = [spec("whole", &fixtures().join("text")), spec("text", directory.path())];
    let mut backend =
        BlipBackend::load(CPU_F32.candle_ops().unwrap(), &specs, CPU_F32, |_| {}).unwrap();
    let poolers: Vec<bool> =
        backend.models().iter().map(|info| info.text_towers().has_pooler).collect();
    assert_eq!(poolers, [true, false]);
    let mut embed = |model, pooling| {
        let output = EmbedOutput { pooling, layer: None };
        let row = SinglePassRow::EmbedText { text: TokenIds::new([3, 4, 5]), output };
        backend.run_single_pass(ModelId(model), &[row])
    };
    assert!(embed(0, Pooling::Pooler).is_ok() && embed(1, Pooling::Cls).is_ok());
    assert!(embed(1, Pooling::Pooler).is_err());
}
