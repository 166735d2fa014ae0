//! `GET /v1/models` and `/v1/models/{model}`: the loaded models.

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::super::model_name;
use super::super::now::started_seconds;
use crate::http::error::ApiError;
use crate::http::inference::reply;
use crate::http::openapi::OpenAiErrors;
use crate::http::state::HttpState;
use crate::http::state::models::Model;

/// The loaded models.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OpenAiModels {
    /// `list`.
    object: &'static str,
    /// The models, in the order of the configuration.
    data: Vec<OpenAiModel>,
}

/// A loaded model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OpenAiModel {
    /// Value for `model` in requests.
    #[schema(example = "demo-caption")]
    id: String,
    /// `model`.
    object: &'static str,
    /// Time at which the server started, in seconds since 1970.
    created: u64,
    /// `blip-server`.
    owned_by: &'static str,
}

impl From<&Model> for OpenAiModel {
    fn from(model: &Model) -> Self {
        let (id, created) = (model.info.name.clone(), started_seconds());
        Self { id, object: "model", created, owned_by: "blip-server" }
    }
}

/// List the loaded models (OpenAI)
#[utoipa::path(
    get,
    path = "/v1/models",
    operation_id = "list_models",
    tag = "openai",
    responses((status = 200, description = "The loaded models.", body = OpenAiModels), OpenAiErrors),
)]
pub(crate) async fn list_models(State(state): State<HttpState>) -> Result<Response, ApiError> {
    let data = state.services()?.models.iter().map(OpenAiModel::from).collect();
    reply::json(&OpenAiModels { object: "list", data })
}

/// Describe a loaded model (OpenAI)
///
/// The name may contain slashes, percent-encoded or not.
#[utoipa::path(
    get,
    path = "/v1/models/{*model}",
    operation_id = "retrieve_model",
    tag = "openai",
    params(("model" = String, Path, description = "Name of the model.", example = "demo-caption")),
    responses((status = 200, description = "The model.", body = OpenAiModel), OpenAiErrors),
)]
pub(crate) async fn retrieve_model(
    State(state): State<HttpState>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let model = model_name::find(&state.services()?.models, &name)?;
    reply::json(&OpenAiModel::from(model))
}
