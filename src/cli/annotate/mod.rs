//! The commands `caption`, `ask`, `match`, `embed` and `classify`: they run one task over many pictures, with models in this
//! process or on a server.
//!
//! - `args`: the flags. `bar`: shows what happens. `wording`: the service's problems in the words of the command line.

mod args;
mod bar;
mod wording;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

pub(super) use self::args::{
    AskArguments, CaptionArguments, ClassifyArguments, EmbedArguments, FilesArguments,
    GenerationArguments, MatchArguments,
};
use self::bar::Bar;
use super::error::CommandError;
use super::printable::printable;
use super::signals;
use crate::annotate::{
    self, Existing, Identity, Job, Kind, OutputError, Pictures, Planned, Remote, Run, RunError,
    Summary,
};
use crate::app::App;
use crate::config::Config;
use crate::hub::{ModelSource, install_tls_provider};
use crate::telemetry::logging;

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
        let writes = |format: fn(&args::Sidecar) -> bool| files.sidecar.iter().any(format);
        let has_affixes = !files.prefix.is_empty() || !files.suffix.is_empty();
        if has_affixes && !writes(|it| matches!(it, args::Sidecar::Txt)) {
            return wrong("--prefix and --suffix need --sidecar txt");
        }
        if files.language.is_some() && !writes(|it| matches!(it, args::Sidecar::Xmp)) {
            return wrong("--language needs --sidecar xmp");
        }
        if let Some(path) = files.output.as_deref().filter(|path| !is_table_name(path)) {
            return Err(CommandError::Usage(format!(
                "--output {}: the name must end in .csv, or in .jsonl or .ndjson for JSON lines",
                path.display()
            )));
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
        let job = Job {
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
        };
        if job.existing == Existing::Resume && !job.can_be_resumed() {
            let outputs = match job.kind {
                Kind::Embed => "--output FILE, --sidecar or --npy",
                Kind::Caption | Kind::Ask | Kind::Match | Kind::Classify => {
                    "--output FILE or --sidecar"
                }
            };
            return Err(CommandError::Usage(format!(
                "--resume needs {outputs}: answers on standard output cannot be read again"
            )));
        }
        Ok(job)
    }
}

/// True if the name of a table says how it is written. Names without an extension, such as `-` and `/dev/stdout`, are for
/// JSON lines.
fn is_table_name(path: &Path) -> bool {
    let known = ["jsonl", "ndjson", "csv"];
    path.extension()
        .is_none_or(|extension| known.iter().any(|known| extension.eq_ignore_ascii_case(known)))
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
    job.pictures.check_lists().map_err(|error| CommandError::Negative(error.to_string()))?;
    if files.dry_run {
        return list(&job);
    }
    let (pictures, can_be_resumed) = (Arc::clone(&job.pictures), job.can_be_resumed());
    let is_local = files.server.is_none();
    let run = Run::open(job).map_err(|error| of_run(error.into(), is_local))?;
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
                () = stop.cancelled() => {
                    let summary = Summary { interrupted: true, ..Summary::default() };
                    return report(&summary, can_be_resumed);
                }
            };
            let local = local.map_err(|error| CommandError::of_server("cannot start", error))?;
            let ran = run.through(&local, Arc::clone(&bar) as _, stop).await;
            local.stop();
            ran
        };
        bar.finish();
        let summary = summary.map_err(|error| of_run(error, is_local))?;
        if summary.is_empty() {
            warn(&pictures.nothing_found());
        }
        report(&summary, can_be_resumed)
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

/// Prints the pictures of a job, in the form of a list for `--list`. The exit code is that of a run whose models answer all
/// of them.
fn list(job: &Job) -> Result<(), CommandError> {
    let mut printed = Ok(());
    let planned = annotate::plan(job, &mut |planned| match planned {
        Planned::Picture(name) if printed.is_ok() => {
            printed = super::print(&(wording::list_line(&name) + "\n"));
        }
        Planned::Picture(_) => {}
        Planned::Failed(text) => warn(&text),
    });
    let summary = planned.map_err(|error| of_run(error.into(), true))?;
    printed?;
    if summary.is_empty() {
        warn(&job.pictures.nothing_found());
    }
    let Summary { done, failed, skipped, .. } = summary;
    let text =
        format!("dry run: {done} would be processed, {failed} would fail, {skipped} done before");
    if failed > 0 {
        return Err(CommandError::SomeFailed(text));
    }
    logging::write_error(&text);
    Ok(())
}

/// Writes a message that may contain names of files to standard error.
fn warn(message: &str) {
    logging::write_error(&format!("blip-server: {}", printable(message)));
}

fn of_run(error: RunError, is_local: bool) -> CommandError {
    match error {
        RunError::Parameters(problem) => {
            CommandError::Usage(printable(&wording::in_flags(&problem, is_local)).into_owned())
        }
        RunError::Output(OutputError::ReaderGone) => CommandError::ReaderGone,
        error @ (RunError::Output(_) | RunError::Service(_) | RunError::Reader) => {
            CommandError::Negative(printable(&error.to_string()).into_owned())
        }
    }
}

/// Turns the summary into the result of the command.
fn report(summary: &Summary, can_be_resumed: bool) -> Result<(), CommandError> {
    let Summary { done, failed, skipped, rejected, interrupted } = *summary;
    let mut text = format!("{done} done, {failed} failed, {skipped} done before");
    if rejected > 0 {
        text = format!("{text}, {rejected} captions left out");
    }
    if interrupted {
        let rest = if can_be_resumed {
            "--resume does the rest"
        } else {
            "to be able to resume, write to a file with --output FILE"
        };
        return Err(CommandError::Negative(format!("interrupted: {text}; {rest}")));
    }
    if failed > 0 {
        return Err(CommandError::SomeFailed(text));
    }
    logging::write_error(&text);
    Ok(())
}
