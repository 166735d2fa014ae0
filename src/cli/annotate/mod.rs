//! The commands `caption`, `ask`, `match`, `embed` and `classify`: they run one task over many pictures, with models in this
//! process or on a server.
//!
//! - `args`: the flags. `bar`: shows what happens.

mod args;
mod bar;

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

pub(super) use self::args::{
    AskArguments, CaptionArguments, ClassifyArguments, EmbedArguments, FilesArguments,
    GenerationArguments, MatchArguments,
};
use self::bar::Bar;
use super::error::CommandError;
use super::signals;
use crate::annotate::{
    self, Existing, Identity, Job, Kind, Pictures, Remote, Run, RunError, Summary,
};
use crate::app::App;
use crate::config::Config;
use crate::hub::{ModelSource, install_tls_provider};

/// What a command does with each picture: the task, the fields of its requests, and outputs that only one command has.
#[derive(Debug)]
pub(super) struct Request {
    kind: Kind,
    fields: Map<String, Value>,
    npy: Option<PathBuf>,
    least_match: Option<f64>,
}

impl Request {
    fn new(kind: Kind) -> Self {
        Self { kind, fields: Map::new(), npy: None, least_match: None }
    }

    pub(super) fn caption(caption: &CaptionArguments, generation: &GenerationArguments) -> Self {
        let mut request = Self::new(Kind::Caption);
        generation.put(&mut request.fields);
        args::put_list(&mut request.fields, "candidates", &caption.candidates);
        request.put("prompt", caption.prompt.as_deref());
        if caption.verify.is_some() {
            request.fields.insert("verify".to_owned(), true.into());
            request.least_match = caption.verify;
        }
        request
    }

    pub(super) fn ask(ask: &AskArguments, generation: &GenerationArguments) -> Self {
        let mut request = Self::new(Kind::Ask);
        generation.put(&mut request.fields);
        args::put_list(&mut request.fields, "questions", &ask.questions);
        args::put_list(&mut request.fields, "candidates", &ask.candidates);
        request
    }

    pub(super) fn compare(texts: &MatchArguments) -> Self {
        let mut request = Self::new(Kind::Match);
        args::put_list(&mut request.fields, "texts", &texts.texts);
        args::put_list(&mut request.fields, "scores", &texts.scores);
        request
    }

    pub(super) fn embed(embed: &EmbedArguments) -> Self {
        let mut request = Self::new(Kind::Embed);
        request.put("pooling", embed.pooling.as_deref());
        request.npy.clone_from(&embed.npy);
        request
    }

    pub(super) fn classify(classify: &ClassifyArguments) -> Self {
        let mut request = Self::new(Kind::Classify);
        args::put_list(&mut request.fields, "labels", &classify.labels);
        request.put("template", classify.template.as_deref());
        request.put("by", classify.by.as_deref());
        request
    }

    fn put(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.fields.insert(name.to_owned(), value.into());
        }
    }

    /// Checks what neither the argument parser nor the check of the request can tell.
    fn check(&self, files: &FilesArguments) -> Result<(), CommandError> {
        let wrong = |text: &str| Err(CommandError::Usage(text.to_owned()));
        let has_texts = !matches!(self.kind, Kind::Match | Kind::Embed);
        let is_text = |sidecar: &args::Sidecar| !matches!(sidecar, args::Sidecar::Json);
        if !has_texts && files.sidecar.iter().any(is_text) {
            return wrong("this command has no texts for txt and xmp files; use --sidecar json");
        }
        if self.least_match.is_some_and(|least| !(0.0..=1.0).contains(&least)) {
            return wrong("--verify takes a probability from 0 to 1");
        }
        if self.npy.is_some() && self.npy == files.output {
            return wrong("--npy and --output name the same file");
        }
        Ok(())
    }

    fn into_job(self, files: &FilesArguments, max_image_bytes: usize) -> Result<Job, CommandError> {
        let pictures = Pictures::try_new(
            files.paths.clone(),
            files.lists.clone(),
            &files.include,
            &files.exclude,
        );
        let pictures = pictures.map_err(|error| CommandError::Usage(error.to_string()))?;
        if self.kind == Kind::Ask && !self.fields.contains_key("questions") && !pictures.has_lists()
        {
            return Err(CommandError::Usage("ask needs at least one --question".to_owned()));
        }
        let has_other = !files.sidecar.is_empty() || self.npy.is_some();
        Ok(Job {
            kind: self.kind,
            pictures: Arc::new(pictures),
            fields: self.fields,
            table: files.output.clone().or_else(|| (!has_other).then(|| "-".into())),
            sidecars: files.sidecar.iter().copied().map(Into::into).collect(),
            npy: self.npy,
            existing: match (files.earlier.resume, files.earlier.overwrite) {
                (true, _) => Existing::Resume,
                (false, true) => Existing::Overwrite,
                (false, false) => Existing::Refuse,
            },
            identity: if files.earlier.sha256 { Identity::Sha256 } else { Identity::SizeAndTime },
            affixes: (files.prefix.clone(), files.suffix.clone()),
            language: files.language.clone(),
            least_match: self.least_match,
            max_image_bytes,
        })
    }
}

