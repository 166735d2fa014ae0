//! `POST /vqa` and `/vqa/batch` (visual question answering): generate answers to questions about an image, or rank
//! candidate answers.

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
use crate::http::extract::generation::seed_of;
use crate::http::extract::image_field::ImageField;
use crate::http::extract::request::requests;
use crate::http::inference::arity::OneImage;
use crate::http::inference::candidates::{self, CandidateScore, Ranked};
use crate::http::inference::endpoint::{
    AnswerParts, Endpoint, NUMBERS_PER_TOKEN, PlanContext, check_count,
};
use crate::http::inference::explanation::{self, Explanation};
use crate::http::inference::generation::GenerationPlan;
use crate::http::inference::image_args::ImageArg;
use crate::http::inference::reply::{BatchResponse, ImageAnswer};
use crate::http::inference::sequences::{GeneratedText, SequenceFacts, wrong_count};
use crate::http::inference::text::TextEncoder;
use crate::http::inference::{reply, text};
use crate::http::openapi::conditions::{exactly_one, explained, generated_or_ranked};
use crate::http::openapi::endpoint::{EndpointRules, FollowUp};
use crate::http::openapi::{EXAMPLE_IMAGE, InferenceProblems};
use crate::http::state::HttpState;
use crate::http::state::models::{Eligible, Model};
use crate::task::{
    DecodeMode, Decoded, Explain, GenerationParams, PreparedImage, QuestionOutput, Role, TaskShape,
    TokenIds, Vqa,
};

/// Describes the endpoint, for the router and the OpenAPI documents.
pub(crate) fn endpoint() -> InferenceEndpoint {
    InferenceEndpoint::new::<VqaPlan>(
        OpenApiRouter::default()
            .routes(routes!(answer_question))
            .routes(routes!(answer_question_batch)),
        EndpointRules {
            required: &["image"],
            distinct_lists: &["candidates", "explain_layers"],
            conditions: vec![
                exactly_one("question", "questions"),
                generated_or_ranked(&[], &[]),
                explained(),
            ],
            defaults: json!({"tokens": false, "explain": false}),
            image_id: Some("$response.body#/image/id"),
            follow_up: FollowUp {
                link: "ask",
                fields: json!({"question": "what is in the picture?"}),
            },
        },
    )
}

requests! {
    /// Request for answers about one image.
    #[schema(example = json!({"image": EXAMPLE_IMAGE, "questions": ["how many cats are there?", "what color is the background?"]}))]
    single VqaRequest {}
    /// Request for answers about many images.
    #[schema(example = json!({"inputs": [{"image": EXAMPLE_IMAGE}], "question": "what color is the background?", "candidates": ["blue", "red"]}))]
    batch VqaBatchRequest
    /// One input of a VQA batch.
    input VqaInput {
        /// Image value: base64, data URI, id of a cached image, or URL where fetching is enabled.
        image: ImageField,
        /// A single question; use `questions` for several.
        question: Text,
        /// Questions, answered in order; the image is encoded only once.
        questions: Vec<Text>,
        /// Distinct answers to rank. Each is scored in full; nothing is generated.
        candidates: Vec<Text>,
        /// Adds the tokens of each text with their log-probabilities to the answer; false by default.
        tokens: bool,
        /// Adds where in the image the model looked for each token, for one sequence without beam search; false by default.
        explain: bool,
        /// Only with `explain`: layers of the text model that are averaged; by default all.
        explain_layers: Vec<Int<0, 1024>>,
    } generation
    alternatives question | questions
}

/// The answers about one image.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct VqaAnswer {
    /// The answers, in the order of the questions. If a question has several sequences, their answers are adjacent.
    #[schema(min_items = 1)]
    answers: Vec<QuestionAnswer>,
    /// Id, size and format of the image.
    image: ImageAnswer,
    /// Seed that reproduces these samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = u64, required = false, example = 1234, minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    seed: Option<u64>,
}

/// The answer to one question: generated, or the best of the candidates.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct QuestionAnswer {
    /// The question as sent by the client.
    #[schema(value_type = String, example = "how many cats are there?")]
    question: Arc<str>,
    /// The generated answer, or the best candidate.
    #[schema(example = "2")]
    answer: String,
    #[serde(flatten)]
    found: Found,
    /// Where in the image the model looked for each token of the question, to which it attends when it answers; only with
    /// `explain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Explanation, required = false)]
    explanation: Option<Explanation>,
}

