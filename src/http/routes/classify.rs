//! `POST /classify` and `/classify/batch`: the labels that fit an image best. Only tests serve this endpoint. It shows
//! what a new endpoint on an existing task consists of, and `router::tests` checks that no other file has to mention
//! it.

use std::sync::Arc;

use axum::extract::{Extension, Request as HttpRequest, State};
use axum::response::Response;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::InferenceEndpoint;
use crate::http::context::RequestContext;
use crate::http::error::ApiError;
use crate::http::extract::fields::{Int, Text};
use crate::http::extract::image_field::ImageField;
use crate::http::extract::request::requests;
use crate::http::inference::arity::OneImage;
use crate::http::inference::endpoint::{AnswerParts, Endpoint, InputOf, check_count};
use crate::http::inference::image_args::ImageArg;
use crate::http::inference::reply::{BatchResponse, ImageAnswer};
use crate::http::inference::sequences::{finite, wrong_count};
use crate::http::inference::{reply, text};
use crate::http::openapi::conditions::exactly_one;
use crate::http::openapi::endpoint::{EndpointRules, FollowUp};
use crate::http::openapi::{EXAMPLE_IMAGE, InferenceProblems};
use crate::http::settings::Limits;
use crate::http::state::HttpState;
use crate::http::state::models::Model;
use crate::task::{PreparedImage, Role, Scores, Similarity, TaskShape, TokenIds};

/// Describes the endpoint, for the router and the OpenAPI documents.
pub(crate) fn endpoint() -> InferenceEndpoint {
    InferenceEndpoint::new::<ClassifyPlan>(
        OpenApiRouter::default()
            .routes(routes!(classify_image))
            .routes(routes!(classify_image_batch)),
        EndpointRules {
            required: &["image"],
            distinct_lists: &["labels"],
            conditions: vec![exactly_one("label", "labels")],
            defaults: json!({"top": 1}),
            image_id: Some("$response.body#/image/id"),
            follow_up: FollowUp { link: "classify", fields: json!({"labels": ["cat", "dog"]}) },
        },
    )
}

requests! {
    /// Request for the labels of one image.
    #[schema(example = json!({"image": EXAMPLE_IMAGE, "labels": ["cat", "dog"]}))]
    single ClassifyRequest {}
    /// Request for the labels of many images.
    #[schema(example = json!({"inputs": [{"image": EXAMPLE_IMAGE}], "labels": ["cat", "dog"], "top": 2}))]
    batch ClassifyBatchRequest
    /// One input of a classification batch.
    input ClassifyInput {
        /// Image value: base64, data URI, id of a cached image, or URL where fetching is enabled.
        image: ImageField,
        /// A single label to score.
        label: Text,
        /// Distinct labels to choose from.
        labels: Vec<Text>,
        /// Number of labels in the answer; 1 by default.
        top: Int<1, 100>,
    }
    alternatives label | labels
}

/// The labels that fit an image best.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ClassifyAnswer {
    /// The chosen labels, best first.
    labels: Vec<LabelScore>,
    /// Id, size and format of the image.
    image: ImageAnswer,
}

/// A label and its score.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LabelScore {
    /// The label as sent by the client.
    #[schema(value_type = String)]
    label: Arc<str>,
    /// Dot product of the normalised embeddings of image and label.
    cosine: f32,
}

/// The labels and the model that scored them.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ClassifyResponse {
    /// Name of the model that answered.
    model: String,
    #[serde(flatten)]
    answer: ClassifyAnswer,
}

/// One validated input of `/classify` or `/classify/batch`.
#[derive(Debug, Clone)]
pub(crate) struct ClassifyPlan {
    image: ImageField,
    labels: Vec<Arc<str>>,
    top: usize,
}

const SCORES: Scores = Scores { matching: false, cosine: true };

impl Endpoint for ClassifyPlan {
    const TASK: &'static str = "classify";
    const ROLE: Role = Role::Retrieval;
    type Single = ClassifyRequest;
    type Batch = ClassifyBatchRequest;
    type Images = OneImage;
    type Tokens = Vec<TokenIds>;
    type Task = Similarity;
    type Answer = ClassifyAnswer;

    fn plan(input: InputOf<Self>, limits: &Limits, _: &Model) -> Result<Self, ApiError> {
        let image = input.image.ok_or_else(|| text::needed("image"))?;
        let labels = text::one_or_many(("label", input.label), ("labels", input.labels))?;
        check_count("labels", labels.len(), limits.max_candidates, "limits.max_candidates")?;
        let labels = labels.into_iter().map(|label| label.0).collect();
        Ok(Self { image, labels, top: input.top.map_or(1, |top| top.0 as usize) })
    }

    fn shape(&self) -> TaskShape {
        TaskShape::similarity(1, self.labels.len(), SCORES)
    }

    fn images(&self) -> ImageArg {
        ImageArg::single(self.image.clone())
    }

    fn text_bytes(&self) -> usize {
        self.labels.iter().map(|label| label.len()).sum()
    }

    fn tokenize(&self, model: &Model) -> Result<Vec<TokenIds>, ApiError> {
        let labels = self.labels.iter().enumerate().map(|(index, label)| {
            text::encode(model, &format!("labels[{index}]"), label, model.info.max_text_tokens)
        });
        labels.collect()
    }

    fn token_counts(tokens: &Vec<TokenIds>) -> Vec<usize> {
        tokens.iter().map(TokenIds::len).collect()
    }

    fn task(&self, image: PreparedImage, tokens: &Vec<TokenIds>) -> Similarity {
        Similarity { images: vec![image], texts: tokens.clone(), scores: SCORES }
    }

    fn answer(&self, parts: AnswerParts<'_, Self>) -> Result<ClassifyAnswer, ApiError> {
        let cells = parts.output.into_iter().next().ok_or_else(wrong_count)?;
        let scored = self.labels.iter().zip(cells).map(|(label, cell)| {
            let cosine = finite(cell.cosine.ok_or_else(wrong_count)?)?;
            Ok(LabelScore { label: Arc::clone(label), cosine })
        });
        let mut labels: Vec<LabelScore> = scored.collect::<Result<_, ApiError>>()?;
        labels.sort_by(|a, b| b.cosine.total_cmp(&a.cosine));
        labels.truncate(self.top);
        Ok(ClassifyAnswer { labels, image: parts.images.into() })
    }
}

/// Choose labels for an image
#[utoipa::path(
    post,
    path = "/classify",
    operation_id = "classify_image",
    tag = "inference",
    request_body(content = ClassifyRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The labels that fit best.", body = ClassifyResponse),
        InferenceProblems,
    ),
)]
pub(crate) async fn classify_image(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    reply::answer_single::<ClassifyPlan>(&state, &context, http).await
}

/// Choose labels for many images
#[utoipa::path(
    post,
    path = "/classify/batch",
    operation_id = "classify_image_batch",
    tag = "inference",
    request_body(content = ClassifyBatchRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "An answer or a problem for each input, in order.", body = BatchResponse<ClassifyAnswer>),
        InferenceProblems,
    ),
)]
pub(crate) async fn classify_image_batch(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    reply::answer_batch::<ClassifyPlan>(&state, &context, http).await
}