/// Runs a command. `models` are the names given by `--model`.
pub(super) fn run(
    mut request: Request,
    files: &FilesArguments,
    models: &[String],
    mut config: Config,
) -> Result<(), CommandError> {
    if files.server.is_some() {
        match models {
            [] => {}
            [name] => request.put("model", Some(name)),
            _ => return Err(CommandError::Usage("--server takes one --model".to_owned())),
        }
    }
    request.check(files)?;
    let job = request.into_job(files, config.http.input.max_image_bytes)?;
    if files.dry_run {
        return list(&job);
    }
    let run = Run::open(job).map_err(|error| of_run(error.into()))?;
    let runtime = super::runtime()?;
    let ended = runtime.block_on(async {
        let stop = signals::shutdown()
            .map_err(|error| CommandError::failed("cannot listen for signals", error))?;
        let bar = Arc::new(Bar::start());
        let summary = if let Some(url) = &files.server {
            let remote = remote(url, files)?;
            run.through(&remote, Arc::clone(&bar) as _, stop).await
        } else {
            if config.models.is_empty() {
                config.models = ModelSource::demo();
            }
            // The user names the pictures.
            config.fetch.enabled = true;
            let local = tokio::select! {
                local = App::start_local(config) => local,
                () = stop.cancelled() => return report(&Summary { interrupted: true, ..Summary::default() }),
            };
            let local = local.map_err(|error| CommandError::of_server("cannot start", error))?;
            let ran = run.through(&local, Arc::clone(&bar) as _, stop).await;
            local.stop();
            ran
        };
        bar.finish();
        summary.map_err(of_run).and_then(|summary| report(&summary))
    });
    // Do not wait for a thread that still reads a picture or the standard input.
    runtime.shutdown_background();
    ended
}

fn remote(url: &str, files: &FilesArguments) -> Result<Remote, CommandError> {
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(CommandError::Usage(format!("--server {url}: needs http:// or https://")));
    }
    let key = files.api_key_file.as_ref().map(|file| {
        let text = std::fs::read_to_string(file);
        text.map(|text| text.trim().to_owned())
            .map_err(|error| CommandError::failed(format!("cannot read {}", file.display()), error))
    });
    install_tls_provider();
    Remote::try_new(url, key.transpose()?)
        .map_err(|error| CommandError::failed("cannot create an HTTP client", error))
}

/// Prints the pictures of a job.
fn list(job: &Job) -> Result<(), CommandError> {
    let names = annotate::names(job).map_err(CommandError::Negative)?;
    super::print(&names.iter().fold(String::new(), |text, name| text + name + "\n"))
}

fn of_run(error: RunError) -> CommandError {
    match error {
        RunError::Parameters(detail) => CommandError::Usage(detail),
        error @ (RunError::Output(_) | RunError::Service(_) | RunError::Reader) => {
            CommandError::Negative(error.to_string())
        }
    }
}

/// Turns the summary into the result of the command.
fn report(summary: &Summary) -> Result<(), CommandError> {
    let Summary { done, failed, skipped, rejected, interrupted } = *summary;
    let mut text = format!("{done} done, {failed} failed, {skipped} done before");
    if rejected > 0 {
        text = format!("{text}, {rejected} captions left out");
    }
    if interrupted {
        let text = format!("interrupted: {text}; --resume does the rest");
        return Err(CommandError::Negative(text));
    }
    if failed > 0 {
        return Err(CommandError::SomeFailed(text));
    }
    crate::telemetry::logging::write_error(&text);
    Ok(())
}
