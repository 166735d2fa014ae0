//! `GET /api/version`, `/api/tags`, `/api/ps` and `POST /api/show`: the server and its models. `POST /api/pull` is
//! refused.

use std::fmt::Write as _;

use axum::extract::{Extension, Request as HttpRequest, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::super::model_name;
use super::super::now;
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, Code};
use crate::http::inference::reply;
use crate::http::inference::start::Start;
use crate::http::openapi::PlainErrors;
use crate::http::state::HttpState;
use crate::task::{Dtype, ModelInfo, Role};

/// Expiry of a loaded model: never, which Ollama writes as a date in the far future.
const NEVER: &str = "2318-04-11T00:00:00Z";

/// Version of the server.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OllamaVersion {
    /// Version of this blip-server binary, not of Ollama.
    #[schema(example = "0.1.0")]
    version: &'static str,
}

/// The loaded models.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OllamaModels {
    /// The models, in the order of the configuration.
    models: Vec<OllamaModel>,
}

/// A loaded model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OllamaModel {
    /// Name of the model with the tag `latest`.
    #[schema(example = "demo-caption:latest")]
    name: String,
    /// The same name.
    model: String,
    /// Time at which the server started.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    modified_at: Option<String>,
    /// Time at which the model is unloaded: in the far future.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    expires_at: Option<&'static str>,
    /// Size of the weights in bytes.
    size: u64,
    /// Part of the size that lies in the memory of a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = u64, required = false)]
    size_vram: Option<u64>,
    /// SHA-256 of the source of the model and its revision, in hexadecimal digits.
    digest: String,
    /// Format and size of the model.
    details: OllamaDetails,
    /// `completion` and `vision`, or `embedding`.
    capabilities: Vec<&'static str>,
}

/// Format and size of a model.
#[derive(Debug, Serialize, ToSchema)]
struct OllamaDetails {
    /// Always empty.
    parent_model: &'static str,
    /// `safetensors`.
    format: &'static str,
    /// `blip`.
    family: &'static str,
    /// `blip`.
    families: [&'static str; 1],
    /// Number of parameters in millions.
    #[schema(example = "247M")]
    parameter_size: String,
    /// Data type of the weights.
    #[schema(example = "F32")]
    quantization_level: String,
}

/// Request for the details of a model.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"model": "caption"}))]
pub(crate) struct OllamaShowRequest {
    /// Name of the model.
    #[serde(default, alias = "name")]
    model: String,
}

/// The details of a model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OllamaShow {
    /// Where the weights come from.
    modelfile: String,
    /// Always empty.
    parameters: &'static str,
    /// Always `{{ .Prompt }}`.
    template: &'static str,
    /// Format and size of the model.
    details: OllamaDetails,
    /// Numbers of parameters, tokens and dimensions.
    #[schema(value_type = Object)]
    model_info: Value,
    /// `completion` and `vision`, or `embedding`.
    capabilities: Vec<&'static str>,
    /// Time at which the server started.
    modified_at: String,
}

/// Version of the server (Ollama)
#[utoipa::path(
    get,
    path = "/api/version",
    operation_id = "show_ollama_version",
    tag = "ollama",
    responses((status = 200, description = "The version.", body = OllamaVersion), PlainErrors),
)]
pub(crate) async fn show_ollama_version() -> Result<Response, ApiError> {
    reply::json(&OllamaVersion { version: env!("CARGO_PKG_VERSION") })
}

/// List the loaded models (Ollama)
#[utoipa::path(
    get,
    path = "/api/tags",
    operation_id = "list_ollama_models",
    tag = "ollama",
    responses((status = 200, description = "The loaded models.", body = OllamaModels), PlainErrors),
)]
pub(crate) async fn list_ollama_models(
    State(state): State<HttpState>,
) -> Result<Response, ApiError> {
    let models = state.services()?.models.iter().map(|model| OllamaModel {
        modified_at: Some(now::started_rfc3339()),
        ..OllamaModel::from(&model.info)
    });
    reply::json(&OllamaModels { models: models.collect() })
}

