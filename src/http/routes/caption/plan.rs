//! A caption call: its request, its validated form, and its answer.

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use crate::http::error::{ApiError, Code};
use crate::http::extract::choices::VerifyField;
use crate::http::extract::fields::{Int, Text};
use crate::http::extract::generation::seed_of;
use crate::http::extract::image_field::ImageField;
use crate::http::extract::request::requests;
use crate::http::inference::arity::OneImage;
use crate::http::inference::candidates::{self, CandidateScore, Ranked};
use crate::http::inference::endpoint::{
    AnswerParts, Endpoint, FirstOutput, NUMBERS_PER_TOKEN, PlanContext,
};
use crate::http::inference::explanation::{self, Explanation};
use crate::http::inference::generation::GenerationPlan;
use crate::http::inference::image_args::ImageArg;
use crate::http::inference::reply::ImageAnswer;
use crate::http::inference::sequences::{GeneratedText, SequenceFacts, finite, wrong_count};
use crate::http::inference::text::{self, TextEncoder};
use crate::http::openapi::EXAMPLE_IMAGE;
use crate::http::state::models::{Eligible, Model, Models};
use crate::input::Tokenizer;
use crate::task::{
    Caption, DecodeMode, Decoded, Explain, GenerationParams, PreparedImage, Role, Scores, Sequence,
    Similarity, Task, TaskKind, TaskOutput, TaskShape, TokenIds,
};

requests! {
    /// Request for the captions of one image.
    #[schema(example = json!({"image": EXAMPLE_IMAGE}))]
    single CaptionRequest {
        /// Streams the text as server-sent events (only for one sequence without beam search); false by default.
        stream: bool,
    }
    /// Request for the captions of many images.
    #[schema(example = json!({"inputs": [{"image": EXAMPLE_IMAGE, "num_beams": 3}], "max_new_tokens": 30}))]
    batch CaptionBatchRequest
    /// One input of a caption batch.
    input CaptionInput {
        /// Image value: base64, data URI, id of a cached image, or URL where fetching is enabled.
        image: ImageField,
        /// Text that the caption continues.
        prompt: Text,
        /// Distinct captions to rank. Each is scored in full; nothing is generated.
        candidates: Vec<Text>,
        /// Adds the tokens of each text with their log-probabilities to the answer; false by default.
        tokens: bool,
        /// Lets a retrieval model check each caption against the image: `true` for the first one loaded, or its name.
        /// Captions then have a `match`, and the best match comes first; false by default.
        verify: VerifyField,
        /// Adds where in the image the model looked for each token, for one sequence without beam search; false by default.
        explain: bool,
        /// Only with `explain`: layers of the text model that are averaged; by default all.
        explain_layers: Vec<Int<0, 1024>>,
    } generation
}

/// The captions of one image.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CaptionAnswer {
    /// One caption per sequence. Beams are sorted best first; samples are in the order in which they were drawn. With
    /// `verify`, the best match comes first. Empty if candidates were ranked.
    captions: Vec<CaptionText>,
    /// All candidates with their scores, best first; only if the request has `candidates`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<RankedCaption>, required = false)]
    ranking: Option<Vec<RankedCaption>>,
    /// Id, size and format of the image.
    image: ImageAnswer,
    /// Seed that reproduces these samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = u64, required = false, example = 1234, minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    seed: Option<u64>,
}

/// One caption and how it was generated.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CaptionText {
    /// The whole caption, including the prompt.
    #[schema(example = "two cats on a blue background")]
    text: String,
    /// The generated text without the prompt; absent if the request has no prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    continuation: Option<String>,
    /// Probability that the caption describes the image, from the retrieval model; only with `verify`.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = f32, required = false, example = 0.9971, minimum = 0, maximum = 1)]
    matching: Option<f32>,
    #[serde(flatten)]
    facts: SequenceFacts,
    /// Where in the image the model looked for each token; only with `explain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Explanation, required = false)]
    explanation: Option<Explanation>,
}

/// A candidate caption and its score.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RankedCaption {
    /// The candidate as sent by the client.
    #[schema(value_type = String, example = "two cats")]
    text: Arc<str>,
    #[serde(flatten)]
    score: CandidateScore,
}

