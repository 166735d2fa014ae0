//! `POST /similarity` and `/similarity/batch`: score images against texts.

use std::sync::Arc;

use axum::extract::{Extension, Request as HttpRequest, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::InferenceEndpoint;
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, Code};
use crate::http::extract::fields::Text;
use crate::http::extract::image_field::ImageField;
use crate::http::extract::request::requests;
use crate::http::inference::arity::ManyImages;
use crate::http::inference::endpoint::{AnswerParts, Endpoint, PlanContext, check_count};
use crate::http::inference::image_args::ImageArg;
use crate::http::inference::reply::{BatchResponse, ImageAnswer};
use crate::http::inference::sequences::finite;
use crate::http::inference::text::TextEncoder;
use crate::http::inference::{reply, text};
use crate::http::openapi::conditions::exactly_one;
use crate::http::openapi::endpoint::{EndpointRules, FollowUp};
use crate::http::openapi::{EXAMPLE_IMAGE, InferenceProblems};
use crate::http::state::HttpState;
use crate::http::state::models::{Eligible, Model};
use crate::task::{PreparedImage, Role, Scores, Similarity, SimilarityCell, TaskShape, TokenIds};

/// Describes the endpoint, for the router and the OpenAPI documents.
pub(crate) fn endpoint() -> InferenceEndpoint {
    InferenceEndpoint::new::<SimilarityPlan>(
        OpenApiRouter::default()
            .routes(routes!(score_similarity))
            .routes(routes!(score_similarity_batch)),
        EndpointRules {
            required: &[],
            distinct_lists: &["scores"],
            conditions: vec![exactly_one("image", "images"), exactly_one("text", "texts")],
            defaults: json!({}),
            image_id: Some("$response.body#/images/0/id"),
            follow_up: FollowUp { link: "compare", fields: json!({"text": "two cats"}) },
        },
    )
}

requests! {
    /// Request for the scores of images against texts.
    #[schema(example = json!({"image": EXAMPLE_IMAGE, "texts": ["two cats on a blue background", "a red car"]}))]
    single SimilarityRequest {}
    /// Request for many sets of scores.
    #[schema(example = json!({"inputs": [{"image": EXAMPLE_IMAGE}], "texts": ["two cats on a blue background", "a red car"], "scores": ["cosine"]}))]
    batch SimilarityBatchRequest
    /// One input of a similarity batch.
    input SimilarityInput {
        /// A single image; use `images` for several.
        image: ImageField,
        /// One or more images. Each is one row of `scores` in the answer.
        images: Vec<ImageField>,
        /// A single text; use `texts` for several.
        text: Text,
        /// One or more texts. Each is one column of `scores` in the answer.
        texts: Vec<Text>,
        /// Scores to compute; by default `match` and `cosine`, as far as the model supports them.
        scores: Vec<ScoreName>,
    }
    alternatives image | images, text | texts
}

/// A kind of score to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ScoreName {
    /// Probability from the image-text matching head. This head is a cross-encoder, so the text model runs once for
    /// each pair of image and text.
    Match,
    /// Raw outputs of the image-text matching head, from the same pass as `match`. Only on request; `match` is their
    /// softmax, which saturates at 1.
    MatchLogits,
    /// Cosine similarity of the two embeddings, and the logit if the model has a logit scale.
    Cosine,
}

/// Scores of every image against every text.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SimilarityAnswer {
    /// The images, in request order.
    images: Vec<ImageAnswer>,
    /// `scores[i][j]` belongs to image `i` and text `j`.
    scores: Vec<Vec<ScoreCell>>,
}

/// Scores of one image and one text: those that were requested and that the model supports.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ScoreCell {
    /// Probability that the text describes the image.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = f32, required = false, example = 0.9971, minimum = 0, maximum = 1)]
    matching: Option<f32>,
    /// Outputs of the matching head before softmax: no match, then match.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<f32>, required = false, min_items = 2, max_items = 2, example = json!([-2.9, 3.1]))]
    match_logits: Option<[f32; 2]>,
    /// Dot product of the normalised embeddings.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = f32, required = false, example = 0.5162)]
    cosine: Option<f32>,
    /// `cosine` times the model's logit scale, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = f32, required = false)]
    logit: Option<f32>,
}

/// The scores and the model that computed them.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SimilarityResponse {
    /// Name of the model that answered.
    #[schema(example = "demo-retrieval")]
    model: String,
    #[serde(flatten)]
    answer: SimilarityAnswer,
}

/// One validated input of `/similarity` or `/similarity/batch`.
#[derive(Debug, Clone)]
pub(crate) struct SimilarityPlan {
    images: Vec<ImageArg>,
    texts: Vec<Arc<str>>,
    /// Name of the field that the client used, `text` or `texts`, for error messages.
    written_in: &'static str,
    scores: Scores,
}

impl Endpoint for SimilarityPlan {
    const TASK: &'static str = "similarity";
    const MODELS: Eligible = Eligible::Role(Role::Retrieval);
    type Single = SimilarityRequest;
    type Batch = SimilarityBatchRequest;
    type Images = ManyImages;
    type Tokens = Vec<TokenIds>;
    type Task = Similarity;
    type Answer = SimilarityAnswer;

