//! A request of another API for text about an image, and its answer. The model decides the task: a caption model
//! describes the image, a VQA model answers the text. The files of the APIs translate from and to their own formats.

use super::model_name;
use super::sampling::Sampling;
use super::stop::without_stop;
use crate::http::error::{ApiError, Code};
use crate::http::extract::AdmittedBody;
use crate::http::extract::fields::Text;
use crate::http::extract::image_field::ImageField;
use crate::http::inference::call::{InputResult, SingleCall};
use crate::http::inference::endpoint::{Endpoint, InputOf};
use crate::http::inference::sequences::GeneratedText;
use crate::http::inference::start::Start;
use crate::http::routes::caption::{CaptionAnswer, CaptionInput, CaptionPlan};
use crate::http::routes::vqa::{VqaAnswer, VqaInput, VqaPlan};
use crate::http::state::models::Model;
use crate::task::Role;

/// What the header tells if the request has a text for a caption model.
const TEXT_NOT_USED: &str = "BLIP caption models follow no instructions, so the text was not used; the field prompt sets \
                             a beginning that the caption continues, and a VQA model answers questions";

/// What a request asks.
#[derive(Debug, Default)]
pub(super) struct TextQuery {
    pub(super) model: Option<String>,
    pub(super) image: Option<ImageField>,
    /// The instruction or question.
    pub(super) text: Option<String>,
    /// The beginning of a caption.
    pub(super) prompt: Option<String>,
    pub(super) sampling: Sampling,
    /// Whether the answer lists the tokens.
    pub(super) lists_tokens: bool,
    pub(super) fields: FieldNames,
}

/// The names under which errors refer to the fields of a request.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FieldNames {
    pub(super) image: &'static str,
    pub(super) text: &'static str,
    pub(super) prompt: &'static str,
}

impl FieldNames {
    /// Renames the fields of an error of this server's own routes.
    pub(super) fn rename(self, error: ApiError) -> ApiError {
        error
            .rename_field("image", self.image)
            .rename_field("question", self.text)
            .rename_field("prompt", self.prompt)
    }
}

/// A query whose model is known and whose call is prepared.
pub(super) enum PreparedQuery {
    /// A caption model describes the image.
    Caption(SingleCall<CaptionPlan, ()>),
    /// A VQA model answers the text.
    Vqa(SingleCall<VqaPlan, ()>),
}

/// What all answers to a query have in common.
#[derive(Debug, Clone)]
pub(super) struct AnswerFacts {
    /// Name of the model that answers.
    pub(super) model: String,
    /// Number of tokens of the texts that the model reads.
    pub(super) prompt_tokens: usize,
    /// What of the request was not used.
    pub(super) note: Option<&'static str>,
    stops: Vec<Text>,
    fields: FieldNames,
    /// Number of texts of the answer.
    texts: usize,
}

impl AnswerFacts {
    /// Returns the strings that end a text and that the answer leaves out.
    pub(super) fn stops(&self) -> &[Text] {
        &self.stops
    }

    /// Returns the number of texts of the answer.
    pub(super) fn texts(&self) -> usize {
        self.texts
    }

    /// Renames the fields of an error of this server's own routes.
    pub(super) fn rename(&self, error: ApiError) -> ApiError {
        self.fields.rename(error)
    }
}

