//! The responses of `POST /v1/chat/completions`: whole, or in chunks.

use serde::Serialize;
use utoipa::ToSchema;

use super::super::super::now::unix_seconds;
use super::super::super::text_query::AnswerFacts;
use crate::http::context::RequestContext;
use crate::http::inference::sequences::{GeneratedText, TokenAnswer};

/// A chat completion: one or more texts about the image.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChatCompletion {
    /// Id of this completion, with the request id.
    id: String,
    /// `chat.completion`.
    object: &'static str,
    /// Time of the answer, in seconds since 1970.
    created: u64,
    /// Name of the model that answered.
    #[schema(example = "demo-vqa")]
    model: String,
    /// The texts.
    choices: Vec<Choice>,
    /// Number of tokens.
    usage: Usage,
}

/// One text of a completion.
#[derive(Debug, Serialize, ToSchema)]
struct Choice {
    /// Index of the text.
    index: usize,
    /// The text.
    message: AssistantMessage,
    /// Log-probabilities of the tokens, if requested; otherwise null.
    #[schema(value_type = Option<Object>, required = true)]
    logprobs: Option<Logprobs>,
    /// `stop`, or `length` if the text reached the limit on new tokens.
    finish_reason: &'static str,
}

/// The text of a completion.
#[derive(Debug, Serialize, ToSchema)]
struct AssistantMessage {
    /// `assistant`.
    role: &'static str,
    /// The caption or the answer.
    #[schema(example = "2")]
    content: String,
    /// Always null.
    #[schema(value_type = Option<String>, required = true)]
    refusal: Option<()>,
}

/// Number of tokens that were read and generated. The tokens of images do not count.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "the names of the API")]
pub(super) struct Usage {
    /// Tokens of the question or prompt.
    prompt_tokens: usize,
    /// Tokens of all texts, with their stop tokens.
    completion_tokens: usize,
    /// The sum of both.
    total_tokens: usize,
}

#[derive(Debug, Serialize)]
struct Logprobs {
    content: Vec<TokenLogprobs>,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
struct TokenLogprobs {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: [(); 0],
}

impl Usage {
    /// Counts the tokens of an answer with these texts.
    pub(super) fn of(facts: &AnswerFacts, completion_tokens: usize) -> Self {
        let prompt_tokens = facts.prompt_tokens;
        Self { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }
}

impl Logprobs {
    fn of(tokens: Vec<TokenAnswer>) -> Self {
        let content = tokens.into_iter().map(|TokenAnswer { text, logprob, .. }| {
            let bytes = text.clone().into_bytes();
            TokenLogprobs { token: text, logprob, bytes, top_logprobs: [] }
        });
        Self { content: content.collect(), refusal: None }
    }
}

impl ChatCompletion {
    pub(super) fn new(
        context: &RequestContext,
        facts: &AnswerFacts,
        texts: Vec<GeneratedText>,
    ) -> Self {
        let completion_tokens = texts.iter().map(|text| text.token_count).sum();
        let choices = texts.into_iter().enumerate().map(|(index, generated)| Choice {
            index,
            finish_reason: finish_reason(&generated),
            logprobs: generated.tokens.map(Logprobs::of),
            message: AssistantMessage { role: "assistant", content: generated.text, refusal: None },
        });
        Self {
            id: completion_id(context),
            object: "chat.completion",
            created: unix_seconds(),
            model: facts.model.clone(),
            choices: choices.collect(),
            usage: Usage::of(facts, completion_tokens),
        }
    }
}

/// A part of a streamed completion.
#[derive(Debug, Serialize)]
pub(super) struct ChatChunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "ChunkUsage::is_absent")]
    usage: ChunkUsage,
}

/// The field `usage` of a chunk.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
enum ChunkUsage {
    /// The request does not ask for it.
    Absent,
    /// The request asks for it, but this is not the last chunk.
    Null(Option<Usage>),
    /// The last chunk.
    Given(Usage),
}

impl ChunkUsage {
    fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

#[derive(Debug, Serialize)]
struct ChunkChoice {
    index: usize,
    delta: ChunkDelta,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

#[derive(Debug, Default, Serialize)]
struct ChunkDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

/// What all chunks of a stream have in common.
#[derive(Debug)]
pub(super) struct ChunkWriter {
    id: String,
    created: u64,
    model: String,
    includes_usage: bool,
}

impl ChunkWriter {
    pub(super) fn new(context: &RequestContext, model: &str, includes_usage: bool) -> Self {
        let (id, created) = (completion_id(context), unix_seconds());
        Self { id, created, model: model.to_owned(), includes_usage }
    }

    /// Begins the text with this index.
    pub(super) fn begin(&self, index: usize) -> ChatChunk<'_> {
        let delta = ChunkDelta { role: Some("assistant"), content: Some(String::new()) };
        self.chunk(index, delta, None)
    }

    /// Continues a text.
    pub(super) fn piece(&self, index: usize, text: String) -> ChatChunk<'_> {
        self.chunk(index, ChunkDelta { role: None, content: Some(text) }, None)
    }

    /// Ends a text.
    pub(super) fn end(&self, index: usize, generated: &GeneratedText) -> ChatChunk<'_> {
        self.chunk(index, ChunkDelta::default(), Some(finish_reason(generated)))
    }

    /// Ends the stream with the usage, if the request asks for it.
    pub(super) fn usage(&self, usage: Usage) -> Option<ChatChunk<'_>> {
        let chunk =
            || ChatChunk { usage: ChunkUsage::Given(usage), ..self.with_choices(Vec::new()) };
        self.includes_usage.then(chunk)
    }

    fn chunk(
        &self,
        index: usize,
        delta: ChunkDelta,
        finish_reason: Option<&'static str>,
    ) -> ChatChunk<'_> {
        self.with_choices(vec![ChunkChoice { index, delta, logprobs: None, finish_reason }])
    }

    fn with_choices(&self, choices: Vec<ChunkChoice>) -> ChatChunk<'_> {
        ChatChunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            choices,
            usage: if self.includes_usage { ChunkUsage::Null(None) } else { ChunkUsage::Absent },
        }
    }
}

fn completion_id(context: &RequestContext) -> String {
    format!("chatcmpl-{}", context.id)
}

fn finish_reason(generated: &GeneratedText) -> &'static str {
    if generated.is_finished { "stop" } else { "length" }
}
