//! The routes of the task API of Hugging Face, below `/hf/`, for `InferenceClient(model=URL)` of `huggingface_hub` and
//! `endpointUrl` of `@huggingface/inference`. The query parameter `model` picks a model.

mod caption_parameters;
pub(crate) mod feature_extraction;
pub(crate) mod image_to_text;
mod inputs;
pub(crate) mod visual_question_answering;
pub(crate) mod zero_shot;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::state::HttpState;

/// Returns the routes.
pub(super) fn routes() -> OpenApiRouter<HttpState> {
    OpenApiRouter::default()
        .routes(routes!(image_to_text::caption_hf_image))
        .routes(routes!(visual_question_answering::answer_hf_question))
        .routes(routes!(zero_shot::classify_hf_image))
        .routes(routes!(feature_extraction::extract_hf_features))
}
