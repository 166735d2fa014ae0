//! The request of `POST /v1/chat/completions`. Of a conversation, BLIP uses the last image and the last text of the user.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use utoipa::ToSchema;

use super::super::super::brief::Brief;
use super::super::super::lenient;
use super::super::super::sampling::{Sampling, StopField};
use super::super::super::text_query::{FieldNames, TextQuery};
use crate::http::error::{ApiError, Code};
use crate::http::extract::fields::FromObject;
use crate::http::extract::image_field::ImageField;

/// The path under which errors refer to the image of a conversation.
const IMAGE: &str = "messages[].content[].image_url.url";

/// Request for a chat completion about an image. Fields that BLIP cannot use are ignored.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({
    "model": "vqa",
    "messages": [{"role": "user", "content": [
        {"type": "text", "text": "how many cats are there?"},
        {"type": "image_url", "image_url": {"url": crate::http::openapi::EXAMPLE_IMAGE}},
    ]}],
}))]
pub(crate) struct ChatCompletionRequest {
    /// Name of a loaded caption or VQA model; `blip-server` for the default.
    #[serde(default)]
    model: Option<String>,
    /// The conversation. The last image is described, or the last text of the user is answered.
    #[schema(value_type = Vec<Object>)]
    messages: Conversation,
    /// Sends the text as server-sent events while it is generated.
    #[serde(default)]
    pub(super) stream: Option<bool>,
    /// Options of the stream: `include_usage`.
    #[serde(default, deserialize_with = "lenient::object_or_null")]
    #[schema(value_type = Object)]
    stream_options: Option<StreamOptions>,
    /// Maximum number of new tokens; clamped to the limit of the server.
    #[serde(default, deserialize_with = "lenient::integer_or_null")]
    max_tokens: Option<i64>,
    /// The newer name of `max_tokens`, which takes precedence.
    #[serde(default, deserialize_with = "lenient::integer_or_null")]
    max_completion_tokens: Option<i64>,
    /// Above 0, tokens are sampled; 0 by default.
    #[serde(default)]
    temperature: Option<f64>,
    /// Only for sampling: keeps the likeliest tokens that together reach this probability.
    #[serde(default)]
    top_p: Option<f64>,
    /// Only for sampling: the same seed reproduces the same texts.
    #[serde(default, deserialize_with = "lenient::integer_or_null")]
    seed: Option<i64>,
    /// String or list of strings that end the text.
    #[serde(default)]
    #[schema(value_type = Value)]
    stop: StopField,
    /// Number of texts, at most 8.
    #[serde(default, deserialize_with = "lenient::integer_or_null")]
    #[schema(minimum = 1, maximum = 8)]
    n: Option<i64>,
    /// Adds the log-probabilities of the tokens to the answer; ignored in streams.
    #[serde(default)]
    logprobs: Option<bool>,
    /// Only for caption models: the beginning of the caption. Not part of the OpenAI API; `extra_body` sets it.
    #[serde(default)]
    prompt: Option<String>,
    /// Only `{"type": "text"}` is supported.
    #[serde(default)]
    #[schema(value_type = Value)]
    response_format: Brief,
    /// `required` and the name of a function are refused; BLIP calls no tools.
    #[serde(default)]
    #[schema(value_type = Value)]
    tool_choice: Brief,
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

impl ChatCompletionRequest {
    /// True if the last chunk of a stream must hold the usage, and nothing else.
    pub(super) fn includes_usage(&self) -> bool {
        self.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false)
    }

