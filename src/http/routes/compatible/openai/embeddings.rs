//! `POST /v1/embeddings`: embeds texts, and images as an extension.

use axum::extract::{Extension, Request as HttpRequest, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::embedding_query::{Embedded, EmbeddingInputs, EmbeddingQuery, SomeInputs};
use super::super::lenient;
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, Code};
use crate::http::inference::start::Start;
use crate::http::openapi::OpenAiErrors;
use crate::http::routes::embeddings::{EncodingFormat, Values, packed};
use crate::http::state::HttpState;

/// Request for embeddings. Fields that BLIP cannot use are ignored.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"model": "retrieval", "input": ["two cats", "a dog"]}))]
pub(crate) struct OpenAiEmbeddingsRequest {
    /// Name of a loaded model; `blip-server` for the default.
    #[serde(default)]
    model: Option<String>,
    /// A text, an image (a data URI, or an object `{"image": IMAGE_VALUE}`), or a list of up to 2,048 of these.
    #[schema(value_type = SomeInputs, inline)]
    input: EmbeddingInputs,
    /// `float` (default), or `base64` of little-endian 32-bit floats.
    #[serde(default)]
    #[schema(inline)]
    encoding_format: Option<EncodingFormat>,
    /// `text` (default), or `image` if the texts are image values. Not part of the OpenAI API.
    #[serde(default)]
    modality: Option<String>,
    /// Number of dimensions; only that of the model is accepted.
    #[serde(default, deserialize_with = "lenient::integer_or_null")]
    dimensions: Option<i64>,
}

/// One vector per input.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OpenAiEmbeddings {
    /// `list`.
    object: &'static str,
    /// The vectors, in the order of the inputs.
    data: Vec<OpenAiEmbedding>,
    /// Name of the model that answered.
    #[schema(example = "demo-retrieval")]
    model: String,
    /// Number of tokens.
    usage: EmbeddingUsage,
}

/// The vector of one input.
#[derive(Debug, Serialize, ToSchema)]
struct OpenAiEmbedding {
    /// `embedding`.
    object: &'static str,
    /// Index of the input.
    index: usize,
    /// The values, in the requested `encoding_format`.
    #[schema(inline)]
    embedding: Values,
}

/// Number of tokens that were read. Images do not count.
#[derive(Debug, Serialize, ToSchema)]
struct EmbeddingUsage {
    /// Tokens of all texts.
    prompt_tokens: usize,
    /// The same number.
    total_tokens: usize,
}

/// Embed texts and images (OpenAI)
///
/// The vectors of texts and images share one space. As an extension, an input may be an object with an image.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    operation_id = "create_embeddings",
    tag = "openai",
    request_body(content = OpenAiEmbeddingsRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "One vector per input, in order.", body = OpenAiEmbeddings),
        OpenAiErrors,
    ),
)]
pub(crate) async fn create_embeddings(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    let start = Start::new(&http, &state, &context)?;
    let body = start.read_any_type(http).await?;
    let request: OpenAiEmbeddingsRequest = start.json(&body).await?;
    let format = request.encoding_format.unwrap_or(EncodingFormat::Float);
    let inputs = match request.modality.as_deref() {
        None | Some("text") => request.input,
        Some("image") => request.input.into_images(),
        Some(_) => {
            let detail = "BLIP embeds text and image; leave it out, or use one of these";
            return Err(ApiError::field(Code::InvalidRequest, "modality", detail));
        }
    };
    let query = EmbeddingQuery {
        model: request.model,
        inputs,
        field: "input",
        dimensions: request.dimensions,
        truncate: false,
        normalize: None,
    };
    let Embedded { model, vectors, prompt_tokens, call } = query.embed(&start, body).await?;
    let data = vectors.into_iter().enumerate().map(|(index, vector)| OpenAiEmbedding {
        object: "embedding",
        index,
        embedding: match format {
            EncodingFormat::Float => Values::Float(vector),
            EncodingFormat::Base64 => Values::Base64(packed(&vector)),
        },
    });
    let answer = OpenAiEmbeddings {
        object: "list",
        data: data.collect(),
        model,
        usage: EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens },
    };
    call.respond(answer).await
}