/// Details of an answer: how it was generated, or the ranking.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum Found {
    /// The answer was generated by the model.
    Generated(SequenceFacts),
    /// The answer is the best of the candidates.
    Ranked {
        /// All candidates with their scores, best first.
        ranking: Vec<RankedAnswer>,
    },
}

/// A candidate and its score.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RankedAnswer {
    /// The candidate as sent by the client.
    #[schema(value_type = String, example = "cat")]
    answer: Arc<str>,
    #[serde(flatten)]
    score: CandidateScore,
}

/// The answers and the model that gave them.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct VqaResponse {
    /// Name of the model that answered.
    #[schema(example = "demo-vqa")]
    model: String,
    #[serde(flatten)]
    answer: VqaAnswer,
}

/// One validated input of `/vqa` or `/vqa/batch`.
#[derive(Debug, Clone)]
pub(crate) struct VqaPlan {
    image: ImageField,
    questions: Vec<Arc<str>>,
    /// Name of the field that the client used, `question` or `questions`, for error messages.
    asked_in: &'static str,
    mode: PlannedMode,
    /// Whether the answer lists the tokens.
    tokens: bool,
    explain: Option<Explain>,
}

#[derive(Debug, Clone)]
enum PlannedMode {
    Generate(GenerationPlan),
    Rank(Vec<Arc<str>>),
}

/// Token ids of the texts of a VQA request, and the generation parameters with the tokens of their words; `None` if the
/// candidates are ranked.
pub(crate) struct VqaTokens {
    questions: Vec<TokenIds>,
    candidates: Vec<TokenIds>,
    params: Option<GenerationParams>,
}

impl Endpoint for VqaPlan {
    const TASK: &'static str = "vqa";
    const MODELS: Eligible = Eligible::Role(Role::Vqa);
    type Single = VqaRequest;
    type Batch = VqaBatchRequest;
    type Images = OneImage;
    type Tokens = VqaTokens;
    type Task = Vqa;
    type Answer = VqaAnswer;

    fn plan(input: VqaInput, context: &PlanContext<'_>) -> Result<Self, ApiError> {
        let PlanContext { limits, model, .. } = *context;
        let generation = input.generation();
        let explain = explanation::wanted(input.explain, input.explain_layers, model)?;
        let mode = match input.candidates {
            None => {
                let generation = GenerationPlan::new(generation, limits, model)?;
                explanation::check_rows(explain.as_ref(), &generation.params)?;
                PlannedMode::Generate(generation)
            }
            Some(candidates) => {
                PlannedMode::Rank(candidates::checked(candidates, &generation, limits)?)
            }
        };
        let image = input.image.ok_or_else(|| text::needed("image"))?;
        let asked_in = if input.question.is_some() { "question" } else { "questions" };
        let questions =
            text::one_or_many(("question", input.question), ("questions", input.questions))?;
        check_count("questions", questions.len(), limits.max_questions, "limits.max_questions")?;
        let questions = questions.into_iter().map(|question| question.0).collect();
        let tokens = input.tokens.unwrap_or(false);
        Ok(Self { image, questions, asked_in, mode, tokens, explain })
    }

    fn shape(&self) -> TaskShape {
        let questions = self.questions.len();
        match &self.mode {
            PlannedMode::Generate(plan) => TaskShape::generated_answers(questions, &plan.params),
            PlannedMode::Rank(candidates) => TaskShape::ranked_answers(questions, candidates.len()),
        }
    }

    fn images(&self) -> ImageArg {
        ImageArg::single(self.image.clone())
    }

    fn text_bytes(&self) -> usize {
        let words = match &self.mode {
            PlannedMode::Generate(plan) => plan.text_bytes(),
            PlannedMode::Rank(_) => 0,
        };
        let texts = self.questions.iter().chain(self.candidates());
        texts.map(|text| text.len()).sum::<usize>() + words
    }

    fn tokenize(&self, texts: &TextEncoder) -> Result<VqaTokens, ApiError> {
        let max = texts.model().info.text_towers().max_tokens;
        let questions = self.questions.iter().enumerate().map(|(index, question)| {
            let field = match self.asked_in {
                "question" => "question".to_owned(),
                list => format!("{list}[{index}]"),
            };
            texts.encode(&field, question, max)
        });
        let params = match &self.mode {
            PlannedMode::Generate(plan) => Some(plan.tokenize(texts)?),
            PlannedMode::Rank(_) => None,
        };
        Ok(VqaTokens {
            params,
            questions: questions.collect::<Result<_, _>>()?,
            candidates: candidates::tokenize(self.candidates(), texts)?,
        })
    }

