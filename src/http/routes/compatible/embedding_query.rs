//! A request of another API for embeddings, and its answer. A list may be longer than a batch of this server's own
//! routes, so it is split.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::value::StrDeserializer;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::schema::{ObjectBuilder, SchemaType};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::model_name;
use crate::http::error::{ApiError, Code};
use crate::http::extract::AdmittedBody;
use crate::http::extract::fields::Text;
use crate::http::extract::image_field::ImageField;
use crate::http::inference::call::{BatchCall, Call};
use crate::http::inference::endpoint::Endpoint;
use crate::http::inference::start::Start;
use crate::http::routes::embeddings::{EmbeddingAnswer, EmbeddingPlan, EmbeddingsInput};

/// Maximum number of inputs of a request, as in the OpenAI API.
pub(super) const MAX_INPUTS: usize = 2048;

/// Pause before a part of a call asks for room again.
const ROOM_PAUSE: Duration = Duration::from_millis(20);

/// How a data URI of an image begins.
const DATA_IMAGE: &str = "data:image/";

/// The error for token ids, which only the tokenizer of another model can have made.
const TOKEN_IDS: &str = "lists of token ids are not supported, because they belong to another model's tokenizer; send texts \
                         (LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))";

/// What a request asks.
#[derive(Debug)]
pub(super) struct EmbeddingQuery {
    pub(super) model: Option<String>,
    pub(super) inputs: EmbeddingInputs,
    /// The name under which errors refer to the inputs.
    pub(super) field: &'static str,
    /// Number of dimensions that the client wants; must be that of the model.
    pub(super) dimensions: Option<i64>,
    /// Truncates texts that are too long instead of rejecting them.
    pub(super) truncate: bool,
    /// Whether vectors are normalised; `None` for the default of the model.
    pub(super) normalize: Option<bool>,
}

/// The vectors of a request.
pub(super) struct Embedded {
    /// Name of the model that answered.
    pub(super) model: String,
    /// One vector per input, in order.
    pub(super) vectors: Vec<Vec<f32>>,
    /// Number of tokens of all texts.
    pub(super) prompt_tokens: usize,
    /// The last part of the request, which writes the response. It holds the memory reserved for the whole request.
    pub(super) call: Call,
}

/// The inputs of a request: one, or a list.
#[derive(Debug, Default)]
pub(super) struct EmbeddingInputs {
    list: Vec<EmbeddingInput>,
    /// True if the client sent a list.
    pub(super) is_list: bool,
}

#[derive(Debug, Clone)]
enum EmbeddingInput {
    Text(Text),
    Image(ImageField),
}

