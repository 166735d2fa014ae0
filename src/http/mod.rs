//! The HTTP side: requests to tasks, outputs to answers, refusals to problems.
//!
//! - [`router()`]: the list of routes and the layers around them; [`serve`]: connections.
//! - `routes`: one endpoint a file. `call` and `reply`: what all inference endpoints go through.
//! - `extract`: bodies in any encoding to typed requests. `generation`, `image_args`, `text`: what fields mean.
//! - `server` and `connection`: sockets and their clocks. `guarded_body`: answers that are watched while they are sent.
//! - `error`: the closed list of refusals and their statuses. `convert`: other folders' errors as refusals.
//! - `middleware`: ids, timings, metrics, the access log, bodies of refusals.
//! - `openapi`: the document, generated from all of this; `written`: the same as bytes.
//!
//! It knows images, texts and the engine's handle; no tensor, no scheduler, no file. `app` puts it together.

mod call;
mod connection;
mod convert;
mod error;
mod extract;
mod generation;
mod guarded_body;
mod image_args;
mod info;
mod metric_labels;
mod middleware;
mod models;
mod openapi;
mod reply;
mod router;
mod routes;
mod sequences;
mod server;
mod settings;
mod state;
mod stream;
mod text;
mod written;

pub use info::BatchingInfo;
pub use models::{Model, Models};
pub use openapi::document;
pub use router::router;
pub use server::{Drained, serve};
pub use settings::{
    AccessLogSettings, ConnectionSettings, CorsSettings, HttpSettings, HttpSettingsError, Limits,
};
pub use state::{HttpState, Readiness, Services};