impl TextQuery {
    /// Picks the model, and prepares the call.
    ///
    /// # Errors
    /// Those of the call; `invalid_request` if the image is missing, or the text that a VQA model needs.
    pub(super) async fn prepare(
        self,
        start: &Start<'_>,
        body: AdmittedBody,
    ) -> Result<(AnswerFacts, PreparedQuery), ApiError> {
        let models = &start.services().models;
        let model = model_name::pick(models, model_name::TEXT, self.model.as_deref())?;
        let generation = self.sampling.fields(start.limits(), model)?;
        let fields = self.fields;
        let needed = |field: &str, detail: &str| {
            ApiError::field(Code::InvalidRequest, field, detail.to_owned())
        };
        let image = self.image.ok_or_else(|| needed(fields.image, "an image is needed"))?;
        let stops = self.sampling.stop.0.clone();
        let text = |text: String, field: &str| {
            Text::try_new(&text).map_err(|detail| needed(field, &detail))
        };
        let prompt = self.prompt.filter(|prompt| !prompt.is_empty());
        let prompt = prompt.map(|prompt| text(prompt, fields.prompt)).transpose()?;
        if let Some(prompt) = &prompt
            && stops.iter().any(|stop| prompt.0.contains(&*stop.0))
        {
            return Err(needed("stop", "must not occur in the prompt"));
        }
        let mut facts = AnswerFacts {
            model: model.info.name.clone(),
            prompt_tokens: 0,
            note: None,
            stops,
            fields,
            texts: self.sampling.texts()?,
        };
        let asked = self.text.filter(|text| !text.trim().is_empty());
        let prepared = if model.info.role() == Role::Vqa {
            let detail = "a VQA model answers a question; send it as text beside the image";
            let question = text(asked.ok_or_else(|| needed(fields.text, detail))?, fields.text)?;
            let tokens = Some(self.lists_tokens);
            let input = VqaInput {
                image: Some(image),
                question: Some(question),
                tokens,
                ..VqaInput::default()
            }
            .with_generation(generation);
            let single = single(start, body, model, input).await;
            let single = single.map_err(|error| fields.rename(error))?;
            facts.prompt_tokens = prompt_tokens(&single.input);
            PreparedQuery::Vqa(single)
        } else {
            // Ollama's `raw` makes the text the prompt.
            let is_prompt =
                |text: &String| prompt.as_ref().is_some_and(|prompt| *prompt.0 == **text);
            facts.note = asked.filter(|text| !is_prompt(text)).map(|_| TEXT_NOT_USED);
            let tokens = Some(self.lists_tokens);
            let input =
                CaptionInput { image: Some(image), prompt, tokens, ..CaptionInput::default() }
                    .with_generation(generation);
            let single = single(start, body, model, input).await;
            let single = single.map_err(|error| fields.rename(error))?;
            facts.prompt_tokens = prompt_tokens(&single.input);
            PreparedQuery::Caption(single)
        };
        Ok((facts, prepared))
    }
}

impl PreparedQuery {
    /// Generates the whole answer: one text, or as many as the request asks for.
    ///
    /// # Errors
    /// Any error of the call.
    pub(super) async fn answer(self, facts: &AnswerFacts) -> Result<Vec<GeneratedText>, ApiError> {
        let texts = match self {
            Self::Caption(SingleCall { call, input, .. }) => {
                call.run::<CaptionPlan>(input).await.map(CaptionAnswer::into_texts)
            }
            Self::Vqa(SingleCall { call, input, .. }) => {
                call.run::<VqaPlan>(input).await.map(VqaAnswer::into_texts)
            }
        };
        let mut texts = texts.map_err(|error| facts.rename(error))?;
        for generated in &mut texts {
            generated.text.truncate(without_stop(&generated.text, &facts.stops).len());
        }
        // Without sampling, all texts of one image are the same.
        if let [only] = &texts[..] {
            texts = vec![only.clone(); facts.texts];
        }
        Ok(texts)
    }
}

/// Prepares a call with one input, in the format of this server's own routes.
async fn single<E: Endpoint>(
    start: &Start<'_>,
    body: AdmittedBody,
    model: &Model,
    input: InputOf<E>,
) -> Result<SingleCall<E, ()>, ApiError> {
    start.single::<E>(body.admission, Text(model.info.name.as_str().into()), input).await
}

fn prompt_tokens<E: Endpoint>(input: &InputResult<E>) -> usize {
    input.as_ref().map_or(0, |input| E::token_counts(&input.tokens).iter().sum())
}