/// The captions and the model that generated them.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CaptionResponse {
    /// Name of the model that answered.
    #[schema(example = "demo-caption")]
    model: String,
    #[serde(flatten)]
    answer: CaptionAnswer,
}

/// The scores that `verify` needs.
const MATCHING: Scores = Scores { matching: true, match_logits: false, cosine: false };

/// One validated input of `/caption` or `/caption/batch`.
#[derive(Debug, Clone)]
pub(crate) struct CaptionPlan {
    image: ImageField,
    mode: PlannedMode,
    /// Whether the answer lists the tokens.
    tokens: bool,
    /// The retrieval model that checks the captions.
    verifier: Option<Model>,
    explain: Option<Explain>,
}

#[derive(Debug, Clone)]
enum PlannedMode {
    Generate { prompt: Option<Arc<str>>, generation: GenerationPlan },
    Rank(Vec<Arc<str>>),
}

/// Token ids of the texts of a caption request. The generation parameters include the tokens of their words.
pub(crate) enum CaptionTokens {
    Generate { prompt: Option<TokenIds>, params: GenerationParams },
    Candidates(Vec<TokenIds>),
}

impl Endpoint for CaptionPlan {
    const TASK: &'static str = "caption";
    const MODELS: Eligible = Eligible::Role(Role::Caption);
    type Single = CaptionRequest;
    type Batch = CaptionBatchRequest;
    type Images = OneImage;
    type Tokens = CaptionTokens;
    type Task = Caption;
    type Answer = CaptionAnswer;

    fn plan(input: CaptionInput, context: &PlanContext<'_>) -> Result<Self, ApiError> {
        let PlanContext { limits, model, models } = *context;
        let generation = input.generation();
        let prompt = input.prompt.map(|prompt| prompt.0);
        let verifier = verifier(input.verify, models)?;
        let explain = explanation::wanted(input.explain, input.explain_layers, model)?;
        let mode = match (input.candidates, prompt) {
            (None, prompt) => {
                let generation = GenerationPlan::new(generation, limits, model)?;
                explanation::check_rows(explain.as_ref(), &generation.params)?;
                PlannedMode::Generate { prompt, generation }
            }
            (Some(_), Some(_)) => return Err(candidates::without_effect("prompt")),
            (Some(_), None) if verifier.is_some() => {
                return Err(candidates::without_effect("verify"));
            }
            (Some(_), None) if explain.is_some() => {
                return Err(candidates::without_effect("explain"));
            }
            (Some(candidates), None) => {
                PlannedMode::Rank(candidates::checked(candidates, &generation, limits)?)
            }
        };
        let image = input.image.ok_or_else(|| text::needed("image"))?;
        Ok(Self { image, mode, tokens: input.tokens.unwrap_or(false), verifier, explain })
    }

    fn shape(&self) -> TaskShape {
        match &self.mode {
            PlannedMode::Generate { generation, .. } => {
                let params = &generation.params;
                let mut shape = TaskShape::caption(params);
                if self.verifier.is_some() {
                    let captions = params.groups() * params.sequences_per_group();
                    shape.rows += TaskShape::similarity(1, captions, MATCHING).rows;
                }
                shape
            }
            PlannedMode::Rank(candidates) => TaskShape::ranked_captions(candidates.len()),
        }
    }

    fn images(&self) -> ImageArg {
        ImageArg::single(self.image.clone())
    }

    fn text_bytes(&self) -> usize {
        match &self.mode {
            PlannedMode::Generate { prompt, generation } => {
                prompt.as_ref().map_or(0, |prompt| prompt.len()) + generation.text_bytes()
            }
            PlannedMode::Rank(candidates) => candidates.iter().map(|text| text.len()).sum(),
        }
    }

