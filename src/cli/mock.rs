//! The command `mock`: runs the same server as `serve`, but with mock models that have fixed latencies and meaningless
//! answers. It is used for load tests of proxies, limits and dashboards, and of the server itself.

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Args;

use super::args::{at_least_one, whole_number};
use super::error::CommandError;
use crate::app::{App, MockSettings};
use crate::config::Config;

/// Behaviour of the mock models: latencies, sizes and a deliberate memory leak.
#[derive(Debug, Args)]
#[command(next_help_heading = "Mock")]
pub(super) struct MockArguments {
    /// Number of workers, each with models of its own, like those of several GPUs
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one)]
    workers: NonZeroUsize,
    /// Additional microseconds per image that the vision tower encodes
    #[arg(long, value_name = "N", default_value = "2000")]
    image_us: u64,
    /// Fixed number of microseconds per vision batch and per text step
    #[arg(long, value_name = "N", default_value = "500")]
    unit_us: u64,
    /// Additional microseconds per token of a text step
    #[arg(long, value_name = "N", default_value = "10")]
    token_us: u64,
    /// Width and height of the input images of the vision tower
    #[arg(long, value_name = "PIXELS", default_value = "64", value_parser = clap::value_parser!(u32).range(1..=1024))]
    image_size: u32,
    /// Number of tokens in every generated text, within the limits of the request
    #[arg(long, value_name = "N", default_value = "8", value_parser = whole_number)]
    text_length: usize,
    /// Number of bytes to leak per encoded image, as a check of leak tests
    #[arg(long, value_name = "N", default_value = "0", hide = true)]
    leak_bytes: usize,
}

impl MockArguments {
    fn settings(&self) -> MockSettings {
        MockSettings {
            workers: self.workers,
            unit_time: Duration::from_micros(self.unit_us),
            image_time: Duration::from_micros(self.image_us),
            token_time: Duration::from_micros(self.token_us),
            image_size: self.image_size,
            text_length: self.text_length,
            leak_bytes: self.leak_bytes,
        }
    }
}

pub(super) fn run(arguments: &MockArguments, config: Config) -> Result<(), CommandError> {
    let settings = arguments.settings();
    super::serve::run_app(config, move |config| Ok(App::build(config)?.with_mock(settings)))
}