    /// Returns what the request asks of BLIP.
    ///
    /// # Errors
    /// `invalid_request` if the request needs an answer that BLIP cannot give.
    pub(super) fn into_query(self) -> Result<TextQuery, ApiError> {
        let refused = |field: &str, detail: &str| {
            Err(ApiError::field(Code::InvalidRequest, field, detail.to_owned()))
        };
        if matches!(&self.response_format, Brief::Object(Some(kind)) if kind != "text") {
            return refused("response_format", "BLIP answers in plain text; leave it out");
        }
        let is_required = matches!(&self.tool_choice, Brief::Text(choice) if choice == "required");
        if is_required || matches!(self.tool_choice, Brief::Object(_)) {
            return refused("tool_choice", "BLIP calls no tools; use \"auto\" or \"none\"");
        }
        let Conversation { image, text, unsupported } = self.messages;
        if let Some(kind) = unsupported {
            let detail = format!("BLIP reads text and image_url, not {kind}");
            return refused("messages[].content[].type", &detail);
        }
        Ok(TextQuery {
            model: self.model,
            image,
            text,
            prompt: self.prompt,
            sampling: Sampling {
                max_tokens: self.max_completion_tokens.or(self.max_tokens),
                temperature: self.temperature,
                top_p: self.top_p,
                top_k: None,
                seed: self.seed,
                stop: self.stop,
                n: self.n,
            },
            lists_tokens: self.logprobs == Some(true) && self.stream != Some(true),
            fields: FieldNames { image: IMAGE, text: "messages", prompt: "prompt" },
        })
    }
}

/// The parts of a conversation that BLIP can use. Everything else is dropped while the body is parsed, so that a long
/// conversation takes little memory.
#[derive(Debug, Default)]
struct Conversation {
    /// The last image of all messages.
    image: Option<ImageField>,
    /// The last text of the user.
    text: Option<String>,
    /// A type of content that BLIP cannot read.
    unsupported: Option<&'static str>,
}

impl Conversation {
    fn add(&mut self, Message { role, content }: Message) {
        self.image = content.image.or(self.image.take());
        self.unsupported = content.unsupported.or(self.unsupported);
        if role.is_none_or(|role| role == "user") && !content.text.is_empty() {
            self.text = Some(content.text);
        }
    }
}

struct ConversationVisitor;

impl<'de> Visitor<'de> for ConversationVisitor {
    type Value = Conversation;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of messages")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Conversation, A::Error> {
        let mut conversation = Conversation::default();
        while let Some(FromObject(message)) = items.next_element::<FromObject<Message>>()? {
            conversation.add(message);
        }
        Ok(conversation)
    }
}

impl<'de> Deserialize<'de> for Conversation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ConversationVisitor)
    }
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    role: Option<String>,
    #[serde(default)]
    content: Content,
}

/// The content of a message: a string, or a list of parts.
#[derive(Default)]
struct Content {
    image: Option<ImageField>,
    /// All texts of the message, one per line.
    text: String,
    unsupported: Option<&'static str>,
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of parts")
    }

    fn visit_unit<E: Error>(self) -> Result<Content, E> {
        Ok(Content::default())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Content, E> {
        Ok(Content { text: text.to_owned(), ..Content::default() })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content, A::Error> {
        let mut content = Content::default();
        while let Some(FromObject(part)) = items.next_element::<FromObject<Part>>()? {
            content.image = part.image_url.map(|image| image.0).or(content.image);
            if let Some(text) = part.text {
                if !content.text.is_empty() {
                    content.text.push('\n');
                }
                content.text.push_str(&text);
            }
            content.unsupported = match part.r#type.as_deref() {
                Some("input_audio") => Some("input_audio"),
                Some("file") => Some("file"),
                Some("video_url") => Some("video_url"),
                _ => content.unsupported,
            };
        }
        Ok(content)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    r#type: Option<String>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    image_url: Option<ImageUrl>,
}

/// `{"url": "..."}`, or the string alone, as some clients send it.
struct ImageUrl(ImageField);

struct ImageUrlVisitor;

impl<'de> Visitor<'de> for ImageUrlVisitor {
    type Value = ImageUrl;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a url")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<ImageUrl, E> {
        let field = ImageField::deserialize(serde::de::value::StrDeserializer::new(text))?;
        Ok(ImageUrl(field))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ImageUrl, A::Error> {
        let mut url = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == "url" {
                url = Some(map.next_value::<ImageField>()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        url.map(ImageUrl).ok_or_else(|| A::Error::missing_field("url"))
    }
}

impl<'de> Deserialize<'de> for ImageUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ImageUrlVisitor)
    }
}
