//! `GET /info`: the server's version, loaded models, limits and batching settings.

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::error::ApiError;
use crate::http::inference::reply;
use crate::http::settings::HttpSettings;
use crate::http::state::HttpState;
use crate::http::state::batching::BatchingInfo;
use crate::task::{ModelInfo, Role};

/// Version, models, limits and batching of this server.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Info {
    /// Version of this blip-server binary.
    #[schema(example = "0.1.0")]
    version: &'static str,
    /// The loaded models; the first of each role is its default.
    models: Vec<ModelDescription>,
    /// Limits of one request, from the settings.
    limits: LimitsDescription,
    /// Settings of admission control and batching.
    batching: BatchingInfo,
    /// Instruction set that the CPU kernels use.
    #[schema(example = "avx512-bf16")]
    cpu_isa: String,
    /// Order of the two passes of image resizing: `pillow13` or `horizontal_first` (setting `input.resize_order`).
    #[schema(example = "pillow13")]
    resize_order: &'static str,
}

/// A model that this server has loaded.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelDescription {
    /// Value for `model` in requests.
    #[schema(example = "blip-image-captioning-base")]
    name: String,
    /// `caption`, `vqa`, or `retrieval` (which serves `/similarity` and `/embeddings`).
    #[schema(example = "caption")]
    role: &'static str,
    /// Whether requests of its role without `model` use this model.
    default: bool,
    /// Hugging Face hub id, or local directory.
    #[schema(example = "Salesforce/blip-image-captioning-base")]
    source: String,
    /// Hub revision; absent for a directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    revision: Option<String>,
    /// Class of the model in `transformers`.
    #[schema(example = "BlipForConditionalGeneration")]
    class: &'static str,
    /// Data type of weights and activations.
    #[schema(example = "f32")]
    dtype: &'static str,
    /// Device that runs the model.
    #[schema(example = "cpu")]
    device: String,
    /// Number of dimensions of image and text embeddings.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = usize, required = false, example = 256)]
    dimensions: Option<usize>,
    /// Number of dimensions of multimodal embeddings.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = usize, required = false, example = 768)]
    multimodal_dimensions: Option<usize>,
    /// Input size of the vision tower: width and height in pixels.
    #[schema(example = 384)]
    image_size: u32,
    /// Pillow name of the filter that resizes images to this size.
    #[schema(example = "bicubic")]
    resample: &'static str,
    /// Token limit of a text.
    #[schema(example = 512)]
    max_text_tokens: usize,
    /// Number of parameters of the model.
    parameters: u64,
    /// Whether this is a built-in demo model, trained on synthetic scenes only.
    demo: bool,
    /// Limitation to know before trusting the answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, example = "knows synthetic scenes of emoji only")]
    note: Option<&'static str>,
}

/// The `note` of every demo model.
const DEMO_NOTE: &str = "knows synthetic scenes of emoji only, not photographs; for photographs, serve an official checkpoint, for example --model Salesforce/blip-image-captioning-base";

/// Limits of one request, from the settings `limits` and `input`. The limits on images, texts, questions and candidates
/// apply to a single request or one input of a batch.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LimitsDescription {
    max_body_bytes: u64,
    /// After base64 decoding.
    max_image_bytes: usize,
    max_image_pixels: u64,
    /// In pixels.
    max_image_side: u32,
    /// Memory to decode one image.
    max_decoded_bytes: u64,
    max_images: usize,
    max_texts: usize,
    max_questions: usize,
    max_candidates: usize,
    max_batch_inputs: usize,
    /// Text rows of one call: questions times beams (or times candidates), image-text pairs for `match`, or texts.
    max_rows: usize,
    /// Before tokenization.
    max_text_chars: usize,
    max_text_bytes: usize,
    max_new_tokens: usize,
    /// Number of HTTP frames of a body.
    max_body_frames: usize,
    /// Number of text parts in a form, or of fields in a query string.
    max_text_parts: usize,
    /// `x-request-timeout-ms` can only shorten it.
    deadline_ms: u64,
    fetch_enabled: bool,
}

/// Server version, loaded models and limits
#[utoipa::path(
    get,
    path = "/info",
    operation_id = "show_info",
    tag = "operations",
    responses(
        (status = 200, description = "Version, models, limits and batching.", body = Info),
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
