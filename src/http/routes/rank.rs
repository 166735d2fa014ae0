//! `POST /rank` and `/rank/batch`: retrieval. Ranks images for a text, or texts for an image: all by cosine, then the best
//! again by the matching head.
//!
//! The order is that of the original authors' retrieval (`evaluation` in `train_retrieval.py` of salesforce/BLIP): the
//! match logit plus the cosine for the results that were scored again; all others come after them.

use std::sync::Arc;

use axum::extract::{Extension, Request as HttpRequest, State};
use axum::response::Response;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::InferenceEndpoint;
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, Code};
use crate::http::extract::fields::{Int, Text};
use crate::http::extract::image_field::ImageField;
use crate::http::extract::request::requests;
use crate::http::inference::arity::ManyImages;
use crate::http::inference::endpoint::{
    AnswerParts, Endpoint, FirstOutput, PlanContext, check_count,
};
use crate::http::inference::image_args::ImageArg;
use crate::http::inference::reply;
use crate::http::inference::reply::{BatchResponse, ImageAnswer};
use crate::http::inference::sequences::{finite, wrong_count};
use crate::http::inference::text::TextEncoder;
use crate::http::openapi::endpoint::{EndpointRules, FollowUp};
use crate::http::openapi::{EXAMPLE_IMAGE, InferenceProblems};
use crate::http::settings::Limits;
use crate::http::state::HttpState;
use crate::http::state::models::Eligible;
use crate::task::{
    MatchLogits, PreparedImage, Role, Scores, Similarity, SimilarityCell, Task, TaskKind,
    TaskShape, TokenIds,
};

const DEFAULT_TOP_K: usize = 10;
const DEFAULT_RERANK: usize = 16;
/// Maximum value of `rerank`, as in its type. The rows of both tasks are reserved together, so this is the share of the second.
const MAX_RERANK: usize = 64;

const COSINE: Scores = Scores { matching: false, match_logits: false, cosine: true };
const MATCHING: Scores = Scores { matching: true, match_logits: true, cosine: false };

/// Describes the endpoint, for the router and the OpenAPI documents.
pub(crate) fn endpoint() -> InferenceEndpoint {
    InferenceEndpoint::new::<RankPlan>(
        OpenApiRouter::default()
            .routes(routes!(rank_candidates))
            .routes(routes!(rank_candidates_batch)),
        EndpointRules {
            required: &[],
            distinct_lists: &[],
            conditions: vec![one_query()],
            defaults: json!({"top_k": DEFAULT_TOP_K, "rerank": DEFAULT_RERANK}),
            image_id: Some("$response.body#/images/0/id"),
            follow_up: FollowUp {
                link: "rank",
                fields: json!({"texts": ["two cats", "a red car"]}),
            },
        },
    )
}

/// Returns the condition that a request has one text and its images, or one image and its texts.
fn one_query() -> Value {
    json!({"oneOf": [
        {"title": "Images for a text", "required": ["text", "images"], "properties": {"image": false, "texts": false}},
        {"title": "Texts for an image", "required": ["image", "texts"], "properties": {"text": false, "images": false}},
    ]})
}

requests! {
    /// Request to rank images for a text, or texts for an image.
    #[schema(example = json!({"image": EXAMPLE_IMAGE, "texts": ["two cats on a blue background", "a red car"]}))]
    single RankRequest {}
    /// Request for many rankings.
    #[schema(example = json!({"inputs": [{"text": "two cats"}, {"text": "a red car"}], "images": [EXAMPLE_IMAGE]}))]
    batch RankBatchRequest
    /// One input of a rank batch.
    input RankInput {
        /// The text for which `images` are ranked.
        text: Text,
        /// Images to rank for `text`. Ids of cached images keep the request small.
        images: Vec<ImageField>,
        /// The image for which `texts` are ranked.
        image: ImageField,
        /// Texts to rank for `image`.
        texts: Vec<Text>,
        /// Number of results to return; default 10.
        top_k: Int<1, 1024>,
        /// Number of results, best by cosine, that the matching head scores again; default 16. 0 ranks by cosine only.
        rerank: Int<0, 64>,
    }
    alternatives text | image, images | texts
}

/// The best candidates, best first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RankAnswer {
    /// The best candidates, at most `top_k`, best first.
    #[schema(min_items = 1)]
    results: Vec<RankedCandidate>,
    /// The images of the request, in request order.
    #[schema(min_items = 1)]
    images: Vec<ImageAnswer>,
}

