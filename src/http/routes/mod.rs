//! One endpoint, one file: what it takes, what it answers, its documentation, its handler.

pub(crate) mod caption;
pub(crate) mod documents;
pub(crate) mod embeddings;
pub(crate) mod health;
pub(crate) mod info;
pub(crate) mod metrics;
pub(crate) mod similarity;
pub(crate) mod vqa;
