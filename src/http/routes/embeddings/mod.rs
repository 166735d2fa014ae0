//! `POST /embeddings` and `/embeddings/batch`: embed an image, a text, or both together as one vector, or return hidden
//! states.

mod subject;

use std::sync::Arc;

use axum::extract::{Extension, Request as HttpRequest, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::subject::{Subject, check_available, output, subject};
use super::InferenceEndpoint;
use crate::http::context::RequestContext;
use crate::http::error::convert::inference_failed;
use crate::http::error::{ApiError, Code};
use crate::http::extract::fields::{Field, Int, Text};
use crate::http::extract::image_field::ImageField;
use crate::http::extract::request::requests;
use crate::http::inference::arity::OptionalImage;
use crate::http::inference::endpoint::{AnswerParts, Endpoint, PlanContext};
use crate::http::inference::image_args::ImageArg;
use crate::http::inference::reply;
use crate::http::inference::reply::{BatchResponse, ImageAnswer};
use crate::http::inference::sequences::finite;
use crate::http::inference::text::TextEncoder;
use crate::http::openapi::endpoint::{EndpointRules, FollowUp};
use crate::http::openapi::{EXAMPLE_IMAGE, InferenceProblems};
use crate::http::state::HttpState;
use crate::http::state::models::{Eligible, Model};
use crate::task::{
    Embed, EmbedOutput, EmbedSubject, Embedding, ModelInfo, Pooling, PreparedImage, StatesShape,
    TaskShape, TokenIds,
};

/// Describes the endpoint, for the router and the OpenAPI documents.
pub(crate) fn endpoint() -> InferenceEndpoint {
    InferenceEndpoint::new::<EmbeddingPlan>(
        OpenApiRouter::default().routes(routes!(embed_inputs)).routes(routes!(embed_inputs_batch)),
        EndpointRules {
            required: &[],
            distinct_lists: &[],
            conditions: vec![embedding_types(), layers()],
            defaults: json!({
                "type": "image",
                "pooling": "projection",
                "normalize": true,
                "truncate": false,
                "encoding_format": "float",
            }),
            image_id: None,
            follow_up: FollowUp { link: "embed", fields: json!({}) },
        },
    )
}

fn embedding_types() -> Value {
    json!({"oneOf": [
        {
            "title": "Image",
            "required": ["image"],
            "properties": {"type": {"const": "image"}, "text": false, "truncate": {"const": false}},
        },
        {
            "title": "Text",
            "required": ["text"],
            "properties": {"type": {"const": "text"}, "image": false},
        },
        {
            "title": "Multimodal",
            "required": ["image", "text", "type"],
            "properties": {"type": {"const": "multimodal"}},
        },
    ]})
}

/// Returns the condition that a layer is given only with the states of tokens.
fn layers() -> Value {
    json!({"anyOf": [
        {"properties": {"layer": false}},
        {"required": ["pooling"], "properties": {"pooling": {"enum": ["cls", "mean", "none"]}}},
    ]})
}

requests! {
    /// Request to embed one image or text.
    #[schema(example = json!({"text": "two cats on a sofa"}))]
    single EmbeddingsRequest {}
    /// Request to embed many images or texts.
    #[schema(example = json!({"inputs": [{"text": "two cats"}, {"image": EXAMPLE_IMAGE}], "encoding_format": "base64"}))]
    batch EmbeddingsBatchRequest
    /// One input of an embeddings batch.
    input EmbeddingsInput {
        /// Image value: base64, data URI, id of a cached image, or URL where fetching is enabled.
        image: ImageField,
        /// Text to embed; see also `truncate`.
        text: Text,
        /// What to embed. By default, whichever of `image` and `text` is given. `multimodal` requires both; its vectors
        /// lie in a separate vector space.
        r#type: EmbeddingType,
        /// How the states of all tokens become one vector; `projection` by default.
        pooling: PoolingName,
        /// Takes the states from this layer of `hidden_states`, 0 for the embeddings; by default `last_hidden_state`. Only
        /// with `cls`, `mean` and `none`.
        layer: Int<0, 1024>,
        /// Divides each vector by its Euclidean norm; by default true for `projection` and false otherwise.
        normalize: bool,
        /// Truncates long texts instead of rejecting them; false by default.
        truncate: bool,
        /// `float` (default), or `base64` of little-endian 32-bit floats.
        encoding_format: EncodingFormat,
    }
}

/// What a vector represents, and its vector space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EmbeddingType {
    /// An image, in the vector space shared with texts.
    Image,
    /// A text, in the vector space shared with images.
    Text,
    /// A text encoded with cross-attention to an image, in its own vector space.
    Multimodal,
}

/// How the states of all tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PoolingName {
    /// The projection into the vector space shared by images and texts. Only models for retrieval have it; for
    /// `multimodal`, a `BlipForImageTextRetrieval` has the state of the first token instead.
    Projection,
    /// The state of the first token.
    Cls,
    /// The mean of the states of all tokens.
    Mean,
    /// `pooler_output` of transformers: of every model for images, of a `BlipModel` for texts.
    Pooler,
    /// The states of all tokens, one after the other; `shape` says how many.
    None,
}

