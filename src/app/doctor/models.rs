//! Where the files of each model are: in the binary, in a directory, in the cache of the hub, or on the hub only.

use std::path::Path;
use std::time::Duration;

use rustix::fs::{Access, access};

use super::{Finding, Severity};
use crate::app::{loading, memory_budget};
use crate::config::Config;
use crate::hub::{self, CheckpointSource, HubError, HubSettings, HubSource};
use crate::model::{ModelSpec, Placement};

/// How long the hub may take to say that it has a model.
const HUB_TIMEOUT: Duration = Duration::from_secs(10);

/// A model and the state of its files.
#[derive(Debug, Clone)]
pub(super) struct ModelState {
    pub(super) name: String,
    source: String,
    files: Files,
}

#[derive(Debug, Clone)]
enum Files {
    /// All files are there, and their headers are consistent.
    Complete {
        /// Size in bytes of the weights that the model adds to the memory of the host.
        weights: u64,
        revision: Revision,
    },
    /// A file is wrong or cannot be read.
    Broken(String),
    /// A model of the hub that is not completely in the cache, and why.
    Missing { reason: String, hub: Hub },
}

/// Which revision of a model is served.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Revision {
    /// The files are in the binary or in a directory.
    Local,
    /// The setting names the commit.
    Pinned,
    /// The setting names a branch or tag, or nothing, which was at this commit when it was downloaded.
    Moving(String),
}

/// Whether a missing model can be downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hub {
    /// The settings forbid downloads.
    Offline,
    /// The hub has the model.
    Reachable,
    /// The hub has the model, but the cache cannot be written.
    CacheNotWritable(String),
    /// The hub does not answer, or refuses the model.
    Failed(String),
}

impl ModelState {
    /// Returns the size in bytes of the weights that the model adds to the memory of the host; `None` if it is not known
    /// yet.
    pub(super) fn weight_bytes(&self) -> Option<u64> {
        match self.files {
            Files::Complete { weights, .. } => Some(weights),
            Files::Broken(_) | Files::Missing { .. } => None,
        }
    }

    #[cfg(test)]
    pub(super) fn demo(name: &str) -> Self {
        Self::complete(name, 60 << 20)
    }

    #[cfg(test)]
    pub(super) fn complete(name: &str, weights: u64) -> Self {
        let files = Files::Complete { weights, revision: Revision::Local };
        Self { name: name.to_owned(), source: name.to_owned(), files }
    }

    #[cfg(test)]
    pub(super) fn missing(name: &str) -> Self {
        let files = Files::Missing { reason: "not there".to_owned(), hub: Hub::Reachable };
        Self { name: name.to_owned(), source: name.to_owned(), files }
    }
}

/// Reads the files of every model, but not their weights. `placement` decides the size of the weights in memory.
pub(super) async fn inspect(config: &Config, placement: Placement) -> Vec<ModelState> {
    let mut states = Vec::with_capacity(config.models.len());
    let mut specs: Vec<ModelSpec> = Vec::new();
    for model in &config.models {
        let files = match loading::inspect(model, config).await {
            Ok(spec) => {
                let before = memory_budget::weight_bytes(&specs, placement);
                specs.push(spec);
                match before
                    .and_then(|before| Ok(memory_budget::weight_bytes(&specs, placement)? - before))
                {
                    Ok(weights) => complete(weights, &model.source, specs.last()),
                    Err(error) => Files::Broken(format!("{error:#}")),
                }
            }
            Err(error) => incomplete(&error, &model.source, &config.hub).await,
        };
        states.push(ModelState {
            name: model.name.clone(),
            source: model.source.to_string(),
            files,
        });
    }
    states
}

fn complete(weights: u64, source: &CheckpointSource, spec: Option<&ModelSpec>) -> Files {
    let commit = spec.and_then(|spec| spec.revision.clone());
    let revision = match (source, commit) {
        (CheckpointSource::Hub(source), Some(commit)) if commit == source.revision() => {
            Revision::Pinned
        }
        (CheckpointSource::Hub(_), Some(commit)) => Revision::Moving(commit),
        (CheckpointSource::Hub(_), None)
        | (CheckpointSource::Directory(_) | CheckpointSource::Demo(_), _) => Revision::Local,
    };
    Files::Complete { weights, revision }
}

async fn incomplete(
    error: &anyhow::Error,
    source: &CheckpointSource,
    settings: &HubSettings,
) -> Files {
    if let CheckpointSource::Hub(source) = source
        && let Some(HubError::NotCached { reason, .. }) = error.downcast_ref()
    {
        return Files::Missing { reason: reason.clone(), hub: hub_state(source, settings).await };
    }
    Files::Broken(format!("{error:#}"))
}

async fn hub_state(source: &HubSource, settings: &HubSettings) -> Hub {
    if settings.offline {
        return Hub::Offline;
    }
    match tokio::time::timeout(HUB_TIMEOUT, hub::look_up(source, settings)).await {
        Err(_) => {
            let seconds = HUB_TIMEOUT.as_secs();
            Hub::Failed(format!("{} did not answer within {seconds} s", settings.endpoint))
        }
        Ok(Err(error)) => Hub::Failed(format!("{:#}", anyhow::Error::new(error))),
        Ok(Ok(())) if is_writable(&settings.cache) => Hub::Reachable,
        Ok(Ok(())) => Hub::CacheNotWritable(settings.cache.display().to_string()),
    }
}

