//! Routes that speak the APIs of others, so that their client libraries work with this server: OpenAI (`/v1/`), Ollama
//! (`/api/`) and Hugging Face (`/hf/`). `docs/compatibility.md` has the table of what is supported.
//!
//! A route translates its request into an input of one of this server's own endpoints, runs it through the same pipeline,
//! and translates the answer. `error::dialect` writes the errors.
//!
//! - `openai`, `ollama`, `huggingface`: one route per file.
//! - `text_query`: a request for text about an image. `text_stream`: its answer in pieces.
//! - `embedding_query`: a request for embeddings.
//! - `model_name`: which model a name means. `sampling`: sampling options. `stop`: removes stop strings.
//! - `brief`: values of which little matters.
//! - `note`: the header that tells what was not used. `now`: times.

mod brief;
mod embedding_query;
mod huggingface;
mod lenient;
mod model_name;
mod note;
mod now;
mod ollama;
mod openai;
mod sampling;
mod stop;
mod text_query;
mod text_stream;

use utoipa_axum::router::OpenApiRouter;

use crate::http::state::HttpState;

/// Returns the routes of all APIs.
pub(crate) fn routes() -> OpenApiRouter<HttpState> {
    now::start();
    openai::routes().merge(ollama::routes()).merge(huggingface::routes())
}
