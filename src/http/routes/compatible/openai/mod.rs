//! The routes of the OpenAI API, below `/v1/`.

pub(crate) mod chat;
pub(crate) mod embeddings;
pub(crate) mod models;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::state::HttpState;

/// Returns the routes.
pub(super) fn routes() -> OpenApiRouter<HttpState> {
    OpenApiRouter::default()
        .routes(routes!(models::list_models))
        .routes(routes!(models::retrieve_model))
        .routes(routes!(chat::create_chat_completion))
        .routes(routes!(embeddings::create_embeddings))
}
