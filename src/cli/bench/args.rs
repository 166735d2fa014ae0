//! The flags of `bench`. Settings (models, device, number format, level, threads) have those of every command.

use std::num::NonZeroUsize;

use clap::Args;

use crate::app::bench::{Plan, Work};

/// What to measure, and how often.
#[derive(Debug, Args)]
#[command(next_help_heading = "Measuring")]
pub(in crate::cli) struct BenchArguments {
    /// vision, caption, caption-known (the image's features are there), vqa, match, embed-image or embed-text; repeatable [default: all that the models do]
    #[arg(long = "task", value_name = "TASK")]
    pub(super) tasks: Vec<Work>,
    /// Items that run together; repeatable
    #[arg(long = "batch", value_name = "N", default_values = ["1", "8"])]
    pub(super) batches: Vec<NonZeroUsize>,
    /// Several number formats one after the other, instead of --dtype
    #[arg(long, value_name = "DTYPE,...", value_delimiter = ',')]
    pub(super) dtypes: Vec<String>,
    /// Several levels of instructions one after the other, instead of --cpu-isa
    #[arg(long, value_name = "LEVEL,...", value_delimiter = ',')]
    pub(super) levels: Vec<String>,
    /// Timed runs of each
    #[arg(long, value_name = "N", default_value = "5")]
    runs: NonZeroUsize,
    /// Runs before those, not timed
    #[arg(long, value_name = "N", default_value = "1")]
    warm_up: usize,
    /// New tokens of a caption or an answer, neither fewer nor more
    #[arg(long, value_name = "N", default_value = "20")]
    tokens: NonZeroUsize,
    /// One more run of each, which says where its time went
    #[arg(long)]
    profile: bool,
    /// Writes the results as JSON, too; - writes them to standard output instead of the table
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<String>,
}

impl BenchArguments {
    pub(super) fn plan(&self) -> Plan {
        Plan { runs: self.runs, warm_up: self.warm_up, tokens: self.tokens, profile: self.profile }
    }
}
