//! The HTTP side: turns requests into tasks for the engine, outputs into responses, and errors into problem documents.
//!
//! From the socket inwards:
//!
//! - `transport`: sockets, TLS, and connections with their timeouts; [`serve`].
//! - [`router()`]: the list of routes, the layers around them, and the OpenAPI documents generated from them.
//! - `middleware`: ids, timings, metrics, the access log, keys and rate limits, problem bodies.
//! - `routes`: one endpoint per file. `openapi`: the parts of the OpenAPI documents that do not come from the
//!   attributes of the handlers.
//! - `inference`: the pipeline that every inference call goes through.
//! - `extract`: parses request bodies in any encoding into typed requests.
//! - `state`: the data that handlers share. `settings`: the limits and switches of this folder.
//! - `access`: API keys, rate limits, client addresses. `reload`: reloads files that change while the server runs.
//! - `blocking`: runs long work away from the threads that serve connections.
//! - `context`: notes about a request in progress. `error`: the closed list of error codes and their HTTP status.
//!
//! This folder works with images, texts and the handle of the engine. It knows nothing of tensors, the scheduler or
//! weight files. `app` assembles its parts.

mod access;
mod blocking;
mod context;
mod error;
mod extract;
mod inference;
mod middleware;
mod openapi;
mod reload;
mod router;
mod routes;
mod settings;
mod state;
mod transport;

pub use access::{
    ApiKey, ApiKeyError, ApiKeyFileError, ApiKeys, AuthSettings, KeysFile, RateLimitSettings,
};
pub use openapi::Document;
pub use router::{document, router, strict_document};
pub(crate) use routes::mcp::answer_of;
pub use settings::{
    AccessLogSettings, BulkSettings, CompatSettings, ConnectionSettings, CorsSettings,
    HttpSettings, Limits, McpSettings, TlsSettings,
};
pub use state::models::{Model, Models};
pub use state::{HttpState, Readiness, Services};
#[cfg(test)]
pub(crate) use transport::{Accept, serve_connections};
pub use transport::{
    Drained, LAST_ANSWERS, Listener, Tls, TlsError, max_sockets, serve, serve_operations,
};
