//! Files that may change while the server runs: keys and certificates.
//!
//! Their content is read every few seconds: it is a few kilobytes, and neither clocks, symbolic links nor equal sizes
//! can hide a change that way. What cannot be used is logged once and changes nothing; the next look tries again.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::telemetry::metrics::Metrics;

/// Beyond this a file is neither keys nor a certificate.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 20;

/// What takes files over.
pub(crate) trait Watched: Send + Sync + 'static {
    /// Its name in logs and metrics.
    fn name(&self) -> &'static str;

    /// The files, in the order of `apply`'s contents. Without any there is nothing to watch.
    fn paths(&self) -> Vec<&Path>;

    /// Takes new contents over, all or nothing. Called for the contents of the start as well.
    ///
    /// # Errors
    /// Why they cannot be used, without a word of them.
    fn apply(&self, contents: &[Vec<u8>]) -> Result<Outcome, String>;
}

/// How contents were taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// They mean what is in force already.
    Unchanged,
    /// They are in force now; in words.
    Changed(String),
}

/// Reads a file that may be no larger than [`MAX_FILE_BYTES`].
///
/// # Errors
/// In words, with the path.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let named = |reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
    let file = std::fs::File::open(path).map_err(|error| named(&error))?;
    let mut content = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content).map_err(|error| named(&error))?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(named(&"it is larger than 1 MiB"));
    }
    Ok(content)
}

/// Looks at the files every `interval` until `stop`.
pub(crate) async fn watch(
    watched: Arc<dyn Watched>,
    metrics: Arc<Metrics>,
    interval: Duration,
    stop: CancellationToken,
) {
    if watched.paths().is_empty() {
        return;
    }
    let mut watcher = Watcher { watched, metrics, seen: None, failure: None };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        let look = tokio::task::spawn_blocking(move || {
            watcher.look();
            watcher
        });
        match look.await {
            Ok(looked) => watcher = looked,
            Err(error) => {
                tracing::error!(%error, "watching files panicked; they are not watched any more");
                return;
            }
        }
    }
}

struct Watcher {
    watched: Arc<dyn Watched>,
    metrics: Arc<Metrics>,
    /// Hash of the contents that were taken last.
    seen: Option<[u8; 32]>,
    /// What was logged, so that it is logged once.
    failure: Option<String>,
}

impl Watcher {
    fn look(&mut self) {
        let name = self.watched.name();
        match self.try_look() {
            Ok(Outcome::Unchanged) if self.failure.is_none() => {}
            Ok(outcome) => {
                self.failure = None;
                let what = match outcome {
                    Outcome::Unchanged => "they are as before".to_owned(),
                    Outcome::Changed(what) => what,
                };
                self.count("ok");
                tracing::info!(files = name, "{name} were read again: {what}");
            }
            Err(reason) if self.failure.as_ref() == Some(&reason) => {}
            Err(reason) => {
                self.count("failed");
                tracing::error!(files = name, reason, "new {name} cannot be used, the old stay");
                self.failure = Some(reason);
            }
        }
    }

    fn try_look(&mut self) -> Result<Outcome, String> {
        let paths: Vec<PathBuf> = self.watched.paths().into_iter().map(Path::to_owned).collect();
        let contents: Vec<Vec<u8>> =
            paths.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
        let mut hash = Sha256::new();
        for content in &contents {
            hash.update((content.len() as u64).to_le_bytes());
            hash.update(content);
        }
        let digest: [u8; 32] = hash.finalize().into();
        if self.seen == Some(digest) {
            return Ok(Outcome::Unchanged);
        }
        let outcome = self.watched.apply(&contents)?;
        self.seen = Some(digest);
        Ok(outcome)
    }

    fn count(&self, result: &str) {
        self.metrics.file_reloads_total.with_label_values(&[self.watched.name(), result]).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Takes every content but "bad".
    struct Text {
        path: PathBuf,
        taken: Mutex<String>,
    }

    impl Watched for Text {
        fn name(&self) -> &'static str {
            "keys"
        }

        fn paths(&self) -> Vec<&Path> {
            vec![&self.path]
        }

        fn apply(&self, contents: &[Vec<u8>]) -> Result<Outcome, String> {
            let text = String::from_utf8(contents[0].clone()).unwrap();
            if text == "bad" {
                return Err("it is bad".to_owned());
            }
            let mut taken = self.taken.lock().unwrap();
            if *taken == text {
                return Ok(Outcome::Unchanged);
            }
            taken.clone_from(&text);
            Ok(Outcome::Changed(text))
        }
    }

    #[test]
    fn changes_are_taken_and_what_cannot_be_used_is_counted_once_and_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "one").unwrap();
        let text = Arc::new(Text { path: path.clone(), taken: Mutex::new("one".to_owned()) });
        let metrics = Arc::new(Metrics::try_new().unwrap());
        let watched: Arc<dyn Watched> = text.clone();
        let mut watcher =
            Watcher { watched, metrics: Arc::clone(&metrics), seen: None, failure: None };
        let mut look = || {
            watcher.look();
            let reloads = |result| metrics.file_reloads_total.with_label_values(&["keys", result]);
            (text.taken.lock().unwrap().clone(), reloads("ok").get(), reloads("failed").get())
        };
        let state = |text: &str, ok, failed| (text.to_owned(), ok, failed);
        assert_eq!(look(), state("one", 0, 0));
        // The same size: only the content tells.
        std::fs::write(&path, "two").unwrap();
        assert_eq!(look(), state("two", 1, 0));
        assert_eq!(look(), state("two", 1, 0));
        std::fs::write(&path, "bad").unwrap();
        assert_eq!(look(), state("two", 1, 1));
        assert_eq!(look(), state("two", 1, 1));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(look(), state("two", 1, 2));
        std::fs::write(&path, "x".repeat(1 + (1 << 20))).unwrap();
        assert_eq!(look(), state("two", 1, 3));
        std::fs::write(&path, "two").unwrap();
        assert_eq!(look(), state("two", 2, 3));
    }
}