impl From<PoolingName> for Pooling {
    fn from(name: PoolingName) -> Self {
        match name {
            PoolingName::Projection => Self::Projection,
            PoolingName::Cls => Self::Cls,
            PoolingName::Mean => Self::Mean,
            PoolingName::Pooler => Self::Pooler,
            PoolingName::None => Self::None,
        }
    }
}

/// How a vector is encoded in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EncodingFormat {
    /// A JSON list of numbers.
    Float,
    /// A base64 string of little-endian 32-bit floats.
    Base64,
}

impl Field for EmbeddingType {}
impl Field for PoolingName {}
impl Field for EncodingFormat {}

/// The embedding of one input.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingAnswer {
    /// What the vector represents, which determines its vector space.
    #[schema(inline)]
    r#type: EmbeddingType,
    /// Number of values in a vector.
    #[schema(example = 256, minimum = 1)]
    dimensions: usize,
    /// Number of tokens and number of values of each, for `"pooling": "none"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<usize>, required = false, min_items = 2, max_items = 2, example = json!([577, 768]))]
    shape: Option<[usize; 2]>,
    /// The values, in the requested `encoding_format`.
    #[schema(inline)]
    embedding: Values,
    /// Id, size and format of the image; absent for a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = ImageAnswer, required = false)]
    image: Option<ImageAnswer>,
}

impl EmbeddingAnswer {
    /// Returns the values of an answer in the format `float`, for the answers of other APIs.
    pub(crate) fn into_values(self) -> Vec<f32> {
        match self.embedding {
            Values::Float(values) => values,
            Values::Base64(_) => unreachable!("other APIs ask for numbers"),
        }
    }
}

/// The values of a vector in the requested format.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Values {
    /// The values as a JSON list.
    Float(Vec<f32>),
    /// Little-endian 32-bit floats in base64.
    Base64(String),
}

/// The embedding and the model that computed it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingsResponse {
    /// Name of the model that answered.
    #[schema(example = "demo-retrieval")]
    model: String,
    #[serde(flatten)]
    answer: EmbeddingAnswer,
}

/// One validated input of `/embeddings` or `/embeddings/batch`.
#[derive(Debug, Clone)]
pub(crate) struct EmbeddingPlan {
    subject: Subject,
    output: EmbedOutput,
    normalize: bool,
    truncate: bool,
    format: EncodingFormat,
}

impl Endpoint for EmbeddingPlan {
    const TASK: &'static str = "embeddings";
    const MODELS: Eligible = Eligible::All;
    type Single = EmbeddingsRequest;
    type Batch = EmbeddingsBatchRequest;
    type Images = OptionalImage;
    type Tokens = Option<TokenIds>;
    type Task = Embed;
    type Answer = EmbeddingAnswer;

    fn plan(input: EmbeddingsInput, context: &PlanContext<'_>) -> Result<Self, ApiError> {
        let subject = subject(input.r#type, input.image, input.text.map(|text| text.0))?;
        let truncate = input.truncate.unwrap_or(false);
        if truncate && matches!(subject, Subject::Image(_)) {
            let detail = "has no effect without a text";
            return Err(ApiError::field(Code::InvalidRequest, "truncate", detail));
        }
        let output = output(input.pooling, input.layer)?;
        check_available(&subject, output, &context.model.info)?;
        Ok(Self {
            subject,
            output,
            normalize: input.normalize.unwrap_or(output.pooling == Pooling::Projection),
            truncate,
            format: input.encoding_format.unwrap_or(EncodingFormat::Float),
        })
    }

    fn shape(&self) -> TaskShape {
        TaskShape::embed(usize::from(self.image().is_some()))
    }

    fn images(&self) -> Option<ImageArg> {
        self.image().cloned().map(ImageArg::single)
    }

    fn text_bytes(&self) -> usize {
        self.text().map_or(0, |text| text.len())
    }

    fn tokenize(&self, texts: &TextEncoder) -> Result<Option<TokenIds>, ApiError> {
        let Some(words) = self.text() else { return Ok(None) };
        let max = texts.model().info.text_towers().max_tokens;
        if self.truncate {
            return texts.encode_truncated("text", words, max).map(Some);
        }
        texts.encode("text", words, max).map(Some)
    }

    fn token_counts(tokens: &Option<TokenIds>) -> Vec<usize> {
        tokens.iter().map(TokenIds::len).collect()
    }

    fn task(&self, image: &Option<PreparedImage>, tokens: &Option<TokenIds>) -> Embed {
        let subject = match (image.clone(), tokens.clone()) {
            (Some(image), Some(text)) => EmbedSubject::Multimodal(image, text),
            (Some(image), None) => EmbedSubject::Image(image),
            (None, Some(text)) => EmbedSubject::Text(text),
            (None, None) => unreachable!("a plan has an image or a text"),
        };
        Embed { subject, output: self.output }
    }

    fn answer_values(&self, tokens: &Option<TokenIds>, model: &Model) -> usize {
        // A vector without pooling is as wide as the hidden states; all others are small.
        match self.output.pooling {
            Pooling::None => self.vectors(model, tokens.as_ref()) * self.states(&model.info).width,
            Pooling::Projection | Pooling::Cls | Pooling::Mean | Pooling::Pooler => 0,
        }
    }

    fn answer(&self, parts: AnswerParts<'_, Self>) -> Result<EmbeddingAnswer, ApiError> {
        let vectors = self.vectors(parts.model, parts.tokens.as_ref());
        let values = self.finished(parts.output, vectors)?;
        let dimensions = values.len() / vectors;
        Ok(EmbeddingAnswer {
            r#type: match self.subject {
                Subject::Image(_) => EmbeddingType::Image,
                Subject::Text(_) => EmbeddingType::Text,
                Subject::Multimodal(..) => EmbeddingType::Multimodal,
            },
            dimensions,
            shape: (self.output.pooling == Pooling::None).then_some([vectors, dimensions]),
            embedding: match self.format {
                EncodingFormat::Float => Values::Float(values),
                EncodingFormat::Base64 => Values::Base64(packed(&values)),
            },
            image: parts.images.map(ImageAnswer::from),
        })
    }
}

