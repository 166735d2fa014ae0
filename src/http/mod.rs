//! The HTTP side: turns requests into tasks, outputs into answers, and refusals into problem documents.
//!
//! From the socket inwards:
//!
//! - `transport`: sockets, TLS, connections and their clocks; [`serve`].
//! - [`router()`]: the list of routes, the layers around them, and the OpenAPI documents generated from them.
//! - `middleware`: ids, timings, metrics, the access log, keys and rate limits, problem bodies.
//! - `routes`: one endpoint per file. `openapi`: what the documents say beyond the handlers' attributes.
//! - `inference`: the pipeline that every inference call goes through.
//! - `extract`: request bodies in any encoding, parsed into typed requests.
//! - `state`: what handlers share. `settings`: the limits and switches of this folder.
//! - `access`: API keys, rate limits, client addresses. `reload`: files that change while the server runs.
//! - `context`: what is known of a request in progress. `error`: the closed list of refusals and their status codes.
//!
//! This folder knows images, texts and the engine's handle, but no tensor, scheduler or weight file. `app` assembles it.

mod access;
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
pub use settings::{
    AccessLogSettings, ConnectionSettings, CorsSettings, HttpSettings, HttpSettingsError, Limits,
    TlsSettings,
};
pub use state::batching::BatchingInfo;
pub use state::models::{Model, Models};
pub use state::{HttpState, Readiness, Services};
pub use transport::{Drained, Listener, Tls, TlsError, max_sockets, serve, serve_operations};
