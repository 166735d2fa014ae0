//! `POST /vqa` and `/vqa/batch`: answer questions about an image, freely or among candidates.

use std::collections::HashSet;
use std::sync::Arc;

use axum::extract::{Extension, Request as HttpRequest, State};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::call::{AnswerParts, Endpoint, check_count};
use crate::http::error::{ApiError, Code};
use crate::http::extract::fields::{ImageField, Text};
use crate::http::extract::request::requests;
use crate::http::generation::seed_of;
use crate::http::image_args::ImageArg;
use crate::http::middleware::context::RequestContext;
use crate::http::models::Model;
use crate::http::openapi::{EXAMPLE_IMAGE, InferenceProblems};
use crate::http::reply::{self, BatchResponse, ImageAnswer};
use crate::http::sequences::{SequenceFacts, finite, wrong_output};
use crate::http::settings::Limits;
use crate::http::state::HttpState;
use crate::http::text;
use crate::task::{
    Answer, GenerationParams, PreparedImage, Role, Task, TaskOutput, TokenIds, Vqa, VqaMode,
};

requests! {
    /// Questions about an image.
    #[schema(example = json!({"image": EXAMPLE_IMAGE, "questions": ["how many cats are there?", "what color is the background?"]}))]
    single VqaRequest {}
    /// Questions about many images.
    #[schema(example = json!({"inputs": [{"image": EXAMPLE_IMAGE}], "question": "what color is the background?", "candidates": ["blue", "red"]}))]
    batch VqaBatchRequest
    /// Questions about one image.
    input VqaInput {
        /// The image: a data URI, base64, the id of an image sent before, or a URL where the server fetches them.
        image: ImageField,
        /// One question; several go into `questions`.
        question: Text,
        /// Questions, answered in order; one look at the image serves them all.
        questions: Vec<Text>,
        /// Answers to choose among: each is scored in full, nothing is generated. Distinct.
        candidates: Vec<Text>,
    } generation
}

/// The answers about one image.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct VqaAnswer {
    /// In the order of the questions; with several sequences for each question, these one after another.
    #[schema(min_items = 1)]
    answers: Vec<QuestionAnswer>,
    /// The image.
    image: ImageAnswer,
    /// What makes the same samples again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = u64, required = false, example = 1234, minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    seed: Option<u64>,
}

/// The answer to one question: generated, or the best of the candidates.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct QuestionAnswer {
    /// The question as it was sent.
    #[schema(value_type = String, example = "how many cats are there?")]
    question: Arc<str>,
    /// The answer.
    #[schema(example = "2")]
    answer: String,
    #[serde(flatten)]
    found: Found,
}

/// How an answer was found.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum Found {
    /// It was generated.
    Generated(SequenceFacts),
    /// It is the best of the candidates.
    Ranked {
        /// Every candidate, best first.
        ranking: Vec<RankedAnswer>,
    },
}

/// A candidate and its score.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RankedAnswer {
    /// The candidate.
    #[schema(value_type = String, example = "cat")]
    answer: Arc<str>,
    /// Sum of its tokens' natural log-probabilities.
    #[schema(example = -0.3, maximum = 0)]
    logprob: f32,
    /// Softmax of the log-probabilities over the candidates.
    #[schema(example = 0.74, minimum = 0, maximum = 1)]
    probability: f32,
}

/// The answer to one VQA request.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct VqaResponse {
    /// The model that answered.
    #[schema(example = "demo-vqa")]
    model: String,
    #[serde(flatten)]
    answer: VqaAnswer,
}

/// A VQA request, checked.
#[derive(Debug, Clone)]
pub(crate) struct VqaPlan {
    image: ImageField,
    questions: Vec<Arc<str>>,
    /// `questions`, or `question` where the client gave one.
    asked_in: &'static str,
    mode: PlannedMode,
}

#[derive(Debug, Clone)]
enum PlannedMode {
    Generate(GenerationParams),
    Rank(Vec<Arc<str>>),
}

/// The texts of a VQA request as ids.
pub(crate) struct VqaTokens {
    questions: Vec<TokenIds>,
    candidates: Vec<TokenIds>,
}

impl Endpoint for VqaPlan {
    const TASK: &'static str = "vqa";
    const ROLE: Role = Role::Vqa;
    type Input = VqaInput;
    type Tokens = VqaTokens;
    type Answer = VqaAnswer;