    fn tokenize(&self, texts: &TextEncoder) -> Result<CaptionTokens, ApiError> {
        match &self.mode {
            PlannedMode::Generate { prompt, generation } => {
                let params = generation.tokenize(texts)?;
                // The decoder reads the prompt without its [SEP], then every new token except the last. Each of these
                // tokens needs a position.
                let positions = texts.model().info.text_towers().max_tokens + 2;
                let max = positions.saturating_sub(params.max_new_tokens);
                let encode = |prompt: &Arc<str>| texts.encode("prompt", prompt, max);
                let prompt = prompt.as_ref().map(encode).transpose()?;
                Ok(CaptionTokens::Generate { prompt, params })
            }
            PlannedMode::Rank(candidates) => {
                candidates::tokenize(candidates, texts).map(CaptionTokens::Candidates)
            }
        }
    }

    fn token_counts(tokens: &CaptionTokens) -> Vec<usize> {
        match tokens {
            CaptionTokens::Generate { prompt, .. } => prompt.iter().map(TokenIds::len).collect(),
            CaptionTokens::Candidates(candidates) => candidates.iter().map(TokenIds::len).collect(),
        }
    }

    fn task(&self, image: &PreparedImage, tokens: &CaptionTokens) -> Caption {
        let (prompt, mode) = match tokens {
            CaptionTokens::Generate { prompt, params } => {
                (prompt.clone(), DecodeMode::Generate(params.clone()))
            }
            CaptionTokens::Candidates(candidates) => (None, DecodeMode::Rank(candidates.clone())),
        };
        Caption { image: image.clone(), prompt, mode, explain: self.explain.clone() }
    }

    fn answer_values(&self, tokens: &CaptionTokens, model: &Model) -> usize {
        let listed = if self.tokens { NUMBERS_PER_TOKEN } else { 0 };
        let weights = if self.explain.is_some() { model.info.vision_tower().tokens } else { 0 };
        let count = match (&self.mode, tokens) {
            (PlannedMode::Generate { generation: GenerationPlan { params, .. }, .. }, _) => {
                params.rows() * params.max_new_tokens
            }
            (PlannedMode::Rank(_), tokens) => Self::token_counts(tokens).iter().sum(),
        };
        count * (listed + weights)
    }

    fn second_model(&self) -> Option<&Model> {
        self.verifier.as_ref()
    }

    fn second_task(&self, first: &FirstOutput<'_, Self>) -> Result<Option<Task>, ApiError> {
        let (Some(verifier), Decoded::Generated(sequences)) = (&self.verifier, first.output) else {
            return Ok(None);
        };
        let prompt = text::prompt_ids(first.tokens.prompt());
        let texts = sequences.iter().map(|sequence| {
            let caption = first.model.tokenizer().decode(&[prompt, &sequence.text_ids()].concat());
            verifier.tokenizer().encode_truncated(&caption, verifier.info.text_towers().max_tokens)
        });
        Ok(Some(Task::Similarity(Similarity {
            images: vec![first.images.clone()],
            texts: texts.collect::<Result<_, _>>()?,
            scores: MATCHING,
        })))
    }

    fn generated_tokens(output: &Decoded) -> usize {
        output.generated_tokens()
    }

    fn answer(&self, parts: AnswerParts<'_, Self>) -> Result<CaptionAnswer, ApiError> {
        let AnswerParts { model, images: image, tokens, output, second } = parts;
        let tokenizer = self.tokens.then(|| &**model.tokenizer());
        let image = image.into();
        match (&self.mode, output) {
            (PlannedMode::Generate { generation, .. }, Decoded::Generated(sequences)) => {
                let captions = sequences.into_iter().map(|mut sequence| {
                    let attention = sequence.attention.take();
                    let mut text = caption_text(model, tokens.prompt(), &sequence, tokenizer)?;
                    if let Some(explain) = &self.explain {
                        let tokens = &sequence.tokens;
                        let explanation =
                            Explanation::of_generated(explain, model, tokens, attention)?;
                        text.explanation = Some(explanation);
                    }
                    Ok::<_, ApiError>(text)
                });
                let mut captions: Vec<CaptionText> = captions.collect::<Result<_, _>>()?;
                if self.verifier.is_some() {
                    add_matches(&mut captions, second)?;
                }
                Ok(CaptionAnswer {
                    captions,
                    ranking: None,
                    image,
                    seed: seed_of(&generation.params),
                })
            }
            (PlannedMode::Rank(candidates), Decoded::Ranked(scored)) => {
                let ranking = candidates::rank(candidates, &scored, tokenizer)?;
                let ranking = ranking.into_iter().map(RankedCaption::from).collect();
                Ok(CaptionAnswer {
                    captions: Vec::new(),
                    ranking: Some(ranking),
                    image,
                    seed: None,
                })
            }
            _ => Err(wrong_count()),
        }
    }
}

