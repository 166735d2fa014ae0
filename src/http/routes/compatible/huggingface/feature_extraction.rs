//! `POST /hf/feature-extraction`: embeds texts, and images as an extension.

use axum::extract::{Extension, Request as HttpRequest, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::embedding_query::{Embedded, EmbeddingInputs, EmbeddingQuery, SomeInputs};
use super::super::lenient;
use super::inputs::model_of;
use crate::http::context::RequestContext;
use crate::http::error::ApiError;
use crate::http::inference::start::Start;
use crate::http::openapi::PlainErrors;
use crate::http::state::HttpState;

/// Request for embeddings. Fields that BLIP cannot use are ignored.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"inputs": ["two cats", "a dog"]}))]
pub(crate) struct HfFeaturesRequest {
    /// A text, an object `{"image": IMAGE_VALUE}`, or a list of up to 2,048 of these.
    #[serde(default)]
    #[schema(value_type = SomeInputs, inline, required = true)]
    inputs: EmbeddingInputs,
    /// Divides each vector by its Euclidean norm; by default true for models with a projection.
    #[serde(default)]
    normalize: Option<bool>,
    /// Truncates long texts instead of rejecting them; false by default.
    #[serde(default)]
    truncate: Option<bool>,
    /// Number of dimensions; only that of the model is accepted.
    #[serde(default, deserialize_with = "lenient::integer_or_null")]
    dimensions: Option<i64>,
}

/// One vector for one input, or a list of vectors for a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum HfFeatures {
    /// The vector of the only input.
    One(Vec<f32>),
    /// The vectors, in the order of the inputs.
    Many(Vec<Vec<f32>>),
}

/// Embed texts and images (Hugging Face)
///
/// The vectors of texts and images share one space. As an extension, an input may be an object with an image.
#[utoipa::path(
    post,
    path = "/hf/feature-extraction",
    operation_id = "extract_hf_features",
    tag = "huggingface",
    params(("model" = Option<String>, Query, description = "Name of a loaded model.")),
    request_body(content = HfFeaturesRequest, content_type = "application/json"),
    responses((status = 200, description = "A vector, or a list of vectors for a list.", body = Vec<Value>), PlainErrors),
)]
pub(crate) async fn extract_hf_features(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    let start = Start::new(&http, &state, &context)?;
    let model = model_of(&http);
    let body = start.read_any_type(http).await?;
    let request: HfFeaturesRequest = start.json(&body).await?;
    let is_list = request.inputs.is_list;
    let query = EmbeddingQuery {
        model,
        inputs: request.inputs,
        field: "inputs",
        dimensions: request.dimensions,
        truncate: request.truncate == Some(true),
        normalize: request.normalize,
    };
    let Embedded { vectors, call, .. } = query.embed(&start, body).await?;
    let features = if is_list {
        HfFeatures::Many(vectors)
    } else {
        HfFeatures::One(vectors.into_iter().next().unwrap_or_default())
    };
    call.respond(features).await
}
