//! The HTTP side: requests to tasks, outputs to answers, refusals to problems.
//!
//! - [`router()`]: the list of routes and the layers around them; [`serve`]: connections.
//! - `routes`: one endpoint a file. `call` and `reply`: what all inference endpoints go through.
//! - `extract`: bodies in any encoding to typed requests. `generation`, `image_args`, `text`: what fields mean.
//! - `access`: API keys, rate limits, clients' addresses.
//! - `listener`, `tls`, `server`, `connection`: sockets, encryption, connections and their clocks. `guarded_body`: answers
//!   that are watched while they are sent. `connection_table`: who has a place when there are more connections than
//!   places. `malformed`: heads that are no requests. `reload`: files of keys and certificates that change.
//! - `error`: the closed list of refusals and their statuses. `convert`: other folders' errors as refusals.
//! - `middleware`: ids, timings, metrics, the access log, bodies of refusals.
//! - `openapi`: the document, generated from all of this; `written`: the same as bytes.
//!
//! It knows images, texts and the engine's handle; no tensor, no scheduler, no file. `app` puts it together.

mod access;
mod call;
mod connection;
mod connection_table;
mod convert;
mod error;
mod extract;
mod generation;
mod guarded_body;
mod image_args;
mod info;
mod listener;
mod malformed;
mod metric_labels;
mod middleware;
mod models;
mod openapi;
mod reload;
mod reply;
mod router;
mod routes;
mod sequences;
mod server;
mod settings;
mod state;
mod stream;
mod text;
mod tls;
mod written;

pub use access::{
    ApiKey, ApiKeyError, ApiKeyFileError, ApiKeys, AuthSettings, KeysFile, RateLimitSettings,
};
pub use info::BatchingInfo;
pub use listener::Listener;
pub use models::{Model, Models};
pub use openapi::{Document, document, strict_document};
pub use router::router;
pub use server::{Drained, max_sockets, serve, serve_operations};
pub use settings::{
    AccessLogSettings, ConnectionSettings, CorsSettings, HttpSettings, HttpSettingsError, Limits,
};
pub use state::{HttpState, Readiness, Services};
pub use tls::{Tls, TlsError, TlsSettings};
