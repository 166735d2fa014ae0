//! The flags of `bench`. The settings (models, device, number format, instruction set, threads) use the shared flags of
//! `cli::args`.

use std::num::NonZeroUsize;

use clap::Args;

use crate::app::bench::{RunPlan, Work};
use crate::cli::args::{at_least_one, whole_number};

/// What to measure and how many times.
#[derive(Debug, Args)]
#[command(next_help_heading = "Measurement")]
pub(in crate::cli) struct BenchArguments {
    /// Work to measure: vision, caption, caption-known (image features are cached), vqa, match, embed-image or
    /// embed-text; repeatable [default: all that the models support]
    #[arg(long = "task", value_name = "TASK")]
    pub(super) tasks: Vec<Work>,
    /// Batch size: number of items that run together; repeatable
    #[arg(long = "batch", value_name = "N", default_values = ["1", "8"], value_parser = at_least_one)]
    pub(super) batches: Vec<NonZeroUsize>,
    /// Number formats to measure one after the other, instead of --dtype
    #[arg(long, value_name = "DTYPE,...", value_delimiter = ',')]
    pub(super) dtypes: Vec<String>,
    /// Instruction sets to measure one after the other, instead of --cpu-isa
    #[arg(long, value_name = "LEVEL,...", value_delimiter = ',')]
    pub(super) levels: Vec<String>,
    /// Number of timed runs of each measurement
    #[arg(long, value_name = "N", default_value = "5", value_parser = at_least_one)]
    runs: NonZeroUsize,
    /// Untimed warm-up runs before the timed runs
    #[arg(long, value_name = "N", default_value = "1", value_parser = whole_number)]
    warm_up: usize,
    /// Exact number of tokens generated for a caption or an answer
    #[arg(long, value_name = "N", default_value = "20", value_parser = at_least_one)]
    tokens: NonZeroUsize,
    /// Add a profiled run to each measurement and show where its time went
    #[arg(long)]
    profile: bool,
    /// Also write the results to FILE as JSON; - prints the JSON instead of the table
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<String>,
}

impl BenchArguments {
    pub(super) fn plan(&self) -> RunPlan {
        RunPlan {
            runs: self.runs,
            warm_up: self.warm_up,
            tokens: self.tokens,
            profile: self.profile,
        }
    }
}
