//! What `blip-server mock` serves: the engine's scripted backend with fixed latencies. Everything around a model is the
//! real thing (connections, limits, admission, queues, decoding, caches, metrics); the answers mean nothing.

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

/// How a mock behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MockSettings {
    /// Time of every call of the backend.
    pub unit_time: Duration,
    /// Time of each image that is encoded.
    pub image_time: Duration,
    /// Time of each token.
    pub token_time: Duration,
    /// Side of the images that its tower takes, in pixels.
    pub image_size: u32,
    /// Tokens of every text that it writes, within the request's own limits.
    pub text_length: usize,
    /// Bytes that every encoded image leaves behind for good: what a search for leaks must find.
    pub leak_bytes: usize,
}

const MODELS: [(&str, ModelClass); 3] = [
    ("mock-caption", ModelClass::ConditionalGeneration),
    ("mock-vqa", ModelClass::QuestionAnswering),
    ("mock-retrieval", ModelClass::ImageTextRetrieval),
];

/// One model of each role on one tower, with the demo models' tokenizer.
pub(super) fn load(config: &Config, settings: MockSettings) -> anyhow::Result<LoadedModels> {
    let demo = demo::MODELS.first().context(
        "the mock takes its tokenizer from the demo models, which this binary was built without",
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
    // The special tokens come first in the vocabulary.
    control.set_token_ids(tokenizer.sep_id() + 1..tokenizer.vocab_size() as u32);
    tracing::warn!(
        "serving a mock: everything is real but the models, whose answers mean nothing and take fixed times"
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
