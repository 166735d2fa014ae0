//! The command-line grammar (clap): commands, flags and their help texts. The values of settings remain text here,
//! because `config` validates them together with those from files and the environment. `cli::run` parses with it;
//! `manual` generates shell completions and manual pages from it.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use super::annotate::{
    AskArguments, CaptionArguments, ClassifyArguments, EmbedArguments, FilesArguments,
    GenerationArguments, MatchArguments,
};
use super::bench::BenchArguments;
use super::mcp::McpArguments;
use super::mock::MockArguments;
use crate::config::Flags;

/// HTTP inference server for BLIP vision-language models: captions, visual question answering, image-text similarity,
/// embeddings.
#[derive(Debug, Parser)]
#[command(name = "blip-server", version, after_help = EXAMPLES, subcommand_help_heading = "Commands")]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: ServeSettings,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

const EXAMPLES: &str = "Examples:
  blip-server                                          serve the demo models on 127.0.0.1:8080
  blip-server --model Salesforce/blip-vqa-base         download a checkpoint and serve it
  blip-server --listen :8080 --model cap=./checkpoint  serve a directory as \"cap\" on every address
  blip-server help bench                               show the options of a command";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Load the models and serve them over HTTP (the default command)
    #[command(after_help = "Examples:
  blip-server serve --model Salesforce/blip-vqa-base --dtype f32
  blip-server serve --config /etc/blip-server/settings.toml")]
    Serve(ServeSettings),
    /// Describe pictures: files, or folders with everything below them
    #[command(after_help = "Examples:
  blip-server caption photos --model Salesforce/blip-image-captioning-base --output captions.jsonl --resume
  blip-server caption photos --sidecar txt --num-beams 3 --server http://127.0.0.1:8080")]
    Caption {
        #[command(flatten)]
        files: FilesArguments,
        #[command(flatten)]
        caption: CaptionArguments,
        #[command(flatten)]
        generation: GenerationArguments,
        #[command(flatten)]
        models: ModelSettings,
        #[command(flatten)]
        settings: FileSettings,
    },
    /// Answer questions about pictures
    #[command(after_help = "Example:
  blip-server ask photos --question 'how many people?' --question 'is it outdoors?' --output answers.csv")]
    Ask {
        #[command(flatten)]
        files: FilesArguments,
        #[command(flatten)]
        ask: AskArguments,
        #[command(flatten)]
        generation: GenerationArguments,
        #[command(flatten)]
        models: ModelSettings,
        #[command(flatten)]
        settings: FileSettings,
    },
    /// Compare pictures with texts
    #[command(after_help = "Example:
  blip-server match photos --text 'a dog on a beach' --output scores.csv")]
    Match {
        #[command(flatten)]
        files: FilesArguments,
        #[command(flatten)]
        texts: MatchArguments,
        #[command(flatten)]
        models: ModelSettings,
        #[command(flatten)]
        settings: FileSettings,
    },
    /// Embed pictures as vectors
    #[command(after_help = "Example:
  blip-server embed photos --npy vectors.npy")]
    Embed {
        #[command(flatten)]
        files: FilesArguments,
        #[command(flatten)]
        embed: EmbedArguments,
        #[command(flatten)]
        models: ModelSettings,
        #[command(flatten)]
        settings: FileSettings,
    },
    /// Choose a label for each picture
    #[command(after_help = "Example:
  blip-server classify photos --label 'a person' --label 'an animal' --label 'a building' --output labels.csv")]
    Classify {
        #[command(flatten)]
        files: FilesArguments,
        #[command(flatten)]
        classify: ClassifyArguments,
        #[command(flatten)]
        models: ModelSettings,
        #[command(flatten)]
        settings: FileSettings,
    },
    /// Give a language model tools that look at pictures, over the Model Context Protocol on standard input and output
    #[command(after_help = "Example, as the command of a client such as Claude Desktop or an IDE:
  blip-server mcp --allow ~/Pictures")]
    Mcp {
        #[command(flatten)]
        mcp: McpArguments,
        #[command(flatten)]
        models: ModelSettings,
        #[command(flatten)]
        settings: FileSettings,
    },
    /// Download checkpoints into the Hugging Face cache, resuming and verifying, and print their directories
    #[command(after_help = "Examples:
  blip-server download Salesforce/blip-itm-base-coco
  HF_ENDPOINT=https://hub.example blip-server download owner/name@v1.0")]
    Download {
        /// Hub ids (owner/name), each optionally with @revision
        #[arg(required = true, value_name = "SRC")]
        sources: Vec<String>,
        #[command(flatten)]
        settings: FileSettings,
    },
    /// Convert the PyTorch or TensorFlow weights of a checkpoint to safetensors, in the same directory
    #[command(after_help = "Example:
  blip-server convert ./checkpoint")]
    Convert {
        /// Directory that holds the checkpoint
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Check the official checkpoints against their known answers; the first run downloads about 4 GB
    #[command(after_help = "Example:
  blip-server verify --dtype f32")]
    Verify {
        #[command(flatten)]
        compute: ComputeSettings,
        #[command(flatten)]
        settings: FileSettings,
    },
    /// Benchmark the models without HTTP: time each kind of work at each batch size, and measure the limits of this
    /// machine
    #[command(after_help = "Examples:
  blip-server bench --task caption --batch 1 --batch 8
  blip-server bench --model ./checkpoint --dtypes f32,bf16 --json results.json")]
    Bench {
        #[command(flatten)]
        bench: BenchArguments,
        #[command(flatten)]
        models: ModelSettings,
        #[command(flatten)]
        settings: FileSettings,
    },
    /// Serve mock models with fixed latencies and meaningless answers, to load-test everything except the models
    #[command(after_help = "Example:
  blip-server mock --image-us 300000 --listen 127.0.0.1:9000")]
    Mock {
        #[command(flatten)]
        mock: MockArguments,
        #[command(flatten)]
        listen: ListenSettings,
        #[command(flatten)]
        settings: FileSettings,
    },
    /// Print the OpenAPI document as YAML
    #[command(after_help = "Example:
  blip-server openapi --json > openapi.json")]
    Openapi {
        /// Print JSON instead of YAML
        #[arg(long)]
        json: bool,
        /// Include every condition between fields, for validators and fuzzers; always JSON
        #[arg(long)]
        strict: bool,
    },
    /// Exit with 0 if a running server is ready, else with 1; for container health checks
    #[command(after_help = "Example:
  blip-server healthcheck --url http://127.0.0.1:8080/health/ready")]
    Healthcheck {
        /// http:// URL to request instead of the configured address
        #[arg(long, value_name = "URL")]
        url: Option<String>,
        #[command(flatten)]
        listen: ListenSettings,
        #[command(flatten)]
        settings: FileSettings,
    },
    /// Compare the settings with this machine: say what would keep a server from starting, make it fail, or slow it down;
    /// takes the settings of serve
    #[command(after_help = "Examples:
  blip-server doctor --config /etc/blip-server/blip-server.toml
  blip-server doctor --model Salesforce/blip-vqa-base --json")]
    Doctor {
        /// Print the findings as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        settings: ServeSettings,
    },
    /// Print the effective settings as TOML, with secrets hidden
    #[command(after_help = "Example:
  BLIP__LOG__FORMAT=json blip-server config > settings.toml")]
    Config(ServeSettings),
    /// Print a completion script for a shell
    #[command(after_help = "Example:
  blip-server completions bash > /etc/bash_completion.d/blip-server")]
    Completions {
        /// Shell for which to print the script
        shell: Shell,
    },
    /// Write manual pages, one per command, to a directory
    #[command(after_help = "Example:
  blip-server man /usr/local/share/man/man1")]
    Man {
        /// Directory to write the pages to; it is created if it does not exist
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

/// Settings that have a flag. All others are set in a file or in the environment.
#[derive(Debug, Args)]
pub(super) struct ServeSettings {
    #[command(flatten)]
    listen: ListenSettings,
    #[command(flatten)]
    models: ModelSettings,
    #[command(flatten)]
    file: FileSettings,
}

/// The last `--config` wins, so that users can override the one that the container image's entry point passes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Settings")]
pub(super) struct FileSettings {
    /// Settings file (TOML); config/default.toml documents every key
    #[arg(long, value_name = "FILE", overrides_with = "config")]
    config: Option<PathBuf>,
    /// Log format: auto, text or json [default: auto]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Settings")]
pub(super) struct ListenSettings {
    /// Address of the server: 127.0.0.1:8080, localhost:8080, or :8080 for every address [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Settings")]
pub(super) struct ModelSettings {
    /// Model to load: a hub id, optionally with @revision, a directory, or demo, each optionally with ?image_size=N;
    /// repeatable [default: demo]
    #[arg(long = "model", value_name = "[NAME=]SRC")]
    #[expect(clippy::doc_markdown, reason = "the help is no Markdown")]
    models: Vec<String>,
    #[command(flatten)]
    compute: ComputeSettings,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Settings")]
pub(super) struct ComputeSettings {
    /// Device that runs the models: auto, cpu, cuda, cuda:N, or several GPUs such as cuda:0,1 [default: auto]
    #[arg(long)]
    device: Option<String>,
    /// Number format of weights and activations: auto, f32, bf16, f16 or int8 [default: auto]
    #[arg(long)]
    dtype: Option<String>,
    /// Instruction set of the CPU kernels: auto, portable, avx2, avx512, avx512-vnni, avx512-bf16 or amx
    /// [default: auto]
    #[arg(long, value_name = "LEVEL")]
    cpu_isa: Option<String>,
    /// Number of threads that run the models; 0 uses as many as the CPU quota and affinity allow [default: 0]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    threads: Option<String>,
}

impl Arguments {
    /// Merges the flags given before and after the command; those after the command win.
    pub(super) fn flags(&self) -> Flags {
        let mut flags = Flags::default();
        self.settings.put(&mut flags);
        match &self.command {
            Some(
                Command::Serve(settings)
                | Command::Config(settings)
                | Command::Doctor { settings, .. },
            ) => settings.put(&mut flags),
            Some(Command::Download { settings, .. }) => settings.put(&mut flags),
            Some(Command::Verify { compute, settings }) => {
                compute.put(&mut flags);
                settings.put(&mut flags);
            }
            Some(
                Command::Bench { models, settings, .. } | Command::Mcp { models, settings, .. },
            ) => {
                models.put(&mut flags);
                settings.put(&mut flags);
            }
            Some(
                Command::Caption { files, models, settings, .. }
                | Command::Ask { files, models, settings, .. }
                | Command::Match { files, models, settings, .. }
                | Command::Embed { files, models, settings, .. }
                | Command::Classify { files, models, settings, .. },
            ) => {
                // With a server, `--model` names a model there.
                if files.uses_server() {
                    models.compute.put(&mut flags);
                } else {
                    models.put(&mut flags);
                }
                settings.put(&mut flags);
            }
            Some(
                Command::Mock { listen, settings, .. }
                | Command::Healthcheck { listen, settings, .. },
            ) => {
                listen.put(&mut flags);
                settings.put(&mut flags);
            }
            None
            | Some(
                Command::Convert { .. }
                | Command::Openapi { .. }
                | Command::Completions { .. }
                | Command::Man { .. },
            ) => {}
        }
        flags
    }
}

/// Parses a number of things of which there must be one at least.
pub(super) fn at_least_one(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "a whole number, at least 1".to_owned())
}

/// Parses a number of things of which there may be none.
pub(super) fn whole_number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "a whole number, not negative".to_owned())
}

/// Replaces the value of `to` if the flag was given.
fn put<T: Clone>(to: &mut Option<T>, given: Option<&T>) {
    if let Some(given) = given {
        *to = Some(given.clone());
    }
}

impl ServeSettings {
    fn put(&self, flags: &mut Flags) {
        self.listen.put(flags);
        self.models.put(flags);
        self.file.put(flags);
    }
}

impl FileSettings {
    fn put(&self, flags: &mut Flags) {
        put(&mut flags.config, self.config.as_ref());
        put(&mut flags.log_format, self.log_format.as_ref());
    }
}

impl ListenSettings {
    fn put(&self, flags: &mut Flags) {
        put(&mut flags.listen, self.listen.as_ref());
    }
}

impl ModelSettings {
    /// Returns the values of `--model`.
    pub(super) fn names(&self) -> &[String] {
        &self.models
    }

    fn put(&self, flags: &mut Flags) {
        if !self.models.is_empty() {
            flags.models.clone_from(&self.models);
        }
        self.compute.put(flags);
    }
}

impl ComputeSettings {
    fn put(&self, flags: &mut Flags) {
        put(&mut flags.device, self.device.as_ref());
        put(&mut flags.dtype, self.dtype.as_ref());
        put(&mut flags.cpu_isa, self.cpu_isa.as_ref());
        put(&mut flags.threads, self.threads.as_ref());
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
    fn flags_are_accepted_before_after_and_without_a_command() {
        for line in [
            "blip-server --listen 127.0.0.1:0 --model a/b --model x=c/d",
            "blip-server serve --listen 127.0.0.1:0 --model a/b --model x=c/d",
            "blip-server --listen 127.0.0.1:0 --model a/b --model x=c/d serve",
            "blip-server --listen 127.0.0.1:1 --model a/b --model x=c/d serve --listen 127.0.0.1:0",
        ] {
            let flags = parse(line).flags();
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
            assert_eq!(parse(line).flags().config, Some("b.toml".into()), "{line}");
        }
    }

    #[test]
    fn download_wants_at_least_one_source() {
        assert!(Arguments::try_parse_from(["blip-server", "download"]).is_err());
    }

    fn help_of(command: &str) -> String {
        let error = Arguments::try_parse_from(["blip-server", command, "--help"]).unwrap_err();
        error.to_string()
    }

    #[test]
    fn the_help_of_a_command_shows_its_own_flags_and_an_example() {
        use clap::CommandFactory;
        for command in Arguments::command().get_subcommands() {
            let help = help_of(command.get_name());
            assert!(help.contains("Example"), "{help}");
        }
        for (command, flags, others) in [
            ("convert", "", "--listen --model --config --threads --log-format"),
            ("openapi", "--json", "--listen --model --config --threads --log-format"),
            ("download", "--config --log-format", "--listen --model --threads"),
            ("healthcheck", "--url --listen --config", "--model --threads"),
            ("verify", "--device --threads --config", "--listen --model"),
            ("mock", "--listen --unit-us --config", "--model --dtype"),
            ("doctor", "--json --listen --model --device --config", "--url --task"),
            ("bench", "--task --model --dtype --threads --config", "--listen"),
            (
                "serve",
                "--listen --model --device --dtype --threads --config --log-format",
                "--task",
            ),
        ] {
            let help = help_of(command);
            for flag in flags.split_whitespace() {
                assert!(help.contains(flag), "{command} lacks {flag}: {help}");
            }
            for other in others.split(' ') {
                assert!(!help.contains(&format!("{other} ")), "{command} has {other}: {help}");
            }
        }
    }
}