/// A candidate and its scores.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RankedCandidate {
    /// Index in the request's `images` or `texts`.
    #[schema(example = 3, minimum = 0)]
    index: usize,
    /// Dot product of the normalised embeddings.
    #[schema(example = 0.41)]
    cosine: f32,
    /// Probability that the text describes the image; only for candidates that were scored again.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = f32, required = false, example = 0.97, minimum = 0, maximum = 1)]
    matching: Option<f32>,
    /// Sort key. Candidates that were scored again come first: match logit plus cosine. Others: cosine.
    #[schema(example = 3.5)]
    score: f32,
}

/// The ranking and the model that computed it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RankResponse {
    /// Name of the model that answered.
    #[schema(example = "demo-retrieval")]
    model: String,
    #[serde(flatten)]
    answer: RankAnswer,
}

/// One validated input of `/rank` or `/rank/batch`.
#[derive(Debug, Clone)]
pub(crate) struct RankPlan {
    query: Query,
    top_k: usize,
    /// Number of candidates that the matching head scores; at most all of them.
    rerank: usize,
}

/// What is ranked for what. Both lists have at least one element.
#[derive(Debug, Clone)]
enum Query {
    /// Images for a text.
    Images(Arc<str>, Vec<ImageField>),
    /// Texts for an image.
    Texts(ImageField, Vec<Arc<str>>),
}

impl Query {
    fn candidates(&self) -> usize {
        match self {
            Self::Images(_, images) => images.len(),
            Self::Texts(_, texts) => texts.len(),
        }
    }
}

impl Endpoint for RankPlan {
    const TASK: &'static str = "rank";
    const MODELS: Eligible = Eligible::Role(Role::Retrieval);
    type Single = RankRequest;
    type Batch = RankBatchRequest;
    type Images = ManyImages;
    type Tokens = Vec<TokenIds>;
    type Task = Similarity;
    type Answer = RankAnswer;

    fn plan(input: RankInput, context: &PlanContext<'_>) -> Result<Self, ApiError> {
        let (top_k, rerank) = (input.top_k, input.rerank);
        let query = query(input)?;
        let (field, count) = match &query {
            Query::Images(_, images) => ("images", images.len()),
            Query::Texts(_, texts) => ("texts", texts.len()),
        };
        check_count(
            field,
            count,
            context.limits.max_rank_candidates,
            "limits.max_rank_candidates",
        )?;
        let has_matching = context.model.info.class.has_matching_head();
        let rerank = match rerank {
            Some(Int(asked)) if asked > 0 && !has_matching => {
                let detail = format!(
                    "{} has no image-text matching head; only 0 is available",
                    context.model.info.name
                );
                return Err(ApiError::field(Code::ScoreNotAvailable, "rerank", detail));
            }
            Some(Int(asked)) => asked as usize,
            None if has_matching => DEFAULT_RERANK,
            None => 0,
        };
        let top_k = top_k.map_or(DEFAULT_TOP_K, |top_k| top_k.0 as usize);
        Ok(Self { query, top_k, rerank: rerank.min(count) })
    }

    fn shape(&self) -> TaskShape {
        let (images, texts) = match &self.query {
            Query::Images(_, images) => (images.len(), 1),
            Query::Texts(_, texts) => (1, texts.len()),
        };
        let mut shape = TaskShape::similarity(images, texts, COSINE);
        shape.rows += self.rerank;
        shape
    }

    /// One input may have as many candidates as the setting for them allows.
    fn max_rows(limits: &Limits) -> (usize, &'static str) {
        let candidates = limits.max_rank_candidates + MAX_RERANK;
        if candidates > limits.max_rows {
            (candidates, "limits.max_rank_candidates, and rerank")
        } else {
            (limits.max_rows, "limits.max_rows")
        }
    }

    fn images(&self) -> Vec<ImageArg> {
        match &self.query {
            Query::Images(_, images) => ImageArg::list(images.clone()),
            Query::Texts(image, _) => vec![ImageArg::single(image.clone())],
        }
    }

    fn text_bytes(&self) -> usize {
        match &self.query {
            Query::Images(text, _) => text.len(),
            Query::Texts(_, texts) => texts.iter().map(|text| text.len()).sum(),
        }
    }

    fn tokenize(&self, encoder: &TextEncoder) -> Result<Vec<TokenIds>, ApiError> {
        let max = encoder.model().info.text_towers().max_tokens;
        match &self.query {
            Query::Images(words, _) => Ok(vec![encoder.encode("text", words, max)?]),
            Query::Texts(_, texts) => {
                let texts = texts.iter().enumerate();
                let texts = texts
                    .map(|(index, words)| encoder.encode(&format!("texts[{index}]"), words, max));
                texts.collect()
            }
        }
    }

