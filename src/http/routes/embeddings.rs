//! `POST /embeddings` and `/embeddings/batch`: embed an image, a text, or both together as one vector.

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

use super::InferenceEndpoint;
use crate::http::context::RequestContext;
use crate::http::error::convert::inference_failed;
use crate::http::error::{ApiError, Code};
use crate::http::extract::fields::{Field, Text};
use crate::http::extract::image_field::ImageField;
use crate::http::extract::request::requests;
use crate::http::inference::arity::OptionalImage;
use crate::http::inference::endpoint::{AnswerParts, Endpoint, PlanContext};
use crate::http::inference::image_args::ImageArg;
use crate::http::inference::reply::{BatchResponse, ImageAnswer};
use crate::http::inference::sequences::finite;
use crate::http::inference::{reply, text};
use crate::http::openapi::endpoint::{EndpointRules, FollowUp};
use crate::http::openapi::{EXAMPLE_IMAGE, InferenceProblems};
use crate::http::state::HttpState;
use crate::http::state::models::Model;
use crate::task::{Embed, Embedding, PreparedImage, Role, TaskShape, TokenIds};

/// Describes the endpoint, for the router and the OpenAPI documents.
pub(crate) fn endpoint() -> InferenceEndpoint {
    InferenceEndpoint::new::<EmbeddingPlan>(
        OpenApiRouter::default().routes(routes!(embed_inputs)).routes(routes!(embed_inputs_batch)),
        EndpointRules {
            required: &[],
            distinct_lists: &[],
            conditions: vec![embedding_types()],
            defaults: json!({
                "type": "image",
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
        /// Divides the vector by its Euclidean norm; true by default.
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
impl Field for EncodingFormat {}

/// The embedding of one input.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingAnswer {
    /// What the vector represents, which determines its vector space.
    #[schema(inline)]
    r#type: EmbeddingType,
    /// Number of values in the vector.
    #[schema(example = 256, minimum = 1)]
    dimensions: usize,
    /// The values, in the requested `encoding_format`.
    #[schema(inline)]
    embedding: Values,
    /// Id, size and format of the image; absent for a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = ImageAnswer, required = false)]
    image: Option<ImageAnswer>,
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
    normalize: bool,
    truncate: bool,
    format: EncodingFormat,
}

#[derive(Debug, Clone)]
enum Subject {
    Image(ImageField),
    Text(Arc<str>),
    Multimodal(ImageField, Arc<str>),
}

impl Endpoint for EmbeddingPlan {
    const TASK: &'static str = "embeddings";
    const ROLE: Role = Role::Retrieval;
    type Single = EmbeddingsRequest;
    type Batch = EmbeddingsBatchRequest;
    type Images = OptionalImage;
    type Tokens = Option<TokenIds>;
    type Task = Embed;
    type Answer = EmbeddingAnswer;

    fn plan(input: EmbeddingsInput, _: &PlanContext<'_>) -> Result<Self, ApiError> {
        let subject = subject(input.r#type, input.image, input.text.map(|text| text.0))?;
        let truncate = input.truncate.unwrap_or(false);
        if truncate && matches!(subject, Subject::Image(_)) {
            let detail = "has no effect without a text";
            return Err(ApiError::field(Code::InvalidRequest, "truncate", detail));
        }
        Ok(Self {
            subject,
            normalize: input.normalize.unwrap_or(true),
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

    fn tokenize(&self, model: &Model) -> Result<Option<TokenIds>, ApiError> {
        let Some(words) = self.text() else { return Ok(None) };
        let max = model.info.max_text_tokens;
        if self.truncate {
            let ids = model.tokenizer.encode_truncated(words, max);
            return ids.map(Some).map_err(|error| ApiError::from(error).at("text"));
        }
        text::encode(model, "text", words, max).map(Some)
    }

    fn token_counts(tokens: &Option<TokenIds>) -> Vec<usize> {
        tokens.iter().map(TokenIds::len).collect()
    }

    fn task(&self, image: &Option<PreparedImage>, tokens: &Option<TokenIds>) -> Embed {
        match (image.clone(), tokens.clone()) {
            (Some(image), Some(text)) => Embed::Multimodal(image, text),
            (Some(image), None) => Embed::Image(image),
            (None, Some(text)) => Embed::Text(text),
            (None, None) => unreachable!("a plan has an image or a text"),
        }
    }

    fn answer(&self, parts: AnswerParts<'_, Self>) -> Result<EmbeddingAnswer, ApiError> {
        let raw = parts.output;
        let vector = self.finished(raw)?;
        Ok(EmbeddingAnswer {
            r#type: match self.subject {
                Subject::Image(_) => EmbeddingType::Image,
                Subject::Text(_) => EmbeddingType::Text,
                Subject::Multimodal(..) => EmbeddingType::Multimodal,
            },
            dimensions: vector.len(),
            embedding: match self.format {
                EncodingFormat::Float => Values::Float(vector),
                EncodingFormat::Base64 => Values::Base64(packed(&vector)),
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

    /// Normalises the vector if requested.
    ///
    /// # Errors
    /// `inference_failed` when a value is not finite, or when the vector must be normalised but its norm is zero or not
    /// finite.
    fn finished(&self, raw: Embedding) -> Result<Vec<f32>, ApiError> {
        for &value in raw.as_slice() {
            finite(value)?;
        }
        if !self.normalize {
            return Ok(raw.into_vec());
        }
        let normalized = raw.normalized().map_err(|_| {
            tracing::error!("the model returned a vector that cannot be normalised: its norm is zero or not finite");
            inference_failed()
        })?;
        Ok(normalized.into_vec())
    }
}

/// Decides what to embed from the requested type and the given fields.
fn subject(
    asked: Option<EmbeddingType>,
    image: Option<ImageField>,
    text: Option<Arc<str>>,
) -> Result<Subject, ApiError> {
    let refused =
        |field: &str, detail: &str| Err(ApiError::field(Code::InvalidRequest, field, detail));
    match (asked, image, text) {
        (None | Some(EmbeddingType::Image), Some(image), None) => Ok(Subject::Image(image)),
        (None | Some(EmbeddingType::Text), None, Some(text)) => Ok(Subject::Text(text)),
        (Some(EmbeddingType::Multimodal), Some(image), Some(text)) => {
            Ok(Subject::Multimodal(image, text))
        }
        (None, Some(_), Some(_)) => {
            refused("type", "image and text together need \"type\": \"multimodal\"")
        }
        (None, None, None) => refused("image", "image or text is needed"),
        (Some(EmbeddingType::Image | EmbeddingType::Multimodal), None, _) => {
            refused("image", "is needed for this type")
        }
        (Some(EmbeddingType::Text | EmbeddingType::Multimodal), _, None) => {
            refused("text", "is needed for this type")
        }
        (Some(EmbeddingType::Image), Some(_), Some(_)) => {
            refused("text", "is not allowed with \"type\": \"image\"")
        }
        (Some(EmbeddingType::Text), Some(_), Some(_)) => {
            refused("image", "is not allowed with \"type\": \"text\"")
        }
    }
}

/// Encodes a vector as base64 of little-endian 32-bit floats.
fn packed(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

/// Embed an image or a text
///
/// Image and text vectors share one space: their dot product is the `cosine` of `/similarity`. With
/// `"type": "multimodal"`, the text is encoded together with the image; the resulting vectors have a space of their
/// own.
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

    #[test]
    fn what_is_embedded_follows_from_what_is_given_and_asked() {
        let image = || Some(ImageField::Value(Arc::new("i".to_owned())));
        let text = || Some(Arc::from("t"));
        assert!(matches!(subject(None, image(), None), Ok(Subject::Image(_))));
        assert!(matches!(subject(None, None, text()), Ok(Subject::Text(_))));
        let both = subject(Some(EmbeddingType::Multimodal), image(), text());
        assert!(matches!(both, Ok(Subject::Multimodal(..))));
        let field = |result: Result<Subject, ApiError>| result.unwrap_err().errors[0].field.clone();
        assert_eq!(field(subject(None, image(), text())), "type");
        assert_eq!(field(subject(None, None, None)), "image");
        assert_eq!(field(subject(Some(EmbeddingType::Multimodal), image(), None)), "text");
        assert_eq!(field(subject(Some(EmbeddingType::Image), image(), text())), "text");
        assert_eq!(field(subject(Some(EmbeddingType::Text), image(), text())), "image");
    }
}