    fn plan(input: SimilarityInput, context: &PlanContext<'_>) -> Result<Self, ApiError> {
        let PlanContext { limits, model, .. } = *context;
        let one_image = input.image.is_some();
        let images = text::one_or_many(("image", input.image), ("images", input.images))?;
        let written_in = if input.text.is_some() { "text" } else { "texts" };
        let texts = text::one_or_many(("text", input.text), ("texts", input.texts))?;
        check_count("images", images.len(), limits.max_images, "limits.max_images")?;
        check_count("texts", texts.len(), limits.max_texts, "limits.max_texts")?;
        let scores = wanted_scores(input.scores, model)?;
        let images = match (one_image, images) {
            (true, images) => images.into_iter().map(ImageArg::single).collect(),
            (false, images) => ImageArg::list(images),
        };
        Ok(Self {
            images,
            texts: texts.into_iter().map(|text| text.0).collect(),
            written_in,
            scores,
        })
    }

    fn shape(&self) -> TaskShape {
        TaskShape::similarity(self.images.len(), self.texts.len(), self.scores)
    }

    fn images(&self) -> Vec<ImageArg> {
        self.images.clone()
    }

    fn text_bytes(&self) -> usize {
        self.texts.iter().map(|text| text.len()).sum()
    }

    fn tokenize(&self, encoder: &TextEncoder) -> Result<Vec<TokenIds>, ApiError> {
        let max = encoder.model().info.text_towers().max_tokens;
        let texts = self.texts.iter().enumerate().map(|(index, words)| {
            let field = match self.written_in {
                "text" => "text".to_owned(),
                list => format!("{list}[{index}]"),
            };
            encoder.encode(&field, words, max)
        });
        texts.collect()
    }

    fn token_counts(tokens: &Vec<TokenIds>) -> Vec<usize> {
        tokens.iter().map(TokenIds::len).collect()
    }

    fn task(&self, images: &Vec<PreparedImage>, tokens: &Vec<TokenIds>) -> Similarity {
        Similarity { images: images.clone(), texts: tokens.clone(), scores: self.scores }
    }

    fn answer(&self, parts: AnswerParts<'_, Self>) -> Result<SimilarityAnswer, ApiError> {
        let rows = parts.output;
        let scores = rows.into_iter().map(|row| row.into_iter().map(cell).collect());
        Ok(SimilarityAnswer {
            images: parts.images.into_iter().map(ImageAnswer::from).collect(),
            scores: scores.collect::<Result<_, _>>()?,
        })
    }
}

/// Returns the requested scores, or all that the model supports if the field `scores` is absent.
fn wanted_scores(asked: Option<Vec<ScoreName>>, model: &Model) -> Result<Scores, ApiError> {
    let has_matching = model.info.class.has_matching_head();
    let Some(asked) = asked else {
        return Ok(Scores { matching: has_matching, match_logits: false, cosine: true });
    };
    let count = |name| asked.iter().filter(|asked| **asked == name).count();
    let counts = [ScoreName::Match, ScoreName::MatchLogits, ScoreName::Cosine].map(count);
    if asked.is_empty() || counts.iter().any(|&count| count > 1) {
        let detail = "accepts \"match\", \"match_logits\" and \"cosine\", each at most once; at least one is needed";
        return Err(ApiError::field(Code::InvalidRequest, "scores", detail));
    }
    let [matching, match_logits, cosine] = counts.map(|count| count == 1);
    let scores = Scores { matching, match_logits, cosine };
    if scores.needs_pairs() && !has_matching {
        let detail = format!(
            "{} has no image-text matching head; only \"cosine\" is available",
            model.info.name
        );
        return Err(ApiError::field(Code::ScoreNotAvailable, "scores", detail));
    }
    Ok(scores)
}

fn cell(cell: SimilarityCell) -> Result<ScoreCell, ApiError> {
    Ok(ScoreCell {
        matching: cell.matching.map(finite).transpose()?,
        match_logits: match cell.match_logits {
            Some(logits) => Some([finite(logits.no_match)?, finite(logits.is_match)?]),
            None => None,
        },
        cosine: cell.cosine.map(finite).transpose()?,
        logit: cell.logit.map(finite).transpose()?,
    })
}

/// Score images against texts
///
/// `match` is the probability that a text describes an image, computed from both together. `cosine` compares their
/// embeddings, which is much faster for many texts.
#[utoipa::path(
    post,
    path = "/similarity",
    operation_id = "score_similarity",
    tag = "inference",
    request_body(content = SimilarityRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The scores of every image against every text.", body = SimilarityResponse, example = json!({
            "model": "demo-retrieval",
            "images": [{"id": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "width": 640, "height": 480, "format": "jpeg"}],
            "scores": [[{"match": 0.9971, "cosine": 0.5162}, {"match": 0.0021, "cosine": 0.221}]],
        })),
        InferenceProblems,
    ),
)]
pub(crate) async fn score_similarity(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    reply::answer_single::<SimilarityPlan>(&state, &context, http).await
}

/// Score many sets of images and texts
///
/// Returns one result per input, in the same order. A field next to `inputs` is the default for every input. In a
/// multipart form, each `image` file is one input.
#[utoipa::path(
    post,
    path = "/similarity/batch",
    operation_id = "score_similarity_batch",
    tag = "inference",
    request_body(content = SimilarityBatchRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "An answer or a problem for each input, in order.", body = BatchResponse<SimilarityAnswer>),
        InferenceProblems,
    ),
)]
pub(crate) async fn score_similarity_batch(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    reply::answer_batch::<SimilarityPlan>(&state, &context, http).await
}