    fn token_counts(tokens: &Vec<TokenIds>) -> Vec<usize> {
        tokens.iter().map(TokenIds::len).collect()
    }

    fn task(&self, images: &Vec<PreparedImage>, tokens: &Vec<TokenIds>) -> Similarity {
        Similarity { images: images.clone(), texts: tokens.clone(), scores: COSINE }
    }

    fn second_task(&self, first: &FirstOutput<'_, Self>) -> Result<Option<Task>, ApiError> {
        if self.rerank == 0 {
            return Ok(None);
        }
        let cosines = self.cosines(first.output)?;
        let best = best_by_cosine(&cosines, self.rerank);
        let (images, texts) = match &self.query {
            Query::Images(..) => (
                best.iter().map(|&index| first.images[index].clone()).collect(),
                first.tokens.clone(),
            ),
            Query::Texts(..) => (
                first.images.clone(),
                best.iter().map(|&index| first.tokens[index].clone()).collect(),
            ),
        };
        Ok(Some(Task::Similarity(Similarity { images, texts, scores: MATCHING })))
    }

    fn answer(&self, parts: AnswerParts<'_, Self>) -> Result<RankAnswer, ApiError> {
        let cosines = self.cosines(&parts.output)?;
        let best = best_by_cosine(&cosines, self.rerank);
        let matches = match parts.second.and_then(Similarity::output) {
            // One row for each image: a row for each candidate, or all candidates in one row.
            Some(rows) => rows.into_iter().flatten().collect(),
            None => Vec::new(),
        };
        if matches.len() != best.len() {
            return Err(wrong_count());
        }
        let matches: Vec<(usize, SimilarityCell)> = best.into_iter().zip(matches).collect();
        Ok(RankAnswer {
            results: ranked(&cosines, &matches, self.top_k)?,
            images: parts.images.into_iter().map(ImageAnswer::from).collect(),
        })
    }
}

impl RankPlan {
    /// Returns the cosine of each candidate, in their order.
    fn cosines(&self, rows: &[Vec<SimilarityCell>]) -> Result<Vec<f32>, ApiError> {
        let cells = rows.iter().flatten();
        let cosines = cells.map(|cell| finite(cell.cosine.ok_or_else(wrong_count)?));
        let cosines: Vec<f32> = cosines.collect::<Result<_, _>>()?;
        if cosines.len() == self.query.candidates() { Ok(cosines) } else { Err(wrong_count()) }
    }
}

/// Returns what is ranked for what.
///
/// # Errors
/// `invalid_request` unless the request has one text and images, or one image and texts.
fn query(input: RankInput) -> Result<Query, ApiError> {
    let refused =
        |field: &str, detail: &str| Err(ApiError::field(Code::InvalidRequest, field, detail));
    match (input.text, input.images, input.image, input.texts) {
        (Some(text), Some(images), None, None) => Ok(Query::Images(text.0, images)),
        (None, None, Some(image), Some(texts)) => {
            Ok(Query::Texts(image, texts.into_iter().map(|text| text.0).collect()))
        }
        (Some(_), None, None, None) => refused("images", "are needed with text"),
        (None, None, Some(_), None) => refused("texts", "are needed with image"),
        (None, Some(_), None, None) => refused("text", "is needed with images"),
        (None, None, None, Some(_)) => refused("image", "is needed with texts"),
        (None, None, None, None) => refused("text", "give text and images, or image and texts"),
        (Some(_), _, Some(_), _) => refused("image", "is not allowed with text"),
        (_, Some(_), _, Some(_)) => refused("texts", "are not allowed with images"),
        (Some(_), None, None, Some(_)) => refused("texts", "are not allowed with text"),
        (None, Some(_), Some(_), None) => refused("images", "are not allowed with image"),
    }
}

/// Returns the indices of the `count` best candidates, best first. Among equals, the first comes first.
fn best_by_cosine(cosines: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..cosines.len()).collect();
    order.sort_by(|&a, &b| cosines[b].total_cmp(&cosines[a]));
    order.truncate(count);
    order
}