    fn plan(input: VqaInput, limits: &Limits, model: &Model) -> Result<Self, ApiError> {
        let generation = input.generation();
        let mode = match input.candidates {
            None => {
                let max_text_tokens = model.info.max_text_tokens;
                PlannedMode::Generate(generation.into_params(limits, max_text_tokens)?)
            }
            Some(candidates) => {
                if let Some(given) = generation.first_given() {
                    let detail =
                        "has no effect with candidates, which are scored and not generated";
                    return Err(ApiError::field(Code::InvalidRequest, given, detail));
                }
                PlannedMode::Rank(check_candidates(candidates, limits)?)
            }
        };
        let image = input.image.ok_or_else(|| text::needed("image"))?;
        let asked_in = if input.question.is_some() { "question" } else { "questions" };
        let questions =
            text::one_or_many(("question", input.question), ("questions", input.questions))?;
        check_count("questions", questions.len(), limits.max_questions, "limits.max_questions")?;
        let questions = questions.into_iter().map(|question| question.0).collect();
        Ok(Self { image, questions, asked_in, mode })
    }

    fn rows(&self) -> usize {
        let each = match &self.mode {
            PlannedMode::Generate(params) => params.rows(),
            PlannedMode::Rank(candidates) => candidates.len(),
        };
        self.questions.len() * each
    }

    fn images(&self) -> Vec<ImageArg> {
        vec![ImageArg::single(self.image.clone())]
    }

    fn text_bytes(&self) -> usize {
        self.questions.iter().chain(self.candidates()).map(|text| text.len()).sum()
    }

    fn tokenize(&self, model: &Model) -> Result<VqaTokens, ApiError> {
        let max = model.info.max_text_tokens;
        let questions = self.questions.iter().enumerate().map(|(index, question)| {
            let field = match self.asked_in {
                "question" => "question".to_owned(),
                list => format!("{list}[{index}]"),
            };
            text::encode(model, &field, question, max)
        });
        let candidates = self.candidates().iter().enumerate();
        let candidates = candidates.map(|(index, candidate)| {
            text::encode(model, &format!("candidates[{index}]"), candidate, max)
        });
        Ok(VqaTokens {
            questions: questions.collect::<Result<_, _>>()?,
            candidates: candidates.collect::<Result<_, _>>()?,
        })
    }

    fn token_counts(tokens: &VqaTokens) -> Vec<usize> {
        tokens.questions.iter().chain(&tokens.candidates).map(TokenIds::len).collect()
    }

    fn task(&self, mut images: Vec<PreparedImage>, tokens: &VqaTokens) -> Task {
        let image = images.pop().expect("a VQA plan has one image");
        let mode = match &self.mode {
            PlannedMode::Generate(params) => VqaMode::Generate(params.clone()),
            PlannedMode::Rank(_) => VqaMode::Rank(tokens.candidates.clone()),
        };
        Task::Vqa(Vqa { image, questions: tokens.questions.clone(), mode })
    }

    fn answer(&self, parts: AnswerParts<'_, VqaTokens>) -> Result<VqaAnswer, ApiError> {
        let TaskOutput::Vqa(outputs) = parts.output else { return Err(wrong_output()) };
        let image = parts.images.first().copied().ok_or_else(wrong_output)?;
        let mut answers = Vec::new();
        for (question, output) in self.questions.iter().zip(outputs) {
            answers.extend(self.answer_question(parts.model, question, output)?);
        }
        let seed = match &self.mode {
            PlannedMode::Generate(params) => seed_of(params),
            PlannedMode::Rank(_) => None,
        };
        Ok(VqaAnswer { answers, image: image.into(), seed })
    }

    fn generated_tokens(output: &TaskOutput) -> usize {
        let TaskOutput::Vqa(answers) = output else { return 0 };
        let counts = answers.iter().map(|answer| match answer {
            Answer::Generated(sequences) => sequences.iter().map(|s| s.tokens.len()).sum(),
            Answer::Ranked(_) => 0,
        });
        counts.sum()
    }
}

impl VqaPlan {
    fn candidates(&self) -> &[Arc<str>] {
        match &self.mode {
            PlannedMode::Generate(_) => &[],
            PlannedMode::Rank(candidates) => candidates,
        }
    }

    fn answer_question(
        &self,
        model: &Model,
        question: &Arc<str>,
        output: Answer,
    ) -> Result<Vec<QuestionAnswer>, ApiError> {
        match output {
            Answer::Generated(sequences) => {
                let answers = sequences.iter().map(|sequence| {
                    Ok(QuestionAnswer {
                        question: Arc::clone(question),
                        answer: model.tokenizer.decode(&sequence.text_ids()),
                        found: Found::Generated(SequenceFacts::of(sequence)?),
                    })
                });
                answers.collect()
            }
            Answer::Ranked(logprobs) => {
                let ranking = rank(self.candidates(), &logprobs)?;
                let best = ranking.first().ok_or_else(wrong_output)?.answer.to_string();
                let question = Arc::clone(question);
                Ok(vec![QuestionAnswer {
                    question,
                    answer: best,
                    found: Found::Ranked { ranking },
                }])
            }
        }
    }
}

