//! `GET /info`: the server's version, loaded models, limits and batching settings.
//!
//! Each field of [`LimitsDescription`], [`BulkLimits`] and [`BatchingInfo`] gets the value of the setting with the same key. To show
//! one more setting, add a field with its key. Settings without such a field are not shown.

use axum::extract::State;
use axum::response::Response;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::http::error::ApiError;
use crate::http::inference::reply;
use crate::http::settings::HttpSettings;
use crate::http::state::HttpState;
use crate::http::state::models::Eligible;
use crate::settings::Section;
use crate::task::{Device, ModelInfo};

/// Version, models, limits and batching of this server.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Info {
    /// Version of this blip-server binary.
    #[schema(example = "0.1.0")]
    version: &'static str,
    /// The loaded models. The first model of each role is the default model of this role.
    models: Vec<ModelDescription>,
    /// Limits of one request, from the settings.
    limits: LimitsDescription,
    /// Limits of `/bulk`, from the settings.
    bulk: BulkLimits,
    /// Settings of admission control and batching.
    batching: BatchingInfo,
    /// Workers that run the models: one for each GPU, or one on the CPU. `batching` holds for each of them.
    workers: Vec<WorkerDescription>,
    /// Instruction set that the CPU kernels use.
    #[schema(example = "avx512-bf16")]
    cpu_isa: String,
    /// Order of the two passes of image resizing: `pillow13` or `horizontal_first` (setting `input.resize_order`).
    #[schema(example = "pillow13")]
    resize_order: &'static str,
}

/// A worker. It runs all models on its device, and has a queue of its own.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WorkerDescription {
    /// Number of the worker: the label `worker` of metrics.
    #[schema(example = 0)]
    worker: usize,
    /// Device that runs its models.
    #[schema(example = "cuda:0")]
    device: String,
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
    /// Whether this model answers the requests for its role that name no `model`.
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
    /// Device that runs the model. With several GPUs, the first of them; `workers` lists all.
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
    /// Input size of the vision tower: width and height in pixels. Absent for a model without a vision tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = u32, required = false, example = 384)]
    image_size: Option<u32>,
    /// Pillow name of the filter that resizes images to this size.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, example = "bicubic")]
    resample: Option<&'static str>,
    /// Token limit of a text. Absent for a model without a text tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = usize, required = false, example = 512)]
    max_text_tokens: Option<usize>,
    /// Number of parameters of the model.
    parameters: u64,
    /// Whether this is a built-in demo model, trained on synthetic scenes only.
    demo: bool,
    /// Limitation of a demo model that affects how far its answers can be trusted; absent for other models.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, example = "knows synthetic scenes of emoji only")]
    note: Option<&'static str>,
}

/// The `note` of every demo model.
const DEMO_NOTE: &str = "knows synthetic scenes of emoji only, not photographs; for photographs, serve an official checkpoint, for example --model Salesforce/blip-image-captioning-base";

/// Limits of one request, from the settings `limits` and `input`. The limits on images, texts, questions and candidates
/// apply to a single request or one input of a batch.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct LimitsDescription {
    max_body_bytes: u64,
    /// Maximum size of one image file, after base64 decoding.
    max_image_bytes: usize,
    #[serde(alias = "max_pixels")]
    max_image_pixels: u64,
    /// Maximum width and height of one image, in pixels.
    #[serde(alias = "max_side")]
    max_image_side: u32,
    /// Maximum memory for decoding one image.
    max_decoded_bytes: u64,
    max_images: usize,
    max_texts: usize,
    max_questions: usize,
    max_candidates: usize,
    /// Maximum number of images or texts that one call of `/rank` ranks.
    max_rank_candidates: usize,
    max_batch_inputs: usize,
    /// A row is a sequence that a text model processes: one for each beam, sampled sequence, candidate answer,
    /// image-text pair (for `match`) or text.
    max_rows: usize,
    /// Maximum length of one text in characters, before tokenization.
    max_text_chars: usize,
    max_text_bytes: usize,
    max_new_tokens: usize,
    /// Maximum count of numbers in one answer: states of all tokens, attention weights, and tokens (each counts as three).
    max_embedding_values: usize,
    /// Maximum number of HTTP frames of a body.
    max_body_frames: usize,
    /// Maximum number of text parts in a form, or of fields in a query string.
    max_text_parts: usize,
    /// Time limit of a request, in milliseconds. The header `x-request-timeout-ms` can only shorten it.
    deadline_ms: u64,
    fetch_enabled: bool,
}

/// Limits of `/bulk`, from the settings `bulk`. They hold for each line, not for the body.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct BulkLimits {
    /// Maximum size of one line in bytes.
    max_line_bytes: usize,
    /// Maximum number of lines of one request that are worked on at a time.
    max_lines_in_flight: usize,
    /// Maximum bytes of answers that one request may hold for a client that does not read; then the server reads no further
    /// lines.
    max_held_bytes: usize,
    /// Maximum number of requests from which the server reads at a time; further requests wait for their turn.
    max_requests: usize,
    /// Time limit of a line, in milliseconds. Its `deadline_ms` can only shorten it.
    deadline_ms: u64,
    /// Maximum time without a line, and for which a client may neither send nor read, in milliseconds.
    idle_timeout_ms: u64,
}

