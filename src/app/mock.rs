//! The models of `blip-server mock`: the scripted fake backend of the engine, with fixed latencies and meaningless
//! answers. Everything around the models is real: connections, limits, admission, queues, decoding, caches, metrics.
//! `App` calls [`load`] instead of `loading::load`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::compute::LoadedBackend;
use super::loading::LoadedModels;
use crate::config::Config;
use crate::demo;
use crate::engine::fake::{self, FakeBackend, FakeTime};
use crate::http::{Model, Models};
use crate::input::Tokenizer;
use crate::task::{ModelClass, ModelInfo, Preprocessing};

/// Latencies, sizes and the deliberate memory leak of the mock models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MockSettings {
    /// Fixed time that every backend call takes.
    pub unit_time: Duration,
    /// Additional time per encoded image.
    pub image_time: Duration,
    /// Additional time per token in a backend call.
    pub token_time: Duration,
    /// Width and height in pixels of the input images of the vision tower.
    pub image_size: u32,
    /// Number of tokens in every generated text, within the limits of the request.
    pub text_length: usize,
    /// Number of bytes to leak per encoded image. This shows whether the leak tests find a leak.
    pub leak_bytes: usize,
}

const MODELS: [(&str, ModelClass); 3] = [
    ("mock-caption", ModelClass::ConditionalGeneration),
    ("mock-vqa", ModelClass::QuestionAnswering),
    ("mock-retrieval", ModelClass::ImageTextRetrieval),
];

/// Creates one model per role, all sharing one vision tower, with the tokenizer of the demo models.
///
/// # Errors
/// When this binary was built without the demo models.
pub(super) fn load(config: &Config, settings: MockSettings) -> anyhow::Result<LoadedModels> {
    let demo = demo::MODELS.first().context(
        "the mock needs the tokenizer of the demo models, but this binary was built without them",
    )?;
    let tokenizer = Tokenizer::from_texts(
        Path::new(demo.tokenizer.path),
        std::str::from_utf8(demo.tokenizer.bytes)?,
        std::str::from_utf8(demo.tokenizer_config.bytes)?,
        &config.http.input,
    )?;
    let infos: Vec<ModelInfo> = (0..MODELS.len()).map(|id| info(id, settings.image_size)).collect();
    let (backend, control) = FakeBackend::new(infos.clone());
    control.sleep(FakeTime {
        fixed: settings.unit_time,
        image: settings.image_time,
        token: settings.token_time,
    });
    control.forget_calls();
    control.set_text_length(settings.text_length);
    control.set_leak(settings.leak_bytes);
    control.set_stop_token(tokenizer.sep_id());
    // The special tokens come first in the vocabulary, so the generated ids start after `[SEP]`.
    control.set_token_ids(tokenizer.sep_id() + 1..tokenizer.vocab_size() as u32);
    tracing::warn!(
        "serving mock models: answers are meaningless and take fixed times; everything else is real"
    );
    let tokenizer = Arc::new(tokenizer);
    let models = infos.into_iter().map(|info| Model { info, tokenizer: Arc::clone(&tokenizer) });
    Ok(LoadedModels {
        backend: LoadedBackend::Mock(backend),
        models: Models::new(models.collect()),
    })
}

fn info(id: usize, image_size: u32) -> ModelInfo {
    let (name, class) = MODELS[id];
    ModelInfo {
        source: "mock".to_owned(),
        preprocessing: Preprocessing::bicubic(image_size, image_size),
        ..fake::model(id, name, class, 0)
    }
}
