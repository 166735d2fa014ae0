//! `POST /classify` and `/classify/batch`: zero-shot classification, the labels that fit an image best.

use std::collections::HashSet;
use std::sync::Arc;

use axum::extract::{Extension, Request as HttpRequest, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::InferenceEndpoint;
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, Code};
use crate::http::extract::fields::{Field, Temperature, Text};
use crate::http::extract::image_field::ImageField;
use crate::http::extract::request::requests;
use crate::http::extract::template::Template;
use crate::http::inference::arity::OneImage;
use crate::http::inference::endpoint::{AnswerParts, Endpoint, PlanContext, check_count};
use crate::http::inference::image_args::ImageArg;
use crate::http::inference::reply::{BatchResponse, ImageAnswer};
use crate::http::inference::sequences::{finite, wrong_count};
use crate::http::inference::text::TextEncoder;
use crate::http::inference::{reply, text};
use crate::http::openapi::endpoint::{EndpointRules, FollowUp};
use crate::http::openapi::{EXAMPLE_IMAGE, InferenceProblems};
use crate::http::state::HttpState;
use crate::http::state::models::{Eligible, Model};
use crate::task::{PreparedImage, Role, Scores, Similarity, SimilarityCell, TaskShape, TokenIds};

const DEFAULT_TEMPLATE: &str = "a photo of {}";
/// Maximum size of a template in bytes. It is copied for each label.
const MAX_TEMPLATE_BYTES: usize = 1000;
/// The temperature with which BLIP's contrastive loss starts its training.
const DEFAULT_TEMPERATURE: f32 = 0.07;

/// Describes the endpoint, for the router and the OpenAPI documents.
pub(crate) fn endpoint() -> InferenceEndpoint {
    InferenceEndpoint::new::<ClassifyPlan>(
        OpenApiRouter::default()
            .routes(routes!(classify_image))
            .routes(routes!(classify_image_batch)),
        EndpointRules {
            required: &["image", "labels"],
            distinct_lists: &["labels"],
            conditions: vec![temperature_of_cosine()],
            defaults: json!({
                "template": DEFAULT_TEMPLATE,
                "by": "cosine",
                "temperature": 0.07,
            }),
            image_id: Some("$response.body#/image/id"),
            follow_up: FollowUp { link: "classify", fields: json!({"labels": ["a cat", "a dog"]}) },
        },
    )
}

/// Returns the condition that only probabilities from cosines have a temperature.
fn temperature_of_cosine() -> Value {
    json!({"anyOf": [
        {"properties": {"by": {"const": "cosine"}}},
        {"properties": {"temperature": false}},
    ]})
}

requests! {
    /// Request for the probabilities of labels for one image.
    #[schema(example = json!({"image": EXAMPLE_IMAGE, "labels": ["a cat", "a dog"]}))]
    single ClassifyRequest {}
    /// Request for the probabilities of labels for many images.
    #[schema(example = json!({"inputs": [{"image": EXAMPLE_IMAGE}], "labels": ["a cat", "a dog"], "by": "match"}))]
    batch ClassifyBatchRequest
    /// One input of a classification batch.
    input ClassifyInput {
        /// Image value: base64, data URI, id of a cached image, or URL where fetching is enabled.
        image: ImageField,
        /// Distinct labels to choose from, such as `a cat`.
        labels: Vec<Text>,
        /// Text that is compared with the image, in which the label replaces `{}`; default `a photo of {}`.
        template: Template,
        /// Score that decides: `cosine` (default) is fast, `match` runs the matching head once for each label.
        by: ClassifyBy,
        /// Only with `cosine`: the probabilities are the softmax of the cosines divided by this value; default 0.07.
        temperature: Temperature,
    }
}

/// The score that decides between the labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ClassifyBy {
    /// Cosine similarity of the embeddings of image and text.
    Cosine,
    /// Probability from the image-text matching head.
    Match,
}

impl Field for ClassifyBy {}

/// The labels with their probabilities.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ClassifyAnswer {
    /// All labels, best first.
    #[schema(min_items = 1)]
    labels: Vec<LabelAnswer>,
    /// Id, size and format of the image.
    image: ImageAnswer,
}

impl ClassifyAnswer {
    /// Returns the labels with their probabilities, best first, for the answers of other APIs.
    pub(crate) fn into_labels(self) -> Vec<(Arc<str>, f32)> {
        self.labels.into_iter().map(|answer| (answer.label, answer.probability)).collect()
    }
}

/// A label and its probability.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LabelAnswer {
    /// The label as sent by the client.
    #[schema(value_type = String, example = "a cat")]
    label: Arc<str>,
    /// Probability among these labels; all together sum to 1.
    #[schema(example = 0.98, minimum = 0, maximum = 1)]
    probability: f32,
    /// Dot product of the normalised embeddings; only with `"by": "cosine"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = f32, required = false, example = 0.41)]
    cosine: Option<f32>,
    /// Probability that the text describes the image; only with `"by": "match"`.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = f32, required = false, example = 0.97, minimum = 0, maximum = 1)]
    matching: Option<f32>,
}

