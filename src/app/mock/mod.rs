//! The models of `blip-server mock`: fixed latencies and meaningless answers. Everything around the models is real:
//! connections, limits, admission, queues, decoding, caches, metrics. `App` calls [`load`] instead of `loading::load`.
//!
//! - `settings`: latencies and sizes.
//! - `backend`: the backend that the engine runs.

pub(super) mod backend;
mod settings;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use self::backend::{MockBackend, MockVocabulary};
pub use self::settings::MockSettings;
use super::compute::{Backends, LoadedBackends};
use super::loading::LoadedModels;
use crate::config::Config;
use crate::demo;
use crate::engine::WorkerBackend;
use crate::http::{Model, Models};
use crate::input::{InputSettings, Tokenizer};
use crate::task::{
    Device, Dtype, ModelClass, ModelId, ModelInfo, Preprocessing, StatesShape, TextInfo, TowerId,
    VisionInfo,
};

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
    let tokenizer = tokenizer(&config.http.input)?;
    let infos: Vec<ModelInfo> =
        (0..MODELS.len()).map(|id| model(id, settings.image_size)).collect();
    let vocabulary = vocabulary(&tokenizer);
    let backend = || WorkerBackend {
        backend: MockBackend::new(infos.clone(), settings, vocabulary.clone()),
        rebuild: None,
    };
    let others = (1..settings.workers.get()).map(|_| backend()).collect();
    let backends = LoadedBackends::Mock(Backends { first: backend(), others });
    tracing::warn!(
        "serving mock models: answers are meaningless and take fixed times; everything else is real"
    );
    let tokenizer = Arc::new(tokenizer);
    let models =
        infos.iter().cloned().map(|info| Model { info, tokenizer: Some(Arc::clone(&tokenizer)) });
    Ok(LoadedModels { backends, models: Models::new(models.collect()) })
}

fn tokenizer(settings: &InputSettings) -> anyhow::Result<Tokenizer> {
    let demo = demo::MODELS.first().context(
        "the mock needs the tokenizer of the demo models, but this binary was built without them",
    )?;
    let tokenizer = Tokenizer::from_texts(
        Path::new(demo.tokenizer.path),
        std::str::from_utf8(demo.tokenizer.bytes)?,
        std::str::from_utf8(demo.tokenizer_config.bytes)?,
        settings,
    )?;
    Ok(tokenizer)
}

/// Returns the tokens to generate. Leaves out the special tokens, whose text is empty because `decode` skips them, and
/// BLIP's markers `[DEC]` and `[ENC]`, whose text starts with `[`.
fn vocabulary(tokenizer: &Tokenizer) -> MockVocabulary {
    let is_word = |&id: &u32| {
        let text = tokenizer.decode(&[id]);
        let is_marker = text.len() > 1 && text.starts_with('[');
        !text.is_empty() && !is_marker
    };
    let words = (0..tokenizer.vocab_size() as u32).filter(is_word).collect();
    MockVocabulary { stop: tokenizer.sep_id(), words }
}

/// Describes model `id` of [`MODELS`], for images of `image_size` x `image_size` pixels.
fn model(id: usize, image_size: u32) -> ModelInfo {
    let (name, class) = MODELS[id];
    ModelInfo {
        id: ModelId(id),
        name: name.to_owned(),
        class,
        source: "mock".to_owned(),
        revision: None,
        dtype: Dtype::F32,
        device: Device::Cpu,
        vision: Some(VisionInfo {
            tower: TowerId(0),
            preprocessing: Preprocessing::bicubic(image_size, image_size),
            states: StatesShape { layers: 1, width: 4 },
            tokens: 5,
        }),
        text: Some(TextInfo {
            states: StatesShape { layers: 1, width: 4 },
            max_tokens: 512,
            has_pooler: false,
        }),
        embedding_dimensions: Some(4),
        multimodal_dimensions: Some(4),
        logit_scale: None,
        parameter_count: 1,
        demo: false,
    }
}

#[cfg(all(test, feature = "demo"))]
mod tests {
    use super::*;

    #[test]
    fn mock_texts_consist_of_words_and_never_of_special_tokens() {
        let tokenizer = tokenizer(&InputSettings::default()).unwrap();
        let MockVocabulary { stop, words } = vocabulary(&tokenizer);
        assert_eq!(stop, tokenizer.sep_id());
        // 0 to 4 are [PAD], [UNK], [CLS], [SEP] and [MASK]; the last two ids are [DEC] and [ENC].
        assert!((0..5).contains(&stop) && (0..5).contains(&tokenizer.cls_id()));
        assert_eq!(words, (5..tokenizer.vocab_size() as u32 - 2).collect::<Vec<_>>());
        for id in words {
            let text = tokenizer.decode(&[id]);
            assert!(!text.is_empty() && !["[DEC]", "[ENC]"].contains(&&*text), "{id}: {text:?}");
        }
    }
}
