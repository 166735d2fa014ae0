//! `GET /info`: what this server is, what it has loaded, what it takes.

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::error::ApiError;
use crate::http::info::BatchingInfo;
use crate::http::reply;
use crate::http::settings::HttpSettings;
use crate::http::state::HttpState;
use crate::task::{ModelInfo, Role};

/// What this server is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Info {
    /// The server's version.
    #[schema(example = "0.1.0")]
    version: &'static str,
    /// The loaded models; the first of a role is its default.
    models: Vec<ModelDescription>,
    /// What one call may ask for.
    limits: LimitsDescription,
    /// How work is batched.
    batching: BatchingInfo,
    /// The instruction set that the CPU kernels use.
    #[schema(example = "x86-64-v4")]
    cpu_isa: String,
    /// Order of the two passes that resize a picture: `pillow13` or `horizontal_first` (the setting
    /// `input.resize_order`).
    #[schema(example = "pillow13")]
    resize_order: &'static str,
}

/// A loaded model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelDescription {
    /// What requests call it.
    #[schema(example = "blip-image-captioning-base")]
    name: String,
    /// The endpoints that it serves: `caption`, `vqa` or `retrieval`.
    #[schema(example = "caption")]
    role: &'static str,
    /// True for the model that answers requests of its role that name none.
    default: bool,
    /// Hub id or directory.
    #[schema(example = "Salesforce/blip-image-captioning-base")]
    source: String,
    /// The hub revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    revision: Option<String>,
    /// Its class in transformers.
    #[schema(example = "BlipForConditionalGeneration")]
    class: &'static str,
    /// Number format of weights and activations.
    #[schema(example = "f32")]
    dtype: &'static str,
    /// Where it runs.
    #[schema(example = "cpu")]
    device: String,
    /// Size of its image and text embeddings.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = usize, required = false, example = 256)]
    dimensions: Option<usize>,
    /// Size of its multimodal embeddings.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = usize, required = false, example = 768)]
    multimodal_dimensions: Option<usize>,
    /// Side of the pictures that its vision tower takes, in pixels.
    #[schema(example = 384)]
    image_size: u32,
    /// Filter that brings pictures to this size, by its name in Pillow.
    #[schema(example = "bicubic")]
    resample: &'static str,
    /// Most tokens of a text.
    #[schema(example = 512)]
    max_text_tokens: usize,
    /// Weights.
    parameters: u64,
    /// True for the demo models inside the binary, which know synthetic scenes only.
    demo: bool,
    /// What to know before its answers are trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, example = "knows synthetic scenes of emoji only")]
    note: Option<&'static str>,
}

/// Said of every demo model.
const DEMO_NOTE: &str = "knows synthetic scenes of emoji only, nothing of photographs; for those serve an official checkpoint, such as --model Salesforce/blip-image-captioning-base";

/// What one call may ask for.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LimitsDescription {
    max_body_bytes: u64,
    max_image_bytes: usize,
    max_image_pixels: u64,
    max_image_side: u32,
    max_decoded_bytes: u64,
    max_images: usize,
    max_texts: usize,
    max_questions: usize,
    max_candidates: usize,
    max_batch_inputs: usize,
    max_rows: usize,
    max_text_chars: usize,
    max_text_bytes: usize,
    max_new_tokens: usize,
    max_body_frames: usize,
    max_text_parts: usize,
    deadline_ms: u64,
    /// Image values may be `https://` addresses.
    fetch_enabled: bool,
}

/// What this server is and takes
#[utoipa::path(
    get,
    path = "/info",
    operation_id = "show_info",
    tag = "operations",
    responses(
        (status = 200, description = "Version, models, limits, batching.", body = Info),
        crate::http::openapi::NotReadyProblem,
    ),
)]
pub(crate) async fn show_info(State(state): State<HttpState>) -> Result<Response, ApiError> {
    let services = state.services()?;
    let mut defaults: Vec<Role> = Vec::new();
    let models = services.models.iter().map(|model| {
        let role = model.info.role();
        let default = !defaults.contains(&role);
        defaults.push(role);
        describe(&model.info, default)
    });
    reply::json(&Info {
        version: env!("CARGO_PKG_VERSION"),
        models: models.collect(),
        limits: limits(state.settings(), services.fetcher.is_some()),
        batching: services.batching.clone(),
        cpu_isa: services.cpu_isa.clone(),
        resize_order: state.settings().input.resize_order.name(),
    })
}

fn describe(info: &ModelInfo, default: bool) -> ModelDescription {
    ModelDescription {
        name: info.name.clone(),
        role: info.role().name(),
        default,
        source: info.source.clone(),
        revision: info.revision.clone(),
        class: info.class.name(),
        dtype: info.dtype.name(),
        device: info.device.to_string(),
        dimensions: info.embedding_dimensions,
        multimodal_dimensions: info.multimodal_dimensions,
        image_size: info.preprocessing.width,
        resample: info.preprocessing.resample.name(),
        max_text_tokens: info.max_text_tokens,
        parameters: info.parameter_count,
        demo: info.demo,
        note: info.demo.then_some(DEMO_NOTE),
    }
}

fn limits(settings: &HttpSettings, fetch_enabled: bool) -> LimitsDescription {
    let (limits, input) = (&settings.limits, &settings.input);
    LimitsDescription {
        max_body_bytes: limits.max_body_bytes,
        max_image_bytes: input.max_image_bytes,
        max_image_pixels: input.max_pixels,
        max_decoded_bytes: input.max_decoded_bytes,
        max_image_side: input.max_side,
        max_images: limits.max_images,
        max_texts: limits.max_texts,
        max_questions: limits.max_questions,
        max_candidates: limits.max_candidates,
        max_batch_inputs: limits.max_batch_inputs,
        max_rows: limits.max_rows,
        max_text_chars: input.max_text_chars,
        max_text_bytes: input.max_text_bytes,
        max_new_tokens: limits.max_new_tokens,
        max_body_frames: limits.max_body_frames,
        max_text_parts: limits.max_text_parts,
        deadline_ms: settings.deadline.as_millis() as u64,
        fetch_enabled,
    }
}
