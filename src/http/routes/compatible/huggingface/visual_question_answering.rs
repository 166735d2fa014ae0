//! `POST /hf/visual-question-answering`: answers a question about an image.

use axum::extract::{Extension, Request as HttpRequest, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::model_name;
use super::inputs::{ImageInputs, model_of};
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, Code};
use crate::http::extract::fields::Text;
use crate::http::extract::image_field::ImageField;
use crate::http::inference::start::Start;
use crate::http::openapi::PlainErrors;
use crate::http::routes::vqa::{VqaInput, VqaPlan};
use crate::http::state::HttpState;
use crate::http::state::models::Eligible;
use crate::task::Role;

/// Request for the answer to a question. Image and question stand in `inputs`, or the image alone does.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"inputs": {"image": crate::http::openapi::EXAMPLE_IMAGE, "question": "how many cats are there?"}}))]
pub(crate) struct HfQuestionRequest {
    /// Object with `image` (base64) and `question`, or the image.
    #[serde(default)]
    #[schema(value_type = Value)]
    inputs: ImageInputs,
    /// The question, if it does not stand in `inputs`.
    #[serde(default)]
    #[schema(value_type = String)]
    question: Option<Text>,
    /// The image, if it does not stand in `inputs`.
    #[serde(default)]
    #[schema(value_type = String)]
    image: Option<ImageField>,
}

/// An answer and its probability.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HfAnswer {
    /// Probability of this answer among all texts.
    #[schema(example = 0.98, minimum = 0, maximum = 1)]
    score: f32,
    /// The answer.
    #[schema(example = "2")]
    answer: String,
}

/// Answer a question about an image (Hugging Face)
#[utoipa::path(
    post,
    path = "/hf/visual-question-answering",
    operation_id = "answer_hf_question",
    tag = "huggingface",
    params(("model" = Option<String>, Query, description = "Name of a loaded model.")),
    request_body(content = HfQuestionRequest, content_type = "application/json"),
    responses((status = 200, description = "The answer, in a list.", body = Vec<HfAnswer>), PlainErrors),
)]
pub(crate) async fn answer_hf_question(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    let start = Start::new(&http, &state, &context)?;
    let name = model_of(&http);
    let body = start.read_any_type(http).await?;
    let request: HfQuestionRequest = start.json(&body).await?;
    let needed = |field: &str| ApiError::field(Code::InvalidRequest, field, "is needed");
    let question = request.inputs.question.clone().or(request.question);
    let question = question.ok_or_else(|| needed("question"))?;
    let image = request.inputs.image.or(request.image).ok_or_else(|| needed("image"))?;
    let eligible = &[Eligible::Role(Role::Vqa)];
    let model = model_name::pick(&start.services().models, eligible, name.as_deref())?;
    let input = VqaInput { image: Some(image), question: Some(question), ..VqaInput::default() };
    let model = Text(model.info.name.as_str().into());
    let single = start.single::<VqaPlan>(body.admission, model, input).await?;
    let answers = single.call.run(single.input).await?.into_texts().into_iter();
    let answers =
        answers.map(|text| HfAnswer { score: text.logprob.exp().min(1.0), answer: text.text });
    single.call.respond(answers.collect::<Vec<_>>()).await
}
