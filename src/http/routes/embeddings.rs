//! `POST /embeddings` and `/embeddings/batch`: an image, a text, or both as a vector.

use std::sync::Arc;

use axum::extract::{Extension, Request as HttpRequest, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::http::call::{AnswerParts, Endpoint};
use crate::http::convert::inference_failed;
use crate::http::error::{ApiError, Code};
use crate::http::extract::fields::{Field, ImageField, Text};
use crate::http::extract::request::requests;
use crate::http::image_args::ImageArg;
use crate::http::middleware::context::RequestContext;
use crate::http::models::Model;
use crate::http::openapi::{EXAMPLE_IMAGE, InferenceProblems};
use crate::http::reply::{self, BatchResponse, ImageAnswer};
use crate::http::sequences::{finite, wrong_output};
use crate::http::settings::Limits;
use crate::http::state::HttpState;
use crate::http::text;
use crate::task::{Embed, Embedding, PreparedImage, Role, Task, TaskOutput, TokenIds};

requests! {
    /// A vector wanted.
    #[schema(example = json!({"text": "two cats on a sofa"}))]
    single EmbeddingsRequest {}
    /// Many vectors wanted.
    #[schema(example = json!({"inputs": [{"text": "two cats"}, {"image": EXAMPLE_IMAGE}], "encoding_format": "base64"}))]
    batch EmbeddingsBatchRequest
    /// One vector wanted.
    input EmbeddingsInput {
        /// The image: a data URI, base64, the id of an image sent before, or a URL where the server fetches them.
        image: ImageField,
        /// The text.
        text: Text,
        /// What is embedded; by default what is given. `multimodal` takes both and lies in a space of its own.
        r#type: EmbeddingType,
        /// Divides the vector by its length; true by default.
        normalize: bool,
        /// Cuts too long a text instead of refusing it; false by default.
        truncate: bool,
        /// `float` (default), or `base64` of little-endian 32-bit floats.
        encoding_format: EncodingFormat,
    }
}

/// What a vector stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EmbeddingType {
    /// An image, in the space that it shares with texts.
    Image,
    /// A text, in the space that it shares with images.
    Text,
    /// A text seen together with an image.
    Multimodal,
}

/// How a vector is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EncodingFormat {
    /// A list of numbers.
    Float,
    /// Little-endian 32-bit floats in base64.
    Base64,
}

impl Field for EmbeddingType {}
impl Field for EncodingFormat {}

/// A vector.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingAnswer {
    /// What it stands for.
    #[schema(inline)]
    r#type: EmbeddingType,
    /// Its length.
    #[schema(example = 256, minimum = 1)]
    dimensions: usize,
    /// Its values.
    #[schema(inline)]
    embedding: Values,
    /// The image, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = ImageAnswer, required = false)]
    image: Option<ImageAnswer>,
}

/// The values of a vector in the format asked for.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Values {
    /// Numbers.
    Float(Vec<f32>),
    /// Base64.
    Base64(String),
}

/// The answer to one embeddings request.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingsResponse {
    /// The model that answered.
    #[schema(example = "demo-retrieval")]
    model: String,
    #[serde(flatten)]
    answer: EmbeddingAnswer,
}

/// An embeddings request, checked.
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
    type Input = EmbeddingsInput;
    type Tokens = Option<TokenIds>;
    type Answer = EmbeddingAnswer;

    fn plan(input: EmbeddingsInput, _: &Limits, _: &Model) -> Result<Self, ApiError> {
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

    fn rows(&self) -> usize {
        1
    }

    fn images(&self) -> Vec<ImageArg> {
        match &self.subject {
            Subject::Image(image) | Subject::Multimodal(image, _) => {
                vec![ImageArg::single(image.clone())]
            }
            Subject::Text(_) => Vec::new(),
        }
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

    fn task(&self, mut images: Vec<PreparedImage>, tokens: &Option<TokenIds>) -> Task {
        Task::Embed(match (images.pop(), tokens.clone()) {
            (Some(image), Some(text)) => Embed::Multimodal(image, text),
            (Some(image), None) => Embed::Image(image),
            (None, Some(text)) => Embed::Text(text),
            (None, None) => unreachable!("a plan has an image or a text"),
        })
    }

    fn answer(
        &self,
        parts: AnswerParts<'_, Option<TokenIds>>,
    ) -> Result<EmbeddingAnswer, ApiError> {
        let TaskOutput::Embed(raw) = parts.output else { return Err(wrong_output()) };
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
            image: parts.images.first().copied().map(ImageAnswer::from),
        })
    }
}

impl EmbeddingPlan {
    fn text(&self) -> Option<&Arc<str>> {
        match &self.subject {
            Subject::Image(_) => None,
            Subject::Text(text) | Subject::Multimodal(_, text) => Some(text),
        }
    }

    /// The vector as asked for, made of numbers.
    fn finished(&self, raw: Embedding) -> Result<Vec<f32>, ApiError> {
        for &value in raw.as_slice() {
            finite(value)?;
        }
        if !self.normalize {
            return Ok(raw.into_vec());
        }
        let normalized = raw.normalized().map_err(|_| {
            tracing::error!("the model gave a vector without a direction");
            inference_failed()
        })?;
        Ok(normalized.into_vec())
    }
}

/// What is to be embedded, from the type asked for and what was given.
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
            refused("text", "is not taken with \"type\": \"image\"")
        }
        (Some(EmbeddingType::Text), Some(_), Some(_)) => {
            refused("image", "is not taken with \"type\": \"text\"")
        }
    }
}

/// Little-endian 32-bit floats in base64.
fn packed(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

/// Turn an image or a text into a vector
///
/// Vectors of images and texts share one space: their dot product is the `cosine` of `/similarity`. With
/// `"type": "multimodal"` the text is read together with the image; those vectors have a space of their own.
#[utoipa::path(
    post,
    path = "/embeddings",
    operation_id = "embed_inputs",
    tag = "inference",
    request_body(content = EmbeddingsRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The vector.", body = EmbeddingsResponse, example = json!({
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
    reply::answer_single::<EmbeddingPlan, EmbeddingsRequest>(
        &state,
        &context,
        http,
        |mut request| (request.model.take(), request.into_input()),
    )
    .await
}

/// Turn many images and texts into vectors
///
/// Each input is answered in its place; a field beside `inputs` is a default for all of them. In a multipart form
/// each `image` file is one input.
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
    reply::answer_batch::<EmbeddingPlan, EmbeddingsBatchRequest>(
        &state,
        &context,
        http,
        |mut request| (request.model.take(), request.into_inputs(|_, _| ())),
    )
    .await
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
        let image = || Some(ImageField::Value("i".into()));
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