/// Returns the best `top_k` candidates. `matches` holds the matching scores of those that were scored again.
fn ranked(
    cosines: &[f32],
    matches: &[(usize, SimilarityCell)],
    top_k: usize,
) -> Result<Vec<RankedCandidate>, ApiError> {
    let mut results: Vec<RankedCandidate> = cosines
        .iter()
        .enumerate()
        .map(|(index, &cosine)| RankedCandidate { index, cosine, matching: None, score: cosine })
        .collect();
    for (index, cell) in matches {
        let MatchLogits { is_match, .. } = cell.match_logits.ok_or_else(wrong_count)?;
        let result = &mut results[*index];
        result.matching = Some(finite(cell.matching.ok_or_else(wrong_count)?)?);
        result.score = finite(is_match + result.cosine)?;
    }
    results.sort_by(|a, b| {
        let again = |result: &RankedCandidate| result.matching.is_some();
        again(b).cmp(&again(a)).then(b.score.total_cmp(&a.score))
    });
    results.truncate(top_k);
    Ok(results)
}

/// Rank images or texts
///
/// Ranks `images` for a `text`, or `texts` for an `image`: all by the cosine of their embeddings, then the best of them
/// again by the matching head.
#[utoipa::path(
    post,
    path = "/rank",
    operation_id = "rank_candidates",
    tag = "inference",
    request_body(content = RankRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The best candidates, best first.", body = RankResponse, example = json!({
            "model": "demo-retrieval",
            "results": [
                {"index": 1, "cosine": 0.41, "match": 0.97, "score": 3.5},
                {"index": 0, "cosine": 0.13, "match": 0.01, "score": -2.1},
            ],
            "images": [{"id": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "width": 640, "height": 480, "format": "jpeg"}],
        })),
        InferenceProblems,
    ),
)]
pub(crate) async fn rank_candidates(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    reply::answer_single::<RankPlan>(&state, &context, http).await
}

/// Rank for many queries
///
/// Returns one result per input, in the same order. A field next to `inputs` is the default for every input, such as the
/// `images` that each `text` is compared with.
#[utoipa::path(
    post,
    path = "/rank/batch",
    operation_id = "rank_candidates_batch",
    tag = "inference",
    request_body(content = RankBatchRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "A ranking or a problem for each input, in order.", body = BatchResponse<RankAnswer>),
        InferenceProblems,
    ),
)]
pub(crate) async fn rank_candidates_batch(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    reply::answer_batch::<RankPlan>(&state, &context, http).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rescored(index: usize, is_match: f32) -> (usize, SimilarityCell) {
        let match_logits = Some(MatchLogits { no_match: 0.0, is_match });
        let matching = match_logits.map(MatchLogits::probability);
        (index, SimilarityCell { matching, match_logits, ..SimilarityCell::default() })
    }

    #[test]
    fn candidates_that_were_scored_again_come_first_by_logit_plus_cosine() {
        let cosines = [0.1, 0.9, 0.5, 0.7];
        assert_eq!(best_by_cosine(&cosines, 2), [1, 3]);
        let matches = [rescored(1, -5.0), rescored(3, 2.0)];
        let results = ranked(&cosines, &matches, 10).unwrap();
        let order: Vec<usize> = results.iter().map(|result| result.index).collect();
        assert_eq!(order, [3, 1, 2, 0]);
        assert!((results[0].score - 2.7).abs() < 1e-6 && (results[1].score + 4.1).abs() < 1e-6);
        assert!((results[2].score - 0.5).abs() < 1e-6 && results[2].matching.is_none());
        assert_eq!(ranked(&cosines, &matches, 1).unwrap().len(), 1);
    }

    #[test]
    fn without_the_matching_head_the_cosine_decides() {
        let results = ranked(&[0.1, 0.9, 0.9], &[], 10).unwrap();
        let order: Vec<usize> = results.iter().map(|result| result.index).collect();
        assert_eq!(order, [1, 2, 0]);
    }

    #[test]
    fn a_query_is_a_text_with_images_or_an_image_with_texts() {
        let image = || ImageField::Value(Arc::new("i".to_owned()));
        let text = || Text("t".into());
        let input = |parts: &str| RankInput {
            text: parts.contains('t').then(text),
            images: parts.contains('I').then(|| vec![image()]),
            image: parts.contains('i').then(image),
            texts: parts.contains('T').then(|| vec![text()]),
            top_k: None,
            rerank: None,
        };
        assert!(matches!(query(input("tI")), Ok(Query::Images(..))));
        assert!(matches!(query(input("iT")), Ok(Query::Texts(..))));
        for (parts, field) in [
            ("", "text"),
            ("t", "images"),
            ("I", "text"),
            ("i", "texts"),
            ("T", "image"),
            ("ti", "image"),
            ("IT", "texts"),
            ("tT", "texts"),
            ("iI", "images"),
            ("tIiT", "image"),
        ] {
            assert_eq!(query(input(parts)).unwrap_err().errors[0].field, field, "{parts}");
        }
    }
}