/// Distinct (they are not empty by type), and not too many.
fn check_candidates(candidates: Vec<Text>, limits: &Limits) -> Result<Vec<Arc<str>>, ApiError> {
    if candidates.is_empty() {
        return Err(ApiError::field(Code::InvalidRequest, "candidates", "at least one is needed"));
    }
    let max = limits.max_candidates;
    check_count("candidates", candidates.len(), max, "limits.max_candidates")?;
    let mut seen = HashSet::new();
    if let Some(index) = candidates.iter().position(|candidate| !seen.insert(candidate)) {
        let field = format!("candidates[{index}]");
        return Err(ApiError::field(
            Code::InvalidRequest,
            field,
            "candidates are distinct; this one stands earlier too",
        ));
    }
    Ok(candidates.into_iter().map(|candidate| candidate.0).collect())
}

/// The candidates, best first; equal ones stay in the order given. The softmax is taken in f64, from the largest.
fn rank(candidates: &[Arc<str>], logprobs: &[f32]) -> Result<Vec<RankedAnswer>, ApiError> {
    if candidates.len() != logprobs.len() {
        return Err(wrong_output());
    }
    for &logprob in logprobs {
        finite(logprob)?;
    }
    let best = logprobs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logprob: f32| (f64::from(logprob) - f64::from(best)).exp();
    let total: f64 = logprobs.iter().map(|&logprob| weight(logprob)).sum();
    let scored = candidates.iter().zip(logprobs).map(|(answer, &logprob)| RankedAnswer {
        answer: Arc::clone(answer),
        logprob,
        probability: (weight(logprob) / total) as f32,
    });
    let mut ranking: Vec<_> = scored.collect();
    ranking.sort_by(|a, b| b.logprob.total_cmp(&a.logprob));
    Ok(ranking)
}

/// Answer questions about an image
///
/// Generates a short answer to each question, or, with `candidates`, scores every candidate in full and ranks them.
#[utoipa::path(
    post,
    path = "/vqa",
    operation_id = "answer_question",
    tag = "inference",
    request_body(content = VqaRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The answers, in the order of the questions.", body = VqaResponse, example = json!({
            "model": "demo-vqa",
            "answers": [{"question": "how many cats are there?", "answer": "2", "token_count": 2, "finish_reason": "stop", "logprob": -0.02, "avg_logprob": -0.01}],
            "image": {"id": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "width": 640, "height": 480, "format": "png"},
        })),
        InferenceProblems,
    ),
)]
pub(crate) async fn answer_question(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    reply::answer_single::<VqaPlan, VqaRequest>(&state, &context, http, |mut request| {
        (request.model.take(), request.into_input())
    })
    .await
}

/// Answer questions about many images
///
/// Each input is answered in its place; a field beside `inputs` is a default for all of them. In a multipart form
/// each `image` file is one input.
#[utoipa::path(
    post,
    path = "/vqa/batch",
    operation_id = "answer_question_batch",
    tag = "inference",
    request_body(content = VqaBatchRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "An answer or a problem for each input, in order.", body = BatchResponse<VqaAnswer>),
        InferenceProblems,
    ),
)]
pub(crate) async fn answer_question_batch(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    reply::answer_batch::<VqaPlan, VqaBatchRequest>(&state, &context, http, |mut request| {
        (
            request.model.take(),
            request.into_inputs(|input, defaults| {
                if input.question.is_some() || input.questions.is_some() {
                    (defaults.question, defaults.questions) = (None, None);
                }
            }),
        )
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranking_is_best_first_and_its_probabilities_are_the_softmax() {
        let candidates: Vec<Arc<str>> = vec!["no".into(), "yes".into(), "maybe".into()];
        let ranking = rank(&candidates, &[-2.0, -1.0, -3.0]).unwrap();
        let order: Vec<&str> = ranking.iter().map(|ranked| &*ranked.answer).collect();
        assert_eq!(order, ["yes", "no", "maybe"]);
        for (ranked, expected) in ranking.iter().zip([0.665_240_94, 0.244_728_48, 0.090_030_57]) {
            assert!((ranked.probability - expected).abs() < 1e-6, "{ranked:?}");
        }
    }

    #[test]
    fn improbable_candidates_keep_a_finite_softmax() {
        let candidates: Vec<Arc<str>> = vec!["a".into(), "b".into()];
        let ranking = rank(&candidates, &[-900.0, -901.0]).unwrap();
        assert!((ranking[0].probability - 0.731_058_6).abs() < 1e-6);
    }

    #[test]
    fn a_score_that_is_no_number_fails_the_question() {
        let candidates: Vec<Arc<str>> = vec!["a".into()];
        assert_eq!(rank(&candidates, &[f32::NAN]).unwrap_err().code, Code::InferenceFailed);
    }
}