impl EmbeddingPlan {
    fn image(&self) -> Option<&ImageField> {
        match &self.subject {
            Subject::Image(image) | Subject::Multimodal(image, _) => Some(image),
            Subject::Text(_) => None,
        }
    }

    fn text(&self) -> Option<&Arc<str>> {
        match &self.subject {
            Subject::Image(_) => None,
            Subject::Text(text) | Subject::Multimodal(_, text) => Some(text),
        }
    }

    /// Returns the dimensions of the tower that encodes the input.
    fn states(&self, model: &ModelInfo) -> StatesShape {
        match self.subject {
            Subject::Image(_) => model.vision_tower().states,
            Subject::Text(_) | Subject::Multimodal(..) => model.text_towers().states,
        }
    }

    /// Returns the number of vectors in the answer: one, or one for each token.
    fn vectors(&self, model: &Model, tokens: Option<&TokenIds>) -> usize {
        match (self.output.pooling, tokens) {
            (Pooling::None, None) => model.info.vision_tower().tokens,
            (Pooling::None, Some(tokens)) => tokens.len(),
            (Pooling::Projection | Pooling::Cls | Pooling::Mean | Pooling::Pooler, _) => 1,
        }
    }

    /// Normalises each of the `vectors` vectors if requested.
    ///
    /// # Errors
    /// `inference_failed` when a value is not finite, or when the vector must be normalised but its norm is zero or not
    /// finite.
    fn finished(&self, raw: Embedding, vectors: usize) -> Result<Vec<f32>, ApiError> {
        for &value in raw.as_slice() {
            finite(value)?;
        }
        if !self.normalize {
            return Ok(raw.into_vec());
        }
        let raw = raw.into_vec();
        let mut values = Vec::with_capacity(raw.len());
        for vector in raw.chunks_exact((raw.len() / vectors).max(1)) {
            let normalized = Embedding::new(vector.to_vec()).normalized().map_err(|_| {
                tracing::error!("the model returned a vector that cannot be normalised: its norm is zero or not finite");
                inference_failed()
            })?;
            values.extend(normalized.into_vec());
        }
        Ok(values)
    }
}

/// Encodes a vector as base64 of little-endian 32-bit floats.
pub(crate) fn packed(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

/// Embed an image or a text
///
/// Image and text vectors share one space: their dot product is the `cosine` of `/similarity`. With
/// `"type": "multimodal"`, the text is encoded together with the image; the resulting vectors have a space of their
/// own. `pooling` and `layer` return hidden states instead, of every model.
#[utoipa::path(
    post,
    path = "/embeddings",
    operation_id = "embed_inputs",
    tag = "inference",
    request_body(content = EmbeddingsRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The embedding.", body = EmbeddingsResponse, example = json!({
            "model": "demo-retrieval", "type": "text", "dimensions": 4, "embedding": [0.5, -0.5, 0.5, 0.5],
        })),
        InferenceProblems,
    ),
)]
pub(crate) async fn embed_inputs(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    reply::answer_single::<EmbeddingPlan>(&state, &context, http).await
}

/// Embed many images and texts
///
/// Returns one result per input, in the same order. A field next to `inputs` is the default for every input. In a
/// multipart form, each `image` file is one input.
#[utoipa::path(
    post,
    path = "/embeddings/batch",
    operation_id = "embed_inputs_batch",
    tag = "inference",
    request_body(content = EmbeddingsBatchRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "An answer or a problem for each input, in order.", body = BatchResponse<EmbeddingAnswer>),
        InferenceProblems,
    ),
)]
pub(crate) async fn embed_inputs_batch(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    reply::answer_batch::<EmbeddingPlan>(&state, &context, http).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_packed_as_little_endian_floats() {
        assert_eq!(packed(&[1.0, -2.0]), STANDARD.encode([0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]));
    }
}
