//! One endpoint per file: request and response types, OpenAPI documentation, and handler. `router` lists the handlers.

pub(crate) mod caption;
pub(crate) mod documents;
pub(crate) mod embeddings;
pub(crate) mod health;
pub(crate) mod info;
pub(crate) mod metrics;
pub(crate) mod similarity;
pub(crate) mod vqa;