impl CaptionAnswer {
    /// Returns the captions, for the answers of other APIs.
    pub(crate) fn into_texts(self) -> Vec<GeneratedText> {
        let texts = self.captions.into_iter();
        texts.map(|caption| caption.facts.into_text(caption.text)).collect()
    }
}

impl CaptionPlan {
    /// True if tokens can be sent as they are generated, that is, for a single sequence without beam search.
    pub(super) fn streams(&self) -> bool {
        match &self.mode {
            PlannedMode::Generate { generation, .. } => generation.params.rows() == 1,
            PlannedMode::Rank(_) => false,
        }
    }

    /// True if a retrieval model checks the captions.
    pub(super) fn is_verified(&self) -> bool {
        self.verifier.is_some()
    }
}

impl CaptionTokens {
    /// Returns the prompt, if there is one.
    pub(super) fn prompt(&self) -> Option<&TokenIds> {
        match self {
            Self::Generate { prompt, .. } => prompt.as_ref(),
            Self::Candidates(_) => None,
        }
    }
}

impl From<Ranked> for RankedCaption {
    fn from(Ranked { text, score }: Ranked) -> Self {
        Self { text, score }
    }
}

/// Returns the retrieval model that a request wants its captions to be checked by.
///
/// # Errors
/// `task_not_loaded` without a retrieval model, `model_not_found` if none has the requested name, and
/// `score_not_available` if it has no matching head.
fn verifier(field: Option<VerifyField>, models: &Models) -> Result<Option<Model>, ApiError> {
    let name = match field {
        None | Some(VerifyField::Flag(false)) => return Ok(None),
        Some(VerifyField::Flag(true)) => None,
        Some(VerifyField::Model(name)) => Some(name),
    };
    let name = name.as_ref().map(|name| &*name.0);
    let model = models.pick_by("verify", Eligible::Role(Role::Retrieval), name)?;
    if model.info.class.has_matching_head() {
        return Ok(Some(model.clone()));
    }
    let detail = format!("{} has no image-text matching head", model.info.name);
    Err(ApiError::field(Code::ScoreNotAvailable, "verify", detail))
}

/// Adds the retrieval model's match to each caption, and sorts the captions: the best match comes first, and captions with
/// equal matches keep their order.
fn add_matches(captions: &mut [CaptionText], output: Option<TaskOutput>) -> Result<(), ApiError> {
    let cells = output.and_then(Similarity::output).and_then(|rows| rows.into_iter().next());
    let cells = cells.filter(|cells| cells.len() == captions.len()).ok_or_else(wrong_count)?;
    for (caption, cell) in captions.iter_mut().zip(cells) {
        caption.matching = Some(finite(cell.matching.ok_or_else(wrong_count)?)?);
    }
    captions
        .sort_by(|a, b| b.matching.unwrap_or_default().total_cmp(&a.matching.unwrap_or_default()));
    Ok(())
}

/// Decodes a generated sequence together with the prompt that it continues. `tokenizer_for_tokens` is given if the answer
/// lists the tokens.
fn caption_text(
    model: &Model,
    prompt: Option<&TokenIds>,
    sequence: &Sequence,
    tokenizer_for_tokens: Option<&Tokenizer>,
) -> Result<CaptionText, ApiError> {
    let prompt_ids = text::prompt_ids(prompt);
    let new_ids = sequence.text_ids();
    let tokenizer = &model.tokenizer();
    Ok(CaptionText {
        text: tokenizer.decode(&[prompt_ids, &new_ids].concat()),
        continuation: prompt.map(|_| tokenizer.decode_continuation(prompt_ids, &new_ids)),
        matching: None,
        facts: SequenceFacts::of(sequence, tokenizer_for_tokens)?,
        explanation: None,
    })
}
