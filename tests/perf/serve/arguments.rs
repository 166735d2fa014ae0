//! The flags.

use std::time::Duration;

use clap::{Parser, ValueEnum};

/// Closed-loop load over HTTP against a server of ours, or against a foreign one.
#[derive(Debug, Parser)]
#[command(name = "serve")]
pub(crate) struct Arguments {
    /// A server that runs already, as `http://127.0.0.1:8080`; without it the one built with this is started
    #[arg(long)]
    pub(crate) url: Option<String>,
    /// A model of the server that is started, as its own --model; repeatable
    #[arg(long = "model", value_name = "[NAME=]SRC")]
    pub(crate) models: Vec<String>,
    /// Its number format
    #[arg(long)]
    pub(crate) dtype: Option<String>,
    /// Threads of its models' arithmetic
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Any other setting of it: `ENGINE__FEATURE_CACHE_BYTES=0`; repeatable
    #[arg(long = "set", value_name = "SECTION__KEY=VALUE")]
    pub(crate) settings: Vec<String>,
    /// Clients at a time, one row each
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64")]
    pub(crate) clients: Vec<usize>,
    /// What is asked; several separated by commas
    #[arg(long = "endpoint", value_delimiter = ',', default_value = "caption")]
    endpoints: Vec<Endpoint>,
    /// POST /predict with the picture as the body, as other servers are asked
    #[arg(long)]
    predict: bool,
    /// distinct: no server has seen any picture before; same: always the same one
    #[arg(long, value_delimiter = ',', default_value = "distinct,same")]
    pub(crate) images: Vec<Images>,
    /// Width of the pictures
    #[arg(long, default_value = "640")]
    pub(crate) width: u32,
    /// Height of the pictures
    #[arg(long, default_value = "480")]
    pub(crate) height: u32,
    /// Tokens of a caption or an answer, neither fewer nor more
    #[arg(long, default_value = "20")]
    pub(crate) tokens: usize,
    /// How long a row is measured
    #[arg(long, default_value = "20")]
    seconds: f64,
    /// Ends a row when so many requests are answered
    #[arg(long, value_name = "N")]
    pub(crate) requests: Option<usize>,
    /// Seconds of load before each row that do not count
    #[arg(long, value_name = "SECONDS", default_value = "3")]
    warm_up: f64,
    /// Writes the rows as JSON; - writes them to standard output instead of the table
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<String>,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    pub(crate) bench: bool,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Endpoint {
    /// A caption.
    Caption,
    /// An answer to a question.
    Vqa,
    /// A picture against a text.
    Similarity,
    /// A picture's vector.
    Embeddings,
    /// Whatever a foreign server predicts.
    #[value(skip)]
    Predict,
}

/// Which pictures are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Images {
    /// Another one with each request: caches never help.
    Distinct,
    /// One and the same: caches always help.
    Same,
}

/// What one row measures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) endpoint: Endpoint,
    pub(crate) images: Images,
    pub(crate) clients: usize,
}

impl Arguments {
    /// The rows, in order.
    pub(crate) fn cases(&self) -> Vec<Case> {
        let endpoints = if self.predict { &[Endpoint::Predict][..] } else { &self.endpoints };
        let mut cases = Vec::new();
        for &endpoint in endpoints {
            for &images in &self.images {
                let case = |&clients| Case { endpoint, images, clients };
                cases.extend(self.clients.iter().map(case));
            }
        }
        cases
    }

    pub(crate) fn warm_up(&self) -> Duration {
        Duration::try_from_secs_f64(self.warm_up).unwrap_or_default()
    }

    /// Without end where requests are counted.
    pub(crate) fn window(&self) -> Option<Duration> {
        match self.requests {
            Some(_) => None,
            None => Some(Duration::try_from_secs_f64(self.seconds).unwrap_or_default()),
        }
    }
}

impl Endpoint {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Caption => "caption",
            Self::Vqa => "vqa",
            Self::Similarity => "similarity",
            Self::Embeddings => "embeddings",
            Self::Predict => "predict",
        }
    }

    /// Path and query; the picture is the body.
    pub(crate) fn target(self, tokens: usize) -> String {
        match self {
            Self::Caption => format!("/caption?max_new_tokens={tokens}&min_new_tokens={tokens}"),
            Self::Vqa => format!(
                "/vqa?question=what+is+in+the+picture%3F&max_new_tokens={tokens}&min_new_tokens={tokens}"
            ),
            Self::Similarity => "/similarity?text=a+photograph+of+a+house".to_owned(),
            Self::Embeddings => "/embeddings".to_owned(),
            Self::Predict => "/predict".to_owned(),
        }
    }
}

impl Images {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Distinct => "distinct",
            Self::Same => "same",
        }
    }
}
