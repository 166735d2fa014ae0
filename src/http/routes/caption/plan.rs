//! A caption call: its request, its validated form, and its answer.

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use crate::http::error::ApiError;
use crate::http::extract::fields::Text;
use crate::http::extract::generation::seed_of;
use crate::http::extract::image_field::ImageField;
use crate::http::extract::request::requests;
use crate::http::inference::arity::OneImage;
use crate::http::inference::endpoint::{AnswerParts, Endpoint};
use crate::http::inference::image_args::ImageArg;
use crate::http::inference::reply::ImageAnswer;
use crate::http::inference::sequences::SequenceFacts;
use crate::http::inference::text;
use crate::http::openapi::EXAMPLE_IMAGE;
use crate::http::settings::Limits;
use crate::http::state::models::Model;
use crate::task::{Caption, GenerationParams, PreparedImage, Role, Sequence, TaskShape, TokenIds};

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
    } generation
}

/// The captions of one image.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CaptionAnswer {
    /// One caption per sequence. Beams are sorted best first; samples are in the order in which they were drawn.
    #[schema(min_items = 1)]
    captions: Vec<CaptionText>,
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
    #[serde(flatten)]
    facts: SequenceFacts,
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

/// One validated input of `/caption` or `/caption/batch`.
#[derive(Debug, Clone)]
pub(crate) struct CaptionPlan {
    image: ImageField,
    prompt: Option<Arc<str>>,
    params: GenerationParams,
}

impl Endpoint for CaptionPlan {
    const TASK: &'static str = "caption";
    const ROLE: Role = Role::Caption;
    type Single = CaptionRequest;
    type Batch = CaptionBatchRequest;
    type Images = OneImage;
    type Tokens = Option<TokenIds>;
    type Task = Caption;
    type Answer = CaptionAnswer;

    fn plan(input: CaptionInput, limits: &Limits, model: &Model) -> Result<Self, ApiError> {
        let params = input.generation().into_params(limits, model.info.max_text_tokens)?;
        let image = input.image.ok_or_else(|| text::needed("image"))?;
        Ok(Self { image, prompt: input.prompt.map(|prompt| prompt.0), params })
    }

    fn shape(&self) -> TaskShape {
        TaskShape::caption(&self.params)
    }

    fn images(&self) -> ImageArg {
        ImageArg::single(self.image.clone())
    }

    fn text_bytes(&self) -> usize {
        self.prompt.as_ref().map_or(0, |prompt| prompt.len())
    }

    fn tokenize(&self, model: &Model) -> Result<Option<TokenIds>, ApiError> {
        let Some(prompt) = &self.prompt else { return Ok(None) };
        // The decoder reads the prompt without its [SEP], then every new token except the last. Each of these tokens
        // needs a position.
        let max = (model.info.max_text_tokens + 2).saturating_sub(self.params.max_new_tokens);
        text::encode(model, "prompt", prompt, max).map(Some)
    }

    fn token_counts(tokens: &Option<TokenIds>) -> Vec<usize> {
        tokens.iter().map(TokenIds::len).collect()
    }

    fn task(&self, image: PreparedImage, tokens: &Option<TokenIds>) -> Caption {
        Caption { image, prompt: tokens.clone(), params: self.params.clone() }
    }

    fn generated_tokens(sequences: &Vec<Sequence>) -> usize {
        sequences.iter().map(|sequence| sequence.tokens.len()).sum()
    }

    fn answer(&self, parts: AnswerParts<'_, Self>) -> Result<CaptionAnswer, ApiError> {
        let AnswerParts { model, images: image, tokens, output: sequences } = parts;
        let captions =
            sequences.iter().map(|sequence| caption_text(model, tokens.as_ref(), sequence));
        Ok(CaptionAnswer {
            captions: captions.collect::<Result<_, _>>()?,
            image: image.into(),
            seed: seed_of(&self.params),
        })
    }
}

impl CaptionPlan {
    /// True if tokens can be sent as they are generated, that is, for a single sequence without beam search.
    pub(super) fn streams(&self) -> bool {
        self.params.rows() == 1
    }
}

/// Decodes a generated sequence together with the prompt that it continues.
fn caption_text(
    model: &Model,
    prompt: Option<&TokenIds>,
    sequence: &Sequence,
) -> Result<CaptionText, ApiError> {
    let prompt_ids = text::prompt_ids(prompt);
    let new_ids = sequence.text_ids();
    let tokenizer = &model.tokenizer;
    Ok(CaptionText {
        text: tokenizer.decode(&[prompt_ids, &new_ids].concat()),
        continuation: prompt.map(|_| tokenizer.decode_continuation(prompt_ids, &new_ids)),
        facts: SequenceFacts::of(sequence)?,
    })
}
