//! `POST /hf/image-to-text`: captions an image.

use axum::extract::{Extension, Request as HttpRequest, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::{lenient, model_name};
use super::caption_parameters::HfCaptionParameters;
use super::inputs::{ImageInputs, is_json, model_of};
use crate::http::context::RequestContext;
use crate::http::error::ApiError;
use crate::http::extract::fields::Text;
use crate::http::extract::image_field::ImageField;
use crate::http::inference::reply;
use crate::http::inference::start::Start;
use crate::http::openapi::PlainErrors;
use crate::http::routes::caption::{CaptionInput, CaptionPlan};
use crate::http::state::HttpState;
use crate::http::state::models::Eligible;
use crate::task::Role;

/// Request for a caption. The raw bytes of an image are accepted as well.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"inputs": crate::http::openapi::EXAMPLE_IMAGE}))]
pub(crate) struct HfImageToTextRequest {
    /// Image in base64, or an object with `image`.
    #[serde(default)]
    #[schema(value_type = Value)]
    inputs: ImageInputs,
    /// Parameters of the generation.
    #[serde(default, deserialize_with = "lenient::object_or_null")]
    parameters: Option<HfCaptionParameters>,
}

/// A caption.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HfCaption {
    /// The caption.
    #[schema(example = "two cats on a blue background")]
    generated_text: String,
}

/// Caption an image (Hugging Face)
///
/// The body is the image itself, or JSON. The answer is a list with one object; for `@huggingface/inference` and browsers,
/// which expect it so, the object alone.
#[utoipa::path(
    post,
    path = "/hf/image-to-text",
    operation_id = "caption_hf_image",
    tag = "huggingface",
    params(("model" = Option<String>, Query, description = "Name of a loaded model.")),
    request_body(content = HfImageToTextRequest, content_type = "application/json"),
    responses((status = 200, description = "The caption.", body = Vec<HfCaption>), PlainErrors),
)]
pub(crate) async fn caption_hf_image(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    let start = Start::new(&http, &state, &context)?;
    let (name, wants_object) = (model_of(&http), expects_object(http.headers()));
    let body = start.read_any_type(http).await?;
    let (image, parameters) = if is_json(&body.bytes) {
        let request: HfImageToTextRequest = start.json(&body).await?;
        (request.inputs.image()?, request.parameters)
    } else {
        (ImageField::raw(body.bytes.clone(), "inputs", &state.settings().input)?, None)
    };
    let eligible = &[Eligible::Role(Role::Caption)];
    let model = model_name::pick(&start.services().models, eligible, name.as_deref())?;
    let generation = parameters.unwrap_or_default().generation(start.limits(), model)?;
    let input =
        CaptionInput { image: Some(image), ..CaptionInput::default() }.with_generation(generation);
    let model = Text(model.info.name.as_str().into());
    let rename = |error: ApiError| error.rename_field("image", "inputs");
    let single = start.single::<CaptionPlan>(body.admission, model, input).await.map_err(rename)?;
    let answer = single.call.run(single.input).await.map_err(rename)?;
    let text = answer.into_texts().into_iter().next().ok_or_else(ApiError::internal)?;
    let caption = HfCaption { generated_text: text.text };
    if wants_object { reply::json(&caption) } else { reply::json(&[caption]) }
}

/// True if the client is `@huggingface/inference` or a browser, which expect an object. Every browser and the `fetch` of
/// Node.js send `sec-fetch-mode`; the Python client does not.
fn expects_object(headers: &HeaderMap) -> bool {
    headers.contains_key("sec-fetch-mode")
}
