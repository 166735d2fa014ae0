//! The flags of the commands that process files.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use crate::annotate::SidecarFormat;

/// Which pictures, and where the answers go.
#[derive(Debug, Args)]
#[command(next_help_heading = "Files")]
pub(in crate::cli) struct FilesArguments {
    /// Pictures: files, folders with everything below them, URLs, or - for a list on standard input
    #[arg(value_name = "PATH", required_unless_present = "lists")]
    pub(super) paths: Vec<String>,
    /// File with a list of pictures, - for standard input: each line is a path, a URL, or a JSON object with "path" or
    /// "url" and fields of the request for this picture; repeatable
    #[arg(long = "list", value_name = "FILE")]
    pub(super) lists: Vec<PathBuf>,
    /// Only pictures in folders whose path or name matches, such as '*.jpg'; repeatable
    #[arg(long, value_name = "GLOB")]
    pub(super) include: Vec<String>,
    /// No pictures and no folders whose path or name matches, such as 'thumbs'; repeatable
    #[arg(long, value_name = "GLOB")]
    pub(super) exclude: Vec<String>,
    /// Table of the answers: FILE.csv, FILE.jsonl or FILE.ndjson for JSON lines, or - for JSON lines on standard output
    /// [default: -, unless --sidecar or --npy is given]
    #[arg(long, short, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Also write a file beside each picture: txt (the texts, one a line), json (the row of the table), or xmp (the
    /// description for photo managers; other data of an existing file is kept)
    #[arg(long, value_name = "FORMAT,...", value_delimiter = ',')]
    pub(super) sidecar: Vec<Sidecar>,
    #[command(flatten)]
    pub(super) earlier: EarlierArguments,
    /// Text before each text in txt files
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(super) prefix: String,
    /// Text after each text in txt files
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(super) suffix: String,
    /// Language of the texts in xmp files, such as en [default: none]
    #[arg(long, value_name = "LANGUAGE")]
    pub(super) language: Option<String>,
    /// Only list the pictures that would be processed, and report those that would fail before they are sent
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Use a running server instead of loading models; --model then names a model there
    #[arg(long, value_name = "URL")]
    pub(super) server: Option<String>,
    /// File with the API key of the server
    #[arg(long, value_name = "FILE", requires = "server")]
    pub(super) api_key_file: Option<PathBuf>,
}

/// What to do with the answers of earlier runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Files")]
pub(in crate::cli) struct EarlierArguments {
    /// Keep the answers of earlier runs in the files of --output, --sidecar or --npy, and do the rest
    #[arg(long, conflicts_with = "overwrite")]
    pub(super) resume: bool,
    /// Replace the answers of earlier runs
    #[arg(long)]
    pub(super) overwrite: bool,
    /// With --resume, recognise changed pictures by their SHA-256 instead of size and time
    #[arg(long)]
    pub(super) sha256: bool,
}

impl FilesArguments {
    /// True if a running server does the work.
    pub(in crate::cli) fn uses_server(&self) -> bool {
        self.server.is_some()
    }
}

/// A kind of files beside pictures.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Sidecar {
    Txt,
    Json,
    Xmp,
}

impl From<Sidecar> for SidecarFormat {
    fn from(sidecar: Sidecar) -> Self {
        match sidecar {
            Sidecar::Txt => Self::Txt,
            Sidecar::Json => Self::Json,
            Sidecar::Xmp => Self::Xmp,
        }
    }
}

/// How texts are generated. The values are checked by the same code as those of requests.
#[derive(Debug, Args)]
#[command(next_help_heading = "Generation")]
pub(in crate::cli) struct GenerationArguments {
    /// Maximum new tokens, including the stop token [default: 20]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<String>,
    /// Minimum new tokens
    #[arg(long, value_name = "N")]
    min_new_tokens: Option<String>,
    /// Number of beams
    #[arg(long, value_name = "N")]
    num_beams: Option<String>,
    /// Number of texts for each picture or question
    #[arg(long, value_name = "N")]
    num_return_sequences: Option<String>,
    /// Favour longer texts (above 0) or shorter ones; only with beams
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    length_penalty: Option<String>,
    /// When beam search stops: true, false or never
    #[arg(long, value_name = "WHEN")]
    early_stopping: Option<String>,
    /// Sample tokens instead of taking the most probable ones
    #[arg(long)]
    do_sample: bool,
    /// Seed of the samples
    #[arg(long, value_name = "N")]
    seed: Option<String>,
    /// Temperature of sampling
    #[arg(long, value_name = "X")]
    temperature: Option<String>,
    /// Sample among the K likeliest tokens
    #[arg(long, value_name = "K")]
    top_k: Option<String>,
    /// Sample among the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P")]
    top_p: Option<String>,
    /// Sample only tokens with at least this fraction of the likeliest token's probability
    #[arg(long, value_name = "P")]
    min_p: Option<String>,
    /// Sample among the most typical tokens that together reach this probability
    #[arg(long, value_name = "P")]
    typical_p: Option<String>,
    /// Sample only tokens with at least this probability
    #[arg(long, value_name = "P")]
    epsilon_cutoff: Option<String>,
    /// Like --epsilon-cutoff, but lower where many tokens are possible
    #[arg(long, value_name = "P")]
    eta_cutoff: Option<String>,
    /// Make tokens that are already in the text less probable (above 1)
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<String>,
    /// No sequence of N tokens occurs twice
    #[arg(long, value_name = "N")]
    no_repeat_ngram_size: Option<String>,
    /// Make the end of the text more probable with each token after START
    #[arg(long, value_name = "START,FACTOR")]
    exponential_decay_length_penalty: Option<String>,
    /// Word or phrase that is not generated; repeatable
    #[arg(long = "bad-word", value_name = "TEXT")]
    bad_words: Vec<String>,
    /// End the text with the token that completes this string; repeatable
    #[arg(long = "stop-string", value_name = "TEXT")]
    stop_strings: Vec<String>,
    /// Normalise the scores of beams again after all other parameters
    #[arg(long)]
    renormalize_logits: bool,
}