impl EmbeddingInputs {
    /// Takes every text for an image value.
    pub(super) fn into_images(mut self) -> Self {
        for input in &mut self.list {
            if let EmbeddingInput::Text(text) = input {
                *input = EmbeddingInput::Image(ImageField::Value(Arc::new(text.0.to_string())));
            }
        }
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// The schema of inputs that must not be empty: a text, an object, or a list of these.
pub(super) struct SomeInputs;

/// The schema of inputs that may be empty.
pub(super) struct AnyInputs;

impl PartialSchema for SomeInputs {
    fn schema() -> RefOr<Schema> {
        inputs_schema(1)
    }
}

impl ToSchema for SomeInputs {}

impl PartialSchema for AnyInputs {
    fn schema() -> RefOr<Schema> {
        inputs_schema(0)
    }
}

impl ToSchema for AnyInputs {}

/// Returns a schema without a type, whose bounds hold for texts and for lists.
fn inputs_schema(min: usize) -> RefOr<Schema> {
    let mut bounds = Extensions::default();
    bounds.insert("minItems".to_owned(), min.into());
    bounds.insert("maxItems".to_owned(), MAX_INPUTS.into());
    let any = ObjectBuilder::new().schema_type(SchemaType::AnyValue);
    any.min_length(Some(min)).extensions(Some(bounds)).into()
}

impl EmbeddingQuery {
    /// Embeds all inputs.
    ///
    /// # Errors
    /// The first error of any input, or any error of the call.
    pub(super) async fn embed(
        self,
        start: &Start<'_>,
        body: AdmittedBody,
    ) -> Result<Embedded, ApiError> {
        let Self { inputs: EmbeddingInputs { list, .. }, field, .. } = self;
        let models = &start.services().models;
        let model = model_name::pick(models, model_name::EMBEDDING, self.model.as_deref())?;
        let name = Text(model.info.name.as_str().into());
        let invalid =
            |field: &str, detail: String| Err(ApiError::field(Code::InvalidRequest, field, detail));
        if list.is_empty() {
            return invalid(field, "at least one text or image is needed".to_owned());
        }
        if list.len() > MAX_INPUTS {
            return invalid(field, format!("at most {MAX_INPUTS} inputs are allowed"));
        }
        let size = start.limits().max_batch_inputs.min(start.limits().max_rows).max(1);
        // Holds the reservation for the bytes of the body until the last part is answered.
        let mut whole = body.admission;
        let numbers = list.len() * model.info.embedding_dimensions.unwrap_or(0);
        if list.len() > size {
            start.reserve_answer(&mut whole, numbers)?;
        }
        let mut vectors = Vec::with_capacity(list.len());
        let (mut prompt_tokens, mut last) = (0, None);
        let mut rest = list.into_iter();
        while rest.len() > 0 {
            let offset = vectors.len();
            let part: Vec<EmbeddingInput> = rest.by_ref().take(size).collect();
            let named = |error: ApiError| in_list(error, field, offset, size);
            let BatchCall { call, inputs } = loop {
                let (truncate, normalize) = (self.truncate, self.normalize);
                let list = part.iter().map(|input| own_input(input.clone(), truncate, normalize));
                let (admission, list) = (whole.admit_part(whole.deadline()), list.collect());
                match start.batch::<EmbeddingPlan>(admission, name.clone(), list).await {
                    // A part of the call has been answered, so the others wait for room until the deadline.
                    Err(error) if offset > 0 && error.code == Code::Overloaded => {
                        start.pause(ROOM_PAUSE).await?;
                    }
                    batch => break batch.map_err(named)?,
                }
            };
            let tokens = inputs
                .iter()
                .flatten()
                .flat_map(|input| EmbeddingPlan::token_counts(&input.tokens));
            prompt_tokens += tokens.sum::<usize>();
            let answers = futures_util::future::try_join_all(
                inputs.into_iter().map(|input| call.run::<EmbeddingPlan>(input)),
            );
            let answers = answers.await.map_err(named)?;
            vectors.extend(answers.into_iter().map(EmbeddingAnswer::into_values));
            last = Some(call);
        }
        let dimensions = vectors.first().map_or(0, Vec::len);
        if self.dimensions.is_some_and(|wanted| usize::try_from(wanted) != Ok(dimensions)) {
            let detail = format!("the model has {dimensions} dimensions; leave it out");
            return invalid("dimensions", detail);
        }
        let call = last.expect("the list has at least one part");
        Ok(Embedded { model: model.info.name.clone(), vectors, prompt_tokens, call })
    }
}

fn own_input(input: EmbeddingInput, truncate: bool, normalize: Option<bool>) -> EmbeddingsInput {
    match input {
        EmbeddingInput::Text(text) => EmbeddingsInput {
            text: Some(text),
            truncate: truncate.then_some(true),
            normalize,
            ..EmbeddingsInput::default()
        },
        EmbeddingInput::Image(image) => {
            EmbeddingsInput { image: Some(image), normalize, ..EmbeddingsInput::default() }
        }
    }
}

/// Names the inputs of a part, which begins at `offset`, as the client knows them.
fn in_list(error: ApiError, field: &str, offset: usize, size: usize) -> ApiError {
    (0..size).fold(error, |error, index| {
        let name = format!("{field}[{}]", offset + index);
        let own = format!("inputs[{index}]");
        let error = error.rename_field(&format!("{own}.text"), &name);
        error.rename_field(&format!("{own}.image"), &name).rename_field(&own, &name)
    })
}

/// Deserializes one input: a text, or an object with a text or an image.
struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = EmbeddingInput;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, or an object with an image")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<EmbeddingInput, E> {
        // No text that anybody wants to embed begins like this, but images do.
        if text.get(..DATA_IMAGE.len()).is_some_and(|start| start.eq_ignore_ascii_case(DATA_IMAGE))
        {
            let image = ImageField::deserialize(StrDeserializer::new(text))?;
            return Ok(EmbeddingInput::Image(image));
        }
        Text::deserialize(StrDeserializer::new(text)).map(EmbeddingInput::Text)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<EmbeddingInput, E> {
        Err(E::custom(TOKEN_IDS))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<EmbeddingInput, E> {
        Err(E::custom(TOKEN_IDS))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<EmbeddingInput, A::Error> {
        Err(A::Error::custom(TOKEN_IDS))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<EmbeddingInput, A::Error> {
        let mut input = None;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "image" | "image_url" => input = Some(EmbeddingInput::Image(map.next_value()?)),
                "text" => input = Some(EmbeddingInput::Text(map.next_value()?)),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        input.ok_or_else(|| A::Error::custom("an object needs the field image or text"))
    }
}

impl<'de> Deserialize<'de> for EmbeddingInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputVisitor)
    }
}

struct InputsVisitor;

impl<'de> Visitor<'de> for InputsVisitor {
    type Value = EmbeddingInputs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, an object with an image, or a list of these")
    }

    fn visit_unit<E: Error>(self) -> Result<EmbeddingInputs, E> {
        Ok(EmbeddingInputs::default())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<EmbeddingInputs, E> {
        let list = if text.is_empty() { Vec::new() } else { vec![InputVisitor.visit_str(text)?] };
        Ok(EmbeddingInputs { list, is_list: false })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<EmbeddingInputs, A::Error> {
        Ok(EmbeddingInputs { list: vec![InputVisitor.visit_map(map)?], is_list: false })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<EmbeddingInputs, A::Error> {
        let mut list = Vec::new();
        // One more than allowed, so that the check of the number fails later.
        while list.len() <= MAX_INPUTS {
            let Some(input) = items.next_element()? else { break };
            list.push(input);
        }
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(EmbeddingInputs { list, is_list: true })
    }
}

impl<'de> Deserialize<'de> for EmbeddingInputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputsVisitor)
    }
}
