//! The HTTP server: turns requests into engine tasks, engine outputs into JSON answers, and errors into problems.
//!
//! - [`router()`]: the list of routes and the middleware around them. [`serve`]: accepts and serves connections.
//! - `routes`: one endpoint per file. `call`: the pipeline of all inference endpoints. `reply`, `stream`: their
//!   responses.
//! - `extract`: request bodies in any encoding to typed requests. `generation`, `image_args`, `text`: fields to task
//!   inputs.
//! - `models`: the catalogue of loaded models. `sequences`: generated sequences in answers.
//! - `access`: API keys, rate limits, client addresses behind proxies.
//! - `listener`, `tls`, `server`, `connection`: sockets, TLS, connections and their timeouts. `guarded_body`: response
//!   bodies that are observed while they are sent. `connection_table`: which connection to close when the listener is
//!   full. `malformed`: request heads that hyper cannot parse. `reload`: key and certificate files that change at run
//!   time.
//! - `error`: the closed list of error codes and their statuses. `convert`: errors of other folders to these.
//! - `middleware`: request ids, timings, metrics, access log, error bodies.
//! - `openapi`: the OpenAPI documents, generated from the routes. `written`: the same, serialized.
//!
//! This folder uses images, texts and the engine's handle, but no tensors, scheduler or files. `app` assembles it.

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
