//! Each endpoint's happy path and every refusal that its documentation names.

mod batch;
mod bulk;
mod caption;
mod compatible;
mod embeddings;
mod encodings;
mod mcp;
mod operations;
mod pages;
mod rank;
mod refusals;
mod similarity;
mod stream;
mod urls;
mod urls_tls;
mod vqa;
