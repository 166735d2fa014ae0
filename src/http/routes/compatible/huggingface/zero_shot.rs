//! `POST /hf/zero-shot-image-classification`: the probabilities of labels for an image.

use std::sync::Arc;

use axum::extract::{Extension, Request as HttpRequest, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::{lenient, model_name};
use super::inputs::{ImageInputs, model_of};
use crate::http::context::RequestContext;
use crate::http::error::ApiError;
use crate::http::extract::fields::{Text, present};
use crate::http::extract::template::Template;
use crate::http::inference::start::Start;
use crate::http::openapi::PlainErrors;
use crate::http::routes::classify::{ClassifyInput, ClassifyPlan};
use crate::http::state::HttpState;
use crate::http::state::models::Eligible;
use crate::task::Role;

/// The template of the task API.
const TEMPLATE: &str = "This is a photo of {}.";

/// Request for the probabilities of labels.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"inputs": crate::http::openapi::EXAMPLE_IMAGE, "parameters": {"candidate_labels": ["a cat", "a dog"]}}))]
pub(crate) struct HfZeroShotRequest {
    /// Image in base64, or an object with `image`.
    #[serde(default)]
    #[schema(value_type = Value)]
    inputs: ImageInputs,
    /// The labels and their template.
    #[serde(deserialize_with = "lenient::object")]
    parameters: HfZeroShotParameters,
}

/// The labels to choose from.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct HfZeroShotParameters {
    /// Distinct labels.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Vec<String>)]
    candidate_labels: Option<Vec<Text>>,
    /// Text that is compared with the image, in which the label replaces `{}`; default `This is a photo of {}.`
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Template, inline, required = false)]
    hypothesis_template: Option<Template>,
}

/// A label and its probability.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HfLabel {
    /// Probability among these labels; all together sum to 1.
    #[schema(example = 0.98, minimum = 0, maximum = 1)]
    score: f32,
    /// The label.
    #[schema(value_type = String, example = "a cat")]
    label: Arc<str>,
}

/// Classify an image by labels (Hugging Face)
#[utoipa::path(
    post,
    path = "/hf/zero-shot-image-classification",
    operation_id = "classify_hf_image",
    tag = "huggingface",
    params(("model" = Option<String>, Query, description = "Name of a loaded model.")),
    request_body(content = HfZeroShotRequest, content_type = "application/json"),
    responses((status = 200, description = "The labels, best first.", body = Vec<HfLabel>), PlainErrors),
)]
pub(crate) async fn classify_hf_image(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    let start = Start::new(&http, &state, &context)?;
    let name = model_of(&http);
    let body = start.read_any_type(http).await?;
    let HfZeroShotRequest { inputs, parameters } = start.json(&body).await?;
    let eligible = &[Eligible::Role(Role::Retrieval)];
    let model = model_name::pick(&start.services().models, eligible, name.as_deref())?;
    let input = ClassifyInput {
        image: Some(inputs.image()?),
        labels: parameters.candidate_labels,
        template: parameters.hypothesis_template.or_else(|| Some(Template::constant(TEMPLATE))),
        ..ClassifyInput::default()
    };
    let rename = |error: ApiError| {
        let error = error.rename_field("image", "inputs");
        let error = error.rename_field("labels", "parameters.candidate_labels");
        error.rename_field("template", "parameters.hypothesis_template")
    };
    let model = Text(model.info.name.as_str().into());
    let single =
        start.single::<ClassifyPlan>(body.admission, model, input).await.map_err(rename)?;
    let answer = single.call.run(single.input).await.map_err(rename)?;
    let labels = answer.into_labels().into_iter();
    let labels = labels.map(|(label, score)| HfLabel { score, label });
    single.call.respond(labels.collect::<Vec<_>>()).await
}