/// The labels and the model that scored them.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ClassifyResponse {
    /// Name of the model that answered.
    #[schema(example = "demo-retrieval")]
    model: String,
    #[serde(flatten)]
    answer: ClassifyAnswer,
}

/// One validated input of `/classify` or `/classify/batch`.
#[derive(Debug, Clone)]
pub(crate) struct ClassifyPlan {
    image: ImageField,
    labels: Vec<Arc<str>>,
    template: Template,
    rule: Rule,
}

/// How scores become probabilities.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// Softmax of the cosines divided by a temperature.
    Cosine { temperature: f32 },
    /// The matching probabilities divided by their sum.
    Match,
}

impl Rule {
    fn scores(self) -> Scores {
        let matching = matches!(self, Self::Match);
        Scores { matching, match_logits: false, cosine: !matching }
    }
}

impl Endpoint for ClassifyPlan {
    const TASK: &'static str = "classify";
    const MODELS: Eligible = Eligible::Role(Role::Retrieval);
    type Single = ClassifyRequest;
    type Batch = ClassifyBatchRequest;
    type Images = OneImage;
    type Tokens = Vec<TokenIds>;
    type Task = Similarity;
    type Answer = ClassifyAnswer;

    fn plan(input: ClassifyInput, context: &PlanContext<'_>) -> Result<Self, ApiError> {
        let image = input.image.ok_or_else(|| text::needed("image"))?;
        let labels = input.labels.ok_or_else(|| text::needed("labels"))?;
        let max = context.limits.max_candidates;
        check_count("labels", labels.len(), max, "limits.max_candidates")?;
        let mut seen = HashSet::new();
        if let Some(index) = labels.iter().position(|label| !seen.insert(label)) {
            let field = format!("labels[{index}]");
            let detail = "labels must be distinct; this one is a duplicate";
            return Err(ApiError::field(Code::InvalidRequest, field, detail));
        }
        let template = input.template.unwrap_or_else(|| Template::constant(DEFAULT_TEMPLATE));
        if template.len() > MAX_TEMPLATE_BYTES {
            let detail = format!("has at most {MAX_TEMPLATE_BYTES} bytes");
            return Err(ApiError::field(Code::TextTooLong, "template", detail));
        }
        let rule = rule(input.by, input.temperature, context.model)?;
        Ok(Self {
            image,
            labels: labels.into_iter().map(|label| label.0).collect(),
            template,
            rule,
        })
    }

    fn shape(&self) -> TaskShape {
        TaskShape::similarity(1, self.labels.len(), self.rule.scores())
    }

    fn images(&self) -> ImageArg {
        ImageArg::single(self.image.clone())
    }

    fn text_bytes(&self) -> usize {
        self.labels.iter().map(|label| label.len() + self.template.len()).sum()
    }

    fn tokenize(&self, texts: &TextEncoder) -> Result<Vec<TokenIds>, ApiError> {
        let max = texts.model().info.text_towers().max_tokens;
        let labels = self.labels.iter().enumerate().map(|(index, label)| {
            texts.encode(&format!("labels[{index}]"), &self.template.fill(label), max)
        });
        labels.collect()
    }

    fn token_counts(tokens: &Vec<TokenIds>) -> Vec<usize> {
        tokens.iter().map(TokenIds::len).collect()
    }

    fn task(&self, image: &PreparedImage, tokens: &Vec<TokenIds>) -> Similarity {
        Similarity {
            images: vec![image.clone()],
            texts: tokens.clone(),
            scores: self.rule.scores(),
        }
    }

    fn answer(&self, parts: AnswerParts<'_, Self>) -> Result<ClassifyAnswer, ApiError> {
        let cells = parts.output.into_iter().next().ok_or_else(wrong_count)?;
        let labels = ranked(&self.labels, &cells, self.rule)?;
        Ok(ClassifyAnswer { labels, image: parts.images.into() })
    }
}

/// Decides how scores become probabilities.
///
/// # Errors
/// `invalid_request` for a temperature without effect, `score_not_available` if the model has no matching head.
fn rule(
    by: Option<ClassifyBy>,
    temperature: Option<Temperature>,
    model: &Model,
) -> Result<Rule, ApiError> {
    match (by.unwrap_or(ClassifyBy::Cosine), temperature) {
        (ClassifyBy::Cosine, temperature) => {
            let temperature = temperature.map_or(DEFAULT_TEMPERATURE, |temperature| temperature.0);
            Ok(Rule::Cosine { temperature })
        }
        (ClassifyBy::Match, Some(_)) => {
            let detail = "has no effect with \"by\": \"match\"; leave it out";
            Err(ApiError::field(Code::InvalidRequest, "temperature", detail))
        }
        (ClassifyBy::Match, None) if !model.info.class.has_matching_head() => {
            let detail = format!(
                "{} has no image-text matching head; only \"cosine\" is available",
                model.info.name
            );
            Err(ApiError::field(Code::ScoreNotAvailable, "by", detail))
        }
        (ClassifyBy::Match, None) => Ok(Rule::Match),
    }
}

