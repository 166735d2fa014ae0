//! The demo models: three small BLIP checkpoints that know synthetic scenes of emoji, as bytes in the binary.
//!
//! Bytes and names only; `app` turns them into models. `demo/README.md` is their model card, `demo/` has the scripts
//! that made them. The feature `demo`, on by default, puts them in; without it there are none.

/// A file below `demo/models/`.
#[cfg(feature = "demo")]
macro_rules! file {
    ($path:expr) => {
        DemoFile {
            path: concat!("demo/models/", $path),
            bytes: include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/demo/models/", $path)),
        }
    };
}

/// A model with its own documents in a folder of `demo/models/`.
#[cfg(feature = "demo")]
macro_rules! model_of {
    ($name:literal, $folder:literal, $weights:expr) => {
        DemoModel {
            name: $name,
            config: file!(concat!($folder, "/config.json")),
            preprocessor: file!(concat!($folder, "/preprocessor_config.json")),
            tokenizer: file!(concat!($folder, "/tokenizer.json")),
            tokenizer_config: file!(concat!($folder, "/tokenizer_config.json")),
            weights: &$weights,
        }
    };
}

#[cfg(feature = "demo")]
const VISION: DemoFile = file!("shared/vision.safetensors");
#[cfg(feature = "demo")]
const TEXT_ENCODER: DemoFile = file!("shared/text-encoder.safetensors");

/// One file of a demo model.
#[derive(Debug, Clone, Copy)]
pub struct DemoFile {
    /// Its path in the source tree.
    pub path: &'static str,
    /// Its content.
    pub bytes: &'static [u8],
}

/// One of the models.
#[derive(Debug, Clone, Copy)]
pub struct DemoModel {
    /// What requests call it, and what `--model` does.
    pub name: &'static str,
    /// `config.json`.
    pub config: DemoFile,
    /// `preprocessor_config.json`.
    pub preprocessor: DemoFile,
    /// `tokenizer.json`.
    pub tokenizer: DemoFile,
    /// `tokenizer_config.json`.
    pub tokenizer_config: DemoFile,
    /// Shards in safetensors form; those of one path are one file, stored once.
    pub weights: &'static [DemoFile],
}

/// The demo model of this name, where it is in the binary.
#[must_use]
pub fn model(name: &str) -> Option<&'static DemoModel> {
    MODELS.iter().find(|model| model.name == name)
}

/// Every demo model in the binary: of captions, of question answering, of retrieval.
#[cfg(feature = "demo")]
pub static MODELS: [DemoModel; 3] = [
    model_of!("demo-caption", "caption", [VISION, file!("caption/caption.safetensors")]),
    model_of!("demo-vqa", "vqa", [VISION, TEXT_ENCODER, file!("vqa/vqa.safetensors")]),
    model_of!(
        "demo-retrieval",
        "retrieval",
        [VISION, TEXT_ENCODER, file!("retrieval/retrieval.safetensors")]
    ),
];

/// Built without the feature `demo`: there are none.
#[cfg(not(feature = "demo"))]
pub static MODELS: [DemoModel; 0] = [];