/// Settings of admission control and batching.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct BatchingInfo {
    /// Maximum rows admitted at once; a row is a sequence, beam, candidate, image-text pair or text.
    capacity_rows: usize,
    /// Maximum bytes of request bodies and prepared pixels held by admitted requests.
    capacity_bytes: u64,
    /// Maximum estimated wait of an admitted request, in milliseconds.
    max_queue_wait_ms: u64,
    /// Maximum estimated time of one work unit (a vision batch or text step), in milliseconds.
    unit_time_ms: u64,
    /// How long an image or row may wait for a larger batch, in milliseconds.
    linger_ms: u64,
    /// Maximum images per vision batch.
    max_batch_images: usize,
    /// Maximum rows per step of the text model.
    max_batch_rows: usize,
    /// Maximum tokens per step of the text model.
    max_batch_tokens: usize,
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
    let models = services.models.iter().map(|model| {
        let of_role = Eligible::Role(model.info.role());
        let default = services.models.pick(of_role, None);
        describe(&model.info, default.is_ok_and(|default| default.info.id == model.info.id))
    });
    reply::json(&Info {
        version: env!("CARGO_PKG_VERSION"),
        models: models.collect(),
        limits: limits(state.settings(), services.fetcher.is_some()),
        bulk: pick(&[written(&state.settings().bulk)]),
        batching: pick(&[written(services.engine.settings())]),
        workers: workers(services.engine.devices()),
        cpu_isa: services.cpu_isa.clone(),
        resize_order: state.settings().input.resize_order.name(),
    })
}

fn workers(devices: impl Iterator<Item = Device>) -> Vec<WorkerDescription> {
    let described = devices.enumerate();
    described
        .map(|(worker, device)| WorkerDescription { worker, device: device.to_string() })
        .collect()
}

fn describe(info: &ModelInfo, default: bool) -> ModelDescription {
    let preprocessing = info.preprocessing();
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
        image_size: preprocessing.map(|preprocessing| preprocessing.width),
        resample: preprocessing.map(|preprocessing| preprocessing.resample.name()),
        max_text_tokens: info.text.as_ref().map(|text| text.max_tokens),
        parameters: info.parameter_count,
        demo: info.demo,
        note: info.demo.then_some(DEMO_NOTE),
    }
}

fn limits(settings: &HttpSettings, fetch_enabled: bool) -> LimitsDescription {
    let fetch = serde_json::json!({ "fetch_enabled": fetch_enabled });
    pick(&[written(settings), written(&settings.limits), written(&settings.input), fetch])
}

/// Returns the settings of one type as they are written in a settings file.
fn written(settings: &impl Section) -> Value {
    serde_json::to_value(settings).expect("settings are plain data")
}

/// Fills each field of `T` with the setting that has the same key.
///
/// # Panics
/// If `T` has a field for which there is no setting.
fn pick<T: DeserializeOwned>(sections: &[Value]) -> T {
    let settings = sections.iter().filter_map(Value::as_object).flatten();
    let settings: Map<String, Value> =
        settings.map(|(key, value)| (key.clone(), value.clone())).collect();
    T::deserialize(Value::Object(settings)).expect("every field has the key of a setting")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineSettings;

    #[test]
    fn limits_and_batching_are_the_settings_of_the_same_keys() {
        let mut settings = HttpSettings::default();
        settings.input.max_side = 77;
        settings.deadline = std::time::Duration::from_millis(1500);
        let limits = serde_json::to_value(limits(&settings, true)).unwrap();
        assert_eq!(limits["max_image_side"], 77);
        assert_eq!(limits["deadline_ms"], 1500);
        assert_eq!(limits["max_rows"], settings.limits.max_rows);
        assert_eq!(limits["fetch_enabled"], true);
        assert_eq!(limits["max_embedding_values"], 2_000_000);
        let bulk: BulkLimits = pick(&[written(&settings.bulk)]);
        let bulk = serde_json::to_value(bulk).unwrap();
        assert_eq!(bulk["max_line_bytes"], settings.bulk.max_line_bytes);
        assert_eq!(bulk["deadline_ms"], 600_000);
        // Every limit of these two sections is shown.
        for (shown, section) in
            [(&limits, written(&settings.limits)), (&bulk, written(&settings.bulk))]
        {
            for key in section.as_object().unwrap().keys() {
                assert!(shown.get(key).is_some(), "{key}");
            }
        }
        let engine = EngineSettings { max_batch_images: 3, ..EngineSettings::default() };
        let batching: BatchingInfo = pick(&[written(&engine)]);
        let batching = serde_json::to_value(batching).unwrap();
        assert_eq!((&batching["max_batch_images"], &batching["linger_ms"]), (&3.into(), &0.into()));
        assert_eq!(batching.as_object().unwrap().len(), 8, "the other settings are not shown");
    }
}