    fn token_counts(tokens: &VqaTokens) -> Vec<usize> {
        tokens.questions.iter().chain(&tokens.candidates).map(TokenIds::len).collect()
    }

    fn answer_values(&self, tokens: &VqaTokens, model: &Model) -> usize {
        let total = |texts: &[TokenIds]| texts.iter().map(TokenIds::len).sum::<usize>();
        let answered = match &tokens.params {
            Some(params) => params.rows() * params.max_new_tokens,
            None => total(&tokens.candidates),
        };
        let listed =
            if self.tokens { self.questions.len() * answered * NUMBERS_PER_TOKEN } else { 0 };
        let weights = if self.explain.is_some() {
            total(&tokens.questions) * model.info.vision_tower().tokens
        } else {
            0
        };
        listed + weights
    }

    fn task(&self, image: &PreparedImage, tokens: &VqaTokens) -> Vqa {
        let mode = match &tokens.params {
            Some(params) => DecodeMode::Generate(params.clone()),
            None => DecodeMode::Rank(tokens.candidates.clone()),
        };
        Vqa {
            image: image.clone(),
            questions: tokens.questions.clone(),
            mode,
            explain: self.explain.clone(),
        }
    }

    fn answer(&self, parts: AnswerParts<'_, Self>) -> Result<VqaAnswer, ApiError> {
        let outputs = parts.output;
        let mut answers = Vec::new();
        let asked = self.questions.iter().zip(&parts.tokens.questions);
        for ((question, ids), QuestionOutput { decoded, attention }) in asked.zip(outputs) {
            let mut of_question = self.answer_question(parts.model, question, decoded)?;
            if let (Some(explain), [answer]) = (&self.explain, &mut of_question[..]) {
                let ids = ids.as_slice();
                answer.explanation =
                    Some(Explanation::of_question(explain, parts.model, ids, attention)?);
            }
            answers.extend(of_question);
        }
        let seed = match &self.mode {
            PlannedMode::Generate(plan) => seed_of(&plan.params),
            PlannedMode::Rank(_) => None,
        };
        Ok(VqaAnswer { answers, image: parts.images.into(), seed })
    }

    fn generated_tokens(answers: &Vec<QuestionOutput>) -> usize {
        answers.iter().map(|answer| answer.decoded.generated_tokens()).sum()
    }
}

impl VqaAnswer {
    /// Returns the generated answers, for the answers of other APIs.
    pub(crate) fn into_texts(self) -> Vec<GeneratedText> {
        let answers = self.answers.into_iter();
        let generated = answers.filter_map(|answer| match answer.found {
            Found::Generated(facts) => Some(facts.into_text(answer.answer)),
            Found::Ranked { .. } => None,
        });
        generated.collect()
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
        output: Decoded,
    ) -> Result<Vec<QuestionAnswer>, ApiError> {
        let tokenizer = self.tokens.then(|| &**model.tokenizer());
        match output {
            Decoded::Generated(sequences) => {
                let answers = sequences.iter().map(|sequence| {
                    Ok(QuestionAnswer {
                        question: Arc::clone(question),
                        answer: model.tokenizer().decode(&sequence.text_ids()),
                        found: Found::Generated(SequenceFacts::of(sequence, tokenizer)?),
                        explanation: None,
                    })
                });
                answers.collect()
            }
            Decoded::Ranked(scored) => {
                let ranking = candidates::rank(self.candidates(), &scored, tokenizer)?;
                let best = ranking.first().ok_or_else(wrong_count)?.text.to_string();
                let question = Arc::clone(question);
                let ranking = ranking.into_iter().map(RankedAnswer::from).collect();
                Ok(vec![QuestionAnswer {
                    question,
                    answer: best,
                    found: Found::Ranked { ranking },
                    explanation: None,
                }])
            }
        }
    }
}

impl From<Ranked> for RankedAnswer {
    fn from(Ranked { text, score }: Ranked) -> Self {
        Self { answer: text, score }
    }
}

/// Answer questions about an image
///
/// Generates a short answer to each question or, with `candidates`, scores every candidate in full and ranks them.
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
    reply::answer_single::<VqaPlan>(&state, &context, http).await
}

/// Answer questions about many images
///
/// Returns one result per input, in the same order. A field next to `inputs` is the default for every input. In a
/// multipart form, each `image` file is one input.
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
    reply::answer_batch::<VqaPlan>(&state, &context, http).await
}
