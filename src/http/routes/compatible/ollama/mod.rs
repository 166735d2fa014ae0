//! The routes of the Ollama API, below `/api/`.

mod answer;
pub(crate) mod catalogue;
pub(crate) mod chat;
pub(crate) mod embed;
pub(crate) mod generate;
mod images;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::state::HttpState;

/// Returns the routes.
pub(super) fn routes() -> OpenApiRouter<HttpState> {
    OpenApiRouter::default()
        .routes(routes!(catalogue::show_ollama_version))
        .routes(routes!(catalogue::list_ollama_models))
        .routes(routes!(catalogue::list_running_ollama_models))
        .routes(routes!(catalogue::show_ollama_model))
        .routes(routes!(catalogue::pull_ollama_model))
        .routes(routes!(generate::generate_ollama_text))
        .routes(routes!(chat::chat_with_ollama_model))
        .routes(routes!(embed::embed_with_ollama_model))
        .routes(routes!(embed::embed_text_with_ollama_model))
}
