//! What the command line can say. Values stay text: `config` checks them like those of any other layer.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::bench::BenchArguments;
use super::mock::MockArguments;
use crate::config::Flags;

/// BLIP vision-language models behind HTTP: captions, visual question answering, similarity, embeddings.
#[derive(Debug, Parser)]
#[command(name = "blip-server", version)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) settings: SettingsArguments,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Loads the models and serves them (the default)
    Serve,
    /// Downloads checkpoints into the cache: resumes, verifies, prints where they are
    Download {
        /// Hub ids, optionally with @revision
        #[arg(required = true, value_name = "SRC")]
        sources: Vec<String>,
    },
    /// Converts the `pytorch_model.bin` of a checkpoint to `model.safetensors` beside it
    Convert {
        /// The checkpoint's directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Compares the official checkpoints with their known answers; downloads about 4 GB
    Verify,
    /// Measures the models without HTTP: each kind of work, in batches, beside what the machine could do at most
    Bench(BenchArguments),
    /// Serves models of fixed latency whose answers mean nothing, for load tests of everything around a model
    Mock(MockArguments),
    /// Prints the OpenAPI document
    Openapi {
        /// As JSON instead of YAML
        #[arg(long)]
        json: bool,
    },
    /// Asks a running server whether it is ready; for containers
    Healthcheck {
        /// What to ask instead of the configured address
        #[arg(long, value_name = "URL")]
        url: Option<String>,
    },
    /// Prints the effective settings, secrets hidden
    Config,
}

/// The settings that have a flag; every other one stands in a file or in the environment.
/// Of two `--config` the last counts: a container's entry point names one already.
#[derive(Debug, Args)]
pub(super) struct SettingsArguments {
    /// Settings file; config/default.toml documents every key
    #[arg(long, global = true, value_name = "FILE", overrides_with = "config")]
    config: Option<PathBuf>,
    /// Where to listen [default: 127.0.0.1:8080]
    #[arg(long, global = true, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// A model: a hub id, optionally with @revision, a directory, or demo; repeatable [default: demo]
    #[arg(long = "model", global = true, value_name = "[NAME=]SRC")]
    models: Vec<String>,
    /// auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long, global = true)]
    device: Option<String>,
    /// auto, f32, bf16, f16 or int8 [default: auto]
    #[arg(long, global = true)]
    dtype: Option<String>,
    /// Instructions of the kernels: auto, portable, avx2, avx512, avx512-vnni, avx512-bf16 or amx [default: auto]
    #[arg(long, global = true, value_name = "LEVEL")]
    cpu_isa: Option<String>,
    /// Threads of the models' arithmetic; 0 takes what quota and affinity allow [default: 0]
    #[arg(long, global = true, value_name = "N", allow_hyphen_values = true)]
    threads: Option<String>,
    /// auto, text or json [default: auto]
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl SettingsArguments {
    pub(super) fn flags(&self) -> Flags {
        Flags {
            config: self.config.clone(),
            listen: self.listen.clone(),
            models: self.models.clone(),
            device: self.device.clone(),
            dtype: self.dtype.clone(),
            cpu_isa: self.cpu_isa.clone(),
            threads: self.threads.clone(),
            log_format: self.log_format.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Arguments {
        Arguments::try_parse_from(line.split(' ')).unwrap()
    }

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn flags_stand_before_after_and_without_a_command() {
        for line in [
            "blip-server --listen 127.0.0.1:0 --model a/b --model x=c/d",
            "blip-server serve --listen 127.0.0.1:0 --model a/b --model x=c/d",
            "blip-server --listen 127.0.0.1:0 --model a/b --model x=c/d serve",
        ] {
            let flags = parse(line).settings.flags();
            assert_eq!(flags.listen.as_deref(), Some("127.0.0.1:0"), "{line}");
            assert_eq!(flags.models, ["a/b", "x=c/d"], "{line}");
        }
        assert!(parse("blip-server").command.is_none());
    }

    #[test]
    fn of_two_configuration_files_the_last_counts() {
        for line in [
            "blip-server --config a.toml --config b.toml serve",
            "blip-server --config a.toml serve --config b.toml",
        ] {
            assert_eq!(parse(line).settings.flags().config, Some("b.toml".into()), "{line}");
        }
    }

    #[test]
    fn download_wants_at_least_one_source() {
        assert!(Arguments::try_parse_from(["blip-server", "download"]).is_err());
    }
}
