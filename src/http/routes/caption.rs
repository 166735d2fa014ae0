//! `POST /caption` and `/caption/batch`: caption an image, optionally as the continuation of a prompt.

use std::sync::Arc;

use axum::extract::{Extension, Request as HttpRequest, State};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::call::{self, AnswerParts, Call, Endpoint};
use crate::http::error::{ApiError, Code};
use crate::http::extract::fields::{ImageField, Text};
use crate::http::extract::request::requests;
use crate::http::generation::seed_of;
use crate::http::image_args::ImageArg;
use crate::http::middleware::context::RequestContext;
use crate::http::models::Model;
use crate::http::openapi::{EXAMPLE_IMAGE, InferenceProblems};
use crate::http::reply::{self, BatchResponse, ImageAnswer};
use crate::http::sequences::{SequenceFacts, wrong_output};
use crate::http::settings::Limits;
use crate::http::state::HttpState;
use crate::http::{stream, text};
use crate::task::{
    Caption, GenerationParams, PreparedImage, Role, Sequence, Task, TaskOutput, TokenIds,
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
        /// An image value: base64, data URI, id of a cached image, or `https://` URL where fetching is enabled.
        image: ImageField,
        /// Text that the caption continues.
        prompt: Text,
    } generation
}

/// The captions of one image.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CaptionAnswer {
    /// One per sequence: beams best first, samples in the order drawn.
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
    /// The generated text without the prompt; absent without a prompt.
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
    type Input = CaptionInput;
    type Tokens = Option<TokenIds>;
    type Answer = CaptionAnswer;

    fn plan(input: CaptionInput, limits: &Limits, model: &Model) -> Result<Self, ApiError> {
        let params = input.generation().into_params(limits, model.info.max_text_tokens)?;
        let image = input.image.ok_or_else(|| text::needed("image"))?;
        Ok(Self { image, prompt: input.prompt.map(|prompt| prompt.0), params })
    }

    fn rows(&self) -> usize {
        self.params.rows()
    }

    fn images(&self) -> Vec<ImageArg> {
        vec![ImageArg::single(self.image.clone())]
    }

    fn text_bytes(&self) -> usize {
        self.prompt.as_ref().map_or(0, |prompt| prompt.len())
    }

    fn tokenize(&self, model: &Model) -> Result<Option<TokenIds>, ApiError> {
        let Some(prompt) = &self.prompt else { return Ok(None) };
        // The decoder reads the prompt without its [SEP], then every new token but the last. Each needs a position.
        let max = (model.info.max_text_tokens + 2).saturating_sub(self.params.max_new_tokens);
        text::encode(model, "prompt", prompt, max).map(Some)
    }

    fn token_counts(tokens: &Option<TokenIds>) -> Vec<usize> {
        tokens.iter().map(TokenIds::len).collect()
    }

    fn task(&self, mut images: Vec<PreparedImage>, tokens: &Option<TokenIds>) -> Task {
        let image = images.pop().expect("a caption plan has one image");
        Task::Caption(Caption { image, prompt: tokens.clone(), params: self.params.clone() })
    }

    fn answer(&self, parts: AnswerParts<'_, Option<TokenIds>>) -> Result<CaptionAnswer, ApiError> {
        let AnswerParts { model, images, tokens, output } = parts;
        let TaskOutput::Caption(sequences) = output else { return Err(wrong_output()) };
        let image = images.first().copied().ok_or_else(wrong_output)?;
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
    /// True if tokens can be sent as they are generated: one sequence, no beam search.
    fn streams(&self) -> bool {
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

/// Caption an image
///
/// Generates a caption, or continues the text in `prompt`. Send the image as an image value in JSON, as a file in a
/// multipart form, or as the raw body with the other fields in the query string.
#[utoipa::path(
    post,
    path = "/caption",
    operation_id = "caption_image",
    tag = "inference",
    request_body(content = CaptionRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The captions. With `stream`: `delta` events, then one `done` or `error` event.", content(
            (CaptionResponse = "application/json", example = json!({
                "model": "demo-caption",
                "captions": [{"text": "two cats on a blue background", "token_count": 7, "finish_reason": "stop", "logprob": -0.84, "avg_logprob": -0.12}],
                "image": {"id": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "width": 640, "height": 480, "format": "jpeg"},
            })),
            (String = "text/event-stream"),
        )),
        InferenceProblems,
    ),
)]
pub(crate) async fn caption_image(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    let (state, context) = (&state, &context);
    reply::within_deadline(http, state, context, |http, deadline| async move {
        let role = CaptionPlan::ROLE;
        let opened = call::open::<CaptionRequest>(http, state, context, role, deadline).await?;
        let streaming = opened.request.stream.unwrap_or(false);
        let call: Call<CaptionPlan> = opened
            .prepare(false, |mut request| (request.model.take(), vec![request.into_input()]))
            .await?;
        if !streaming {
            return reply::single_answer(call).await;
        }
        let streams = |item: &Result<_, _>| item.as_ref().is_ok_and(|item: &call::Item<CaptionPlan>| item.plan.streams());
        if !call.items.iter().all(|item| item.is_err() || streams(item)) {
            let detail = "only one sequence without beam search can be streamed; leave out num_beams and num_return_sequences";
            return Err(ApiError::field(Code::InvalidRequest, "stream", detail));
        }
        stream::caption_stream(call, context.clone()).await
    })
    .await
}

/// Caption many images
///
/// Returns one result per input, in the same order. A field next to `inputs` is the default for every input. In a
/// multipart form, each `image` file is one input.
#[utoipa::path(
    post,
    path = "/caption/batch",
    operation_id = "caption_image_batch",
    tag = "inference",
    request_body(content = CaptionBatchRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "An answer or a problem for each input, in order.", body = BatchResponse<CaptionAnswer>),
        InferenceProblems,
    ),
)]
pub(crate) async fn caption_image_batch(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    reply::answer_batch::<CaptionPlan, CaptionBatchRequest>(
        &state,
        &context,
        http,
        |mut request| (request.model.take(), request.into_inputs(|_, _| ())),
    )
    .await
}