/// List the models in memory, which are all (Ollama)
#[utoipa::path(
    get,
    path = "/api/ps",
    operation_id = "list_running_ollama_models",
    tag = "ollama",
    responses((status = 200, description = "The loaded models.", body = OllamaModels), PlainErrors),
)]
pub(crate) async fn list_running_ollama_models(
    State(state): State<HttpState>,
) -> Result<Response, ApiError> {
    let models = state.services()?.models.iter().map(|model| OllamaModel {
        expires_at: Some(NEVER),
        size_vram: Some(match model.info.device {
            crate::task::Device::Cpu => 0,
            crate::task::Device::Cuda(_) => size(&model.info),
        }),
        ..OllamaModel::from(&model.info)
    });
    reply::json(&OllamaModels { models: models.collect() })
}

/// Describe a loaded model (Ollama)
#[utoipa::path(
    post,
    path = "/api/show",
    operation_id = "show_ollama_model",
    tag = "ollama",
    request_body(content = OllamaShowRequest, content_type = "application/json"),
    responses((status = 200, description = "The model.", body = OllamaShow), PlainErrors),
)]
pub(crate) async fn show_ollama_model(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    let start = Start::new(&http, &state, &context)?;
    let request: OllamaShowRequest = start.json(&start.read_any_type(http).await?).await?;
    let info = &model_name::find(&start.services().models, &request.model)?.info;
    let mut model_info = Map::new();
    model_info.insert("general.architecture".to_owned(), json!("blip"));
    model_info.insert("general.parameter_count".to_owned(), json!(info.parameter_count));
    if let Some(text) = &info.text {
        model_info.insert("blip.context_length".to_owned(), json!(text.max_tokens));
    }
    if let Some(dimensions) = info.embedding_dimensions {
        model_info.insert("blip.embedding_length".to_owned(), json!(dimensions));
    }
    let show = OllamaShow {
        modelfile: format!("FROM {}\n", info.source),
        parameters: "",
        template: "{{ .Prompt }}",
        details: OllamaDetails::from(info),
        model_info: Value::Object(model_info),
        capabilities: capabilities(info),
        modified_at: now::started_rfc3339(),
    };
    reply::json(&show)
}

/// Refuse to download a model (Ollama)
///
/// The models are chosen when the server starts. A loaded model is reported as present.
#[utoipa::path(
    post,
    path = "/api/pull",
    operation_id = "pull_ollama_model",
    tag = "ollama",
    request_body(content = OllamaShowRequest, content_type = "application/json"),
    responses((status = 200, description = "The model is loaded.", body = OllamaStatus), PlainErrors),
)]
pub(crate) async fn pull_ollama_model(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    let start = Start::new(&http, &state, &context)?;
    let request: OllamaShowRequest = start.json(&start.read_any_type(http).await?).await?;
    match model_name::find(&start.services().models, &request.model) {
        Ok(_) => reply::json(&OllamaStatus { status: "success" }),
        Err(error) => {
            let detail = format!("{}; a model is loaded only at the start (--model)", error.detail);
            Err(ApiError::new(Code::ModelNotFound, detail))
        }
    }
}

/// The end of a download.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OllamaStatus {
    /// `success`.
    status: &'static str,
}

impl From<&ModelInfo> for OllamaModel {
    fn from(info: &ModelInfo) -> Self {
        let name = format!("{}{}", info.name, model_name::LATEST);
        Self {
            model: name.clone(),
            name,
            modified_at: None,
            expires_at: None,
            size: size(info),
            size_vram: None,
            digest: digest(info),
            details: OllamaDetails::from(info),
            capabilities: capabilities(info),
        }
    }
}

impl From<&ModelInfo> for OllamaDetails {
    fn from(info: &ModelInfo) -> Self {
        Self {
            parent_model: "",
            format: "safetensors",
            family: "blip",
            families: ["blip"],
            parameter_size: format!("{}M", info.parameter_count.div_ceil(1_000_000)),
            quantization_level: info.dtype.name().to_uppercase(),
        }
    }
}

/// Returns the size of the weights in bytes. With int8, part of them is larger than one byte.
fn size(info: &ModelInfo) -> u64 {
    let bytes = match info.dtype {
        Dtype::F32 => 4,
        Dtype::Bf16 | Dtype::F16 => 2,
        Dtype::Int8 => 1,
    };
    info.parameter_count * bytes
}

fn digest(info: &ModelInfo) -> String {
    let source = format!("{}@{}", info.source, info.revision.as_deref().unwrap_or_default());
    let digest = Sha256::digest(source.as_bytes());
    digest.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn capabilities(info: &ModelInfo) -> Vec<&'static str> {
    match info.role() {
        Role::Caption | Role::Vqa => vec!["completion", "vision"],
        Role::Retrieval => vec!["embedding"],
    }
}