/// True if this user can create files below `directory`, which need not exist yet.
fn is_writable(directory: &Path) -> bool {
    let existing = directory.ancestors().find(|ancestor| ancestor.exists());
    access(existing.unwrap_or(Path::new(".")), Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

/// Judges the files of a model.
pub(super) fn check(model: &ModelState) -> Finding {
    const CHECK: &str = "model";
    let ModelState { name, source, files } = model;
    let download = format!("run `blip-server download {source}` as the user of the server");
    match files {
        Files::Complete { weights, revision } => {
            let found = Finding::ok(CHECK, format!("{name}: complete{}", size(*weights)));
            match revision {
                Revision::Local | Revision::Pinned => found,
                Revision::Moving(commit) => found.with(
                    Severity::Ok,
                    format!("the revision is not pinned, so a restart may download other weights; to keep these: {}@{commit}", repository(source)),
                ),
            }
        }
        Files::Broken(reason) => Finding::problem(
            CHECK,
            format!("{name}: {reason}"),
            "repair or replace the files (docs/troubleshooting.md)",
        ),
        Files::Missing { reason, hub } => {
            let text = format!("{name}: {source} is not in the cache ({reason})");
            match hub {
                Hub::Reachable => {
                    Finding::ok(CHECK, format!("{text}; the server downloads it when it starts"))
                        .with(Severity::Ok, format!("to start faster, first {download}"))
                }
                Hub::Offline => Finding::problem(
                    CHECK,
                    format!(
                        "{text}, and hub.offline (HF_HUB_OFFLINE) is set, which forbids downloads"
                    ),
                    format!(
                        "{download} with network access, or unset hub.offline and HF_HUB_OFFLINE"
                    ),
                ),
                Hub::CacheNotWritable(cache) => Finding::problem(
                    CHECK,
                    format!("{text}, and this user cannot write to {cache}"),
                    "make it writable, or set HF_HOME or hub.cache to another directory",
                ),
                Hub::Failed(error) => Finding::problem(
                    CHECK,
                    format!("{text}, and cannot be downloaded: {error}"),
                    download,
                ),
            }
        }
    }
}

/// Describes the size of the weights in the memory of the host. It is zero on a GPU, and for a model that uses the files
/// of another one.
fn size(bytes: u64) -> String {
    if bytes == 0 {
        String::new()
    } else {
        format!(", {} MiB of weights in memory", bytes.div_ceil(1 << 20))
    }
}

/// Returns `owner/name` of `owner/name@revision`.
fn repository(source: &str) -> &str {
    source.split_once('@').map_or(source, |(repository, _)| repository)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{only_fault, settings};
    use super::*;
    use crate::task::{Device, Dtype};

    const PLACEMENT: Placement = Placement { device: Device::Cpu, dtype: Dtype::F32 };

    fn finding(files: Files) -> Finding {
        check(&ModelState { name: "vqa".to_owned(), source: "a/b@main".to_owned(), files })
    }

    fn missing(hub: Hub) -> Finding {
        finding(Files::Missing { reason: "it has no weights".to_owned(), hub })
    }

    #[test]
    fn a_revision_that_may_move_is_named_with_how_to_pin_it() {
        let complete = |revision| finding(Files::Complete { weights: 1 << 30, revision });
        assert_eq!(complete(Revision::Pinned).advice, None);
        let moving = complete(Revision::Moving("c0ffee".to_owned()));
        assert_eq!(moving.severity, Severity::Ok);
        assert!(moving.text.contains("1024 MiB"), "{moving:?}");
        assert!(moving.advice.unwrap().contains("a/b@c0ffee"));
    }

    #[test]
    fn a_missing_model_is_a_problem_unless_it_can_be_downloaded() {
        assert_eq!(missing(Hub::Reachable).severity, Severity::Ok);
        for (hub, words) in [
            (Hub::Offline, "HF_HUB_OFFLINE"),
            (Hub::CacheNotWritable("/cache".to_owned()), "/cache"),
            (Hub::Failed("no route".to_owned()), "no route"),
        ] {
            let fault = only_fault(&[missing(hub)], "model", Severity::Problem);
            assert!(fault.contains(words) && fault.contains("it has no weights"), "{fault}");
        }
        only_fault(&[finding(Files::Broken("cut off".to_owned()))], "model", Severity::Problem);
    }

    #[tokio::test]
    async fn a_model_outside_the_cache_is_not_looked_for_offline() {
        let cache = tempfile::tempdir().unwrap();
        let path = cache.path().to_str().unwrap();
        let offline = [("MODELS", "a/b"), ("HUB__OFFLINE", "true"), ("HUB__CACHE", path)];
        let states = inspect(&settings(&offline), PLACEMENT).await;
        let fault = only_fault(&[check(&states[0])], "model", Severity::Problem);
        assert!(fault.contains("a/b") && fault.contains("HF_HUB_OFFLINE"), "{fault}");
        // Port 9 refuses connections.
        let online =
            [("MODELS", "a/b"), ("HUB__ENDPOINT", "http://127.0.0.1:9"), ("HUB__CACHE", path)];
        let states = inspect(&settings(&online), PLACEMENT).await;
        let fault = only_fault(&[check(&states[0])], "model", Severity::Problem);
        assert!(
            fault.contains("127.0.0.1:9") && fault.contains("blip-server download a/b"),
            "{fault}"
        );
    }

    #[test]
    fn a_directory_that_does_not_exist_yet_is_as_writable_as_the_one_above_it() {
        let folder = tempfile::tempdir().unwrap();
        assert!(is_writable(&folder.path().join("cache/hub")));
        // Nothing can be created below a device, not even by root.
        assert!(!is_writable(Path::new("/dev/null/cache")));
    }
}