impl GenerationArguments {
    /// Adds the fields of the request.
    pub(super) fn put(&self, fields: &mut Map<String, Value>) {
        for (name, value) in [
            ("max_new_tokens", &self.max_new_tokens),
            ("min_new_tokens", &self.min_new_tokens),
            ("num_beams", &self.num_beams),
            ("num_return_sequences", &self.num_return_sequences),
            ("length_penalty", &self.length_penalty),
            ("early_stopping", &self.early_stopping),
            ("seed", &self.seed),
            ("temperature", &self.temperature),
            ("top_k", &self.top_k),
            ("top_p", &self.top_p),
            ("min_p", &self.min_p),
            ("typical_p", &self.typical_p),
            ("epsilon_cutoff", &self.epsilon_cutoff),
            ("eta_cutoff", &self.eta_cutoff),
            ("repetition_penalty", &self.repetition_penalty),
            ("no_repeat_ngram_size", &self.no_repeat_ngram_size),
        ] {
            if let Some(text) = value {
                fields.insert(name.to_owned(), value_of(text));
            }
        }
        if let Some(pair) = &self.exponential_decay_length_penalty {
            let pair: Vec<Value> = pair.split(',').map(|part| value_of(part.trim())).collect();
            fields.insert("exponential_decay_length_penalty".to_owned(), pair.into());
        }
        for (name, is_set) in
            [("do_sample", self.do_sample), ("renormalize_logits", self.renormalize_logits)]
        {
            if is_set {
                fields.insert(name.to_owned(), true.into());
            }
        }
        put_list(fields, "bad_words", &self.bad_words);
        put_list(fields, "stop_strings", &self.stop_strings);
    }
}

/// Adds a list of texts, unless it is empty.
pub(super) fn put_list(fields: &mut Map<String, Value>, name: &str, texts: &[String]) {
    if !texts.is_empty() {
        fields.insert(name.to_owned(), texts.to_vec().into());
    }
}

/// Returns a number or a boolean if the text is one, otherwise the text, which the check of the request then rejects by the
/// name of the field.
fn value_of(text: &str) -> Value {
    let value = serde_json::from_str(text).ok();
    value
        .filter(|value: &Value| value.is_number() || value.is_boolean())
        .unwrap_or_else(|| text.into())
}

/// Describe pictures.
#[derive(Debug, Args)]
#[command(next_help_heading = "Caption")]
pub(in crate::cli) struct CaptionArguments {
    /// Beginning that each caption continues
    #[arg(long, value_name = "TEXT")]
    pub(super) prompt: Option<String>,
    /// Caption to rank instead of generating one; repeatable
    #[arg(long = "candidate", value_name = "TEXT", conflicts_with = "verify")]
    pub(super) candidates: Vec<String>,
    /// Check each caption with a retrieval model, and leave out those whose probability of a match is below MIN
    #[arg(long, value_name = "MIN", value_parser = probability)]
    pub(super) verify: Option<f64>,
}

fn probability(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "a probability from 0 to 1".to_owned())
}

/// Answer questions about pictures.
#[derive(Debug, Args)]
#[command(next_help_heading = "Questions")]
pub(in crate::cli) struct AskArguments {
    /// Question about each picture; repeatable
    #[arg(long = "question", short, value_name = "TEXT")]
    pub(super) questions: Vec<String>,
    /// Answer to rank instead of generating one; repeatable
    #[arg(long = "candidate", value_name = "TEXT")]
    pub(super) candidates: Vec<String>,
}

/// Compare pictures with texts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Texts")]
pub(in crate::cli) struct MatchArguments {
    /// Text to compare each picture with; repeatable
    #[arg(long = "text", short, value_name = "TEXT", required = true)]
    pub(super) texts: Vec<String>,
    /// Score to compute: match or cosine; repeatable [default: both, as far as the model has them]
    #[arg(long = "score", value_name = "SCORE")]
    pub(super) scores: Vec<String>,
}

/// Embed pictures.
#[derive(Debug, Args)]
#[command(next_help_heading = "Embeddings")]
pub(in crate::cli) struct EmbedArguments {
    /// Write the vectors to FILE.npy and the paths to FILE.paths.txt
    #[arg(long, value_name = "FILE")]
    pub(super) npy: Option<PathBuf>,
    /// How the states of all tokens become one vector: projection, cls, mean or pooler [default: projection]
    #[arg(long, value_name = "POOLING", value_parser = ["projection", "cls", "mean", "pooler"])]
    pub(super) pooling: Option<String>,
}

/// Choose a label for pictures.
#[derive(Debug, Args)]
#[command(next_help_heading = "Labels")]
pub(in crate::cli) struct ClassifyArguments {
    /// Label to choose from; repeatable
    #[arg(long = "label", short, value_name = "TEXT", required = true)]
    pub(super) labels: Vec<String>,
    /// Text that is compared, in which the label replaces {} [default: a photo of {}]
    #[arg(long, value_name = "TEXT")]
    pub(super) template: Option<String>,
    /// Score that decides: cosine or match [default: cosine]
    #[arg(long, value_name = "SCORE")]
    pub(super) by: Option<String>,
}
