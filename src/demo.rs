//! The demo models: three small BLIP checkpoints that are embedded in the binary. They were trained on synthetic scenes
//! of emoji.
//!
//! This file holds only bytes and names; `app` turns them into models. `demo/README.md` is their model card, and
//! `demo/` has the scripts that made them. Without the cargo feature `demo`, which is on by default, the binary has no
//! demo models.

/// Embeds a file below `demo/models/`.
#[cfg(feature = "demo")]
macro_rules! file {
    ($path:expr) => {
        DemoFile {
            path: concat!("demo/models/", $path),
            bytes: include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/demo/models/", $path)),
        }
    };
}

/// Builds a `DemoModel` whose JSON files are in the folder `$folder` of `demo/models/`.
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
    /// Path of the file in the source tree.
    pub path: &'static str,
    /// Content of the file, embedded at build time.
    pub bytes: &'static [u8],
}

/// A demo model with all its files.
#[derive(Debug, Clone, Copy)]
pub struct DemoModel {
    /// Name of the model in requests and for `--model`.
    pub name: &'static str,
    /// The model's `config.json`, as in a checkpoint.
    pub config: DemoFile,
    /// The model's `preprocessor_config.json`, as in a checkpoint.
    pub preprocessor: DemoFile,
    /// The model's `tokenizer.json`, as in a checkpoint.
    pub tokenizer: DemoFile,
    /// The model's `tokenizer_config.json`, as in a checkpoint.
    pub tokenizer_config: DemoFile,
    /// Weights as safetensors shards. Several models may have a shard with the same path; the binary holds it once.
    pub weights: &'static [DemoFile],
}

/// Returns the demo model of this name, if the binary contains it.
#[must_use]
pub fn model(name: &str) -> Option<&'static DemoModel> {
    MODELS.iter().find(|model| model.name == name)
}

/// Every demo model in the binary: one for captions, one for question answering, one for retrieval.
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

/// Empty, because the binary is built without the feature `demo`.
#[cfg(not(feature = "demo"))]
pub static MODELS: [DemoModel; 0] = [];