/// Computes the probabilities in f64 and sorts the labels, best first; labels with equal scores keep their order.
fn ranked(
    labels: &[Arc<str>],
    cells: &[SimilarityCell],
    rule: Rule,
) -> Result<Vec<LabelAnswer>, ApiError> {
    if labels.len() != cells.len() {
        return Err(wrong_count());
    }
    let score = |cell: &SimilarityCell| match rule {
        Rule::Cosine { .. } => cell.cosine,
        Rule::Match => cell.matching,
    };
    let scores: Vec<f32> = cells
        .iter()
        .map(|cell| finite(score(cell).ok_or_else(wrong_count)?))
        .collect::<Result<_, _>>()?;
    let best = f64::from(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let weight = |score: f32| match rule {
        Rule::Cosine { temperature } => ((f64::from(score) - best) / f64::from(temperature)).exp(),
        Rule::Match => f64::from(score),
    };
    let total: f64 = scores.iter().map(|&score| weight(score)).sum();
    // If no label matches at all, the probabilities have no ratio. No label is then better than another.
    let probability = |score| {
        if total > 0.0 { (weight(score) / total) as f32 } else { 1.0 / scores.len() as f32 }
    };
    let mut answers: Vec<LabelAnswer> = labels
        .iter()
        .zip(&scores)
        .map(|(label, &score)| LabelAnswer {
            label: Arc::clone(label),
            probability: probability(score),
            cosine: matches!(rule, Rule::Cosine { .. }).then_some(score),
            matching: matches!(rule, Rule::Match).then_some(score),
        })
        .collect();
    let score = |answer: &LabelAnswer| answer.cosine.or(answer.matching).unwrap_or_default();
    answers.sort_by(|a, b| score(b).total_cmp(&score(a)));
    Ok(answers)
}

/// Classify an image
///
/// Zero-shot classification: compares the image with a text for each label, and returns the probability of each label
/// among those given.
#[utoipa::path(
    post,
    path = "/classify",
    operation_id = "classify_image",
    tag = "inference",
    request_body(content = ClassifyRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The labels, best first.", body = ClassifyResponse, example = json!({
            "model": "demo-retrieval",
            "labels": [
                {"label": "a cat", "probability": 0.98, "cosine": 0.41},
                {"label": "a dog", "probability": 0.02, "cosine": 0.13},
            ],
            "image": {"id": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "width": 640, "height": 480, "format": "jpeg"},
        })),
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

/// Classify many images
///
/// Returns one result per input, in the same order. A field next to `inputs` is the default for every input. In a
/// multipart form, each `image` file is one input.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(scores: &[f32]) -> Vec<SimilarityCell> {
        let cell = |&score: &f32| SimilarityCell {
            cosine: Some(score),
            matching: Some(score),
            ..SimilarityCell::default()
        };
        scores.iter().map(cell).collect()
    }

    fn labels(count: usize) -> Vec<Arc<str>> {
        (0..count).map(|index| index.to_string().into()).collect()
    }

    #[test]
    fn cosines_become_a_softmax_with_the_temperature() {
        let rule = Rule::Cosine { temperature: 0.5 };
        let answers = ranked(&labels(3), &cells(&[0.1, 0.6, -0.4]), rule).unwrap();
        let order: Vec<&str> = answers.iter().map(|answer| &*answer.label).collect();
        assert_eq!(order, ["1", "0", "2"]);
        // The softmax of 1.2, 0.2 and -0.8.
        for (answer, expected) in answers.iter().zip([0.665_240_94, 0.244_728_48, 0.090_030_57]) {
            assert!((answer.probability - expected).abs() < 1e-6, "{answer:?}");
            assert!(answer.cosine.is_some() && answer.matching.is_none());
        }
    }

    #[test]
    fn matches_are_divided_by_their_sum() {
        let answers = ranked(&labels(2), &cells(&[0.25, 0.75]), Rule::Match).unwrap();
        let probabilities: Vec<f32> = answers.iter().map(|answer| answer.probability).collect();
        assert_eq!(probabilities, [0.75, 0.25]);
    }

    #[test]
    fn labels_of_which_none_matches_are_equally_probable() {
        let answers = ranked(&labels(4), &cells(&[0.0; 4]), Rule::Match).unwrap();
        assert!(answers.iter().all(|answer| (answer.probability - 0.25).abs() < 1e-9));
    }
}
