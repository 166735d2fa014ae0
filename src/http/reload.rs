//! Watches files of API keys and TLS certificates while the server runs, and reloads them when they change. `server`
//! starts one watcher for each `Watched` value.
//!
//! Each check, every few seconds, reads the whole content, which is only a few kilobytes. This detects changes that
//! time stamps, symbolic links or equal sizes would hide. New content is applied only if two successive checks saw the
//! same content, so that a file that is still being written is not applied in part. One check is enough if the operator
//! asks for a reload (SIGHUP), because the operator knows that the files are complete. Content that cannot be used is
//! not applied. Each further check tries it again; unless the operator asked for the check, a failure that has been
//! logged for the same content is not logged again.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use super::blocking;
use crate::telemetry::metrics::Metrics;

/// Maximum size in bytes of a file that is read; files of keys and certificates are smaller.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 20;

/// A value that is loaded from files and can be replaced when they change.
pub(crate) trait Watched: Send + Sync + 'static {
    /// Returns the name of the value in logs and metrics.
    fn name(&self) -> &'static str;

    /// Returns the text to log if the files cannot be used. It says what the server keeps using, and what the operator
    /// should do.
    fn advice(&self) -> &'static str;

    /// Returns the paths of the files. [`apply`](Self::apply) receives the contents of the files in the same order. If
    /// there are no paths, nothing is watched.
    fn paths(&self) -> Vec<&Path>;

    /// Applies new contents, either all or none of them. Also called once for the contents at startup.
    ///
    /// # Errors
    /// The reason why the contents cannot be used. It quotes no part of the contents.
    fn apply(&self, contents: &[Vec<u8>]) -> Result<ApplyOutcome, String>;
}

/// What [`Watched::apply`] did with the contents.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ApplyOutcome {
    /// The contents mean the same as the value in use.
    Unchanged,
    /// The contents are in use now. The text describes the change, for the log.
    Changed(String),
}

/// Reads a file of at most [`MAX_FILE_BYTES`] bytes.
///
/// # Errors
/// A message that starts with the path.
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

/// Checks the files every `interval`, and whenever `demands` changes, until `stop` is cancelled.
pub(crate) async fn watch(
    watched: Arc<dyn Watched>,
    metrics: Arc<Metrics>,
    interval: Duration,
    mut demands: Receiver<()>,
    stop: CancellationToken,
) {
    if watched.paths().is_empty() {
        return;
    }
    let mut watcher = Watcher::new(watched, metrics);
    loop {
        let trigger = tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = demands.changed() => Trigger::Demanded,
            () = tokio::time::sleep(interval) => Trigger::Regular,
        };
        let check = move || {
            watcher.check(trigger);
            watcher
        };
        let Ok(checked) = blocking::run("checking files", check).await else {
            tracing::error!("the file watcher panicked; files are no longer watched");
            return;
        };
        watcher = checked;
    }
}

/// The reason for a check of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trigger {
    /// The interval has elapsed.
    Regular,
    /// The operator asked for the check (SIGHUP), so the result is always logged.
    Demanded,
}

/// Hash of the contents; `None` if they could not be read.
type Seen = Option<[u8; 32]>;

struct Watcher {
    watched: Arc<dyn Watched>,
    metrics: Arc<Metrics>,
    /// Hash of the contents that were applied last.
    applied: Option<[u8; 32]>,
    /// Hash of the contents that the last check saw.
    seen: Seen,
    /// The failure that was logged last, and the contents that caused it. Both are stored so that the same failure of
    /// the same contents is logged only once.
    failure: Option<(String, Seen)>,
}

impl Watcher {
    fn new(watched: Arc<dyn Watched>, metrics: Arc<Metrics>) -> Self {
        Self { watched, metrics, applied: None, seen: None, failure: None }
    }

    fn check(&mut self, trigger: Trigger) {
        let name = self.watched.name();
        let is_news = |failure: &Option<_>| trigger == Trigger::Demanded || failure.is_some();
        match self.read_and_apply(trigger) {
            Ok(None) => {}
            Ok(Some(ApplyOutcome::Unchanged)) if !is_news(&self.failure) => {}
            Ok(Some(outcome)) => {
                self.failure = None;
                let what = match outcome {
                    ApplyOutcome::Unchanged => "unchanged".to_owned(),
                    ApplyOutcome::Changed(what) => what,
                };
                self.count("ok");
                tracing::info!(files = name, "{name} reloaded: {what}");
            }
            Err(reason) => {
                let failure = Some((reason, self.seen));
                if trigger == Trigger::Regular && self.failure == failure {
                    return;
                }
                self.count("failed");
                let reason = failure.as_ref().map(|(reason, _)| reason);
                let advice = self.watched.advice();
                tracing::warn!(files = name, reason, "cannot load new {name}; {advice}");
                self.failure = failure;
            }
        }
    }

    /// Reads the files. Applies their contents if the last check saw the same contents, or if the operator asked for
    /// this check. Otherwise returns `None`.
    fn read_and_apply(&mut self, trigger: Trigger) -> Result<Option<ApplyOutcome>, String> {
        // Leave `seen` empty until the files have been read: a check that cannot read them must not count as one of the
        // two successive checks that have to see the same contents.
        let before = self.seen.take();
        let paths: Vec<PathBuf> = self.watched.paths().into_iter().map(Path::to_owned).collect();
        let contents: Vec<Vec<u8>> =
            paths.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
        let mut hash = Sha256::new();
        for content in &contents {
            hash.update((content.len() as u64).to_le_bytes());
            hash.update(content);
        }
        let digest: [u8; 32] = hash.finalize().into();
        self.seen = Some(digest);
        if self.applied == Some(digest) {
            return Ok(Some(ApplyOutcome::Unchanged));
        }
        if trigger == Trigger::Regular && before != Some(digest) {
            return Ok(None);
        }
        let outcome = self.watched.apply(&contents)?;
        self.applied = Some(digest);
        Ok(Some(outcome))
    }

    fn count(&self, result: &str) {
        self.metrics.file_reloads_total.with_label_values(&[self.watched.name(), result]).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A value that accepts all contents except those that begin with "bad".
    struct WatchedText {
        path: PathBuf,
        applied: Mutex<String>,
    }

    impl Watched for WatchedText {
        fn name(&self) -> &'static str {
            "keys"
        }

        fn advice(&self) -> &'static str {
            "the old text stays"
        }

        fn paths(&self) -> Vec<&Path> {
            vec![&self.path]
        }

        fn apply(&self, contents: &[Vec<u8>]) -> Result<ApplyOutcome, String> {
            let text = String::from_utf8(contents[0].clone()).unwrap();
            if text.starts_with("bad") {
                return Err("it is bad".to_owned());
            }
            let mut applied = self.applied.lock().unwrap();
            if *applied == text {
                return Ok(ApplyOutcome::Unchanged);
            }
            applied.clone_from(&text);
            Ok(ApplyOutcome::Changed(text))
        }
    }

    /// A watcher and its file. The file contains "one", and that content is already in use.
    struct TestWatcher {
        _directory: tempfile::TempDir,
        path: PathBuf,
        text: Arc<WatchedText>,
        metrics: Arc<Metrics>,
        watcher: Watcher,
    }

    impl TestWatcher {
        fn start() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("file");
            std::fs::write(&path, "one").unwrap();
            let text =
                Arc::new(WatchedText { path: path.clone(), applied: Mutex::new("one".to_owned()) });
            let metrics = Arc::new(Metrics::try_new().unwrap());
            let watcher = Watcher::new(text.clone(), Arc::clone(&metrics));
            Self { _directory: directory, path, text, metrics, watcher }
        }

        fn write(&self, content: &str) {
            std::fs::write(&self.path, content).unwrap();
        }

        /// Runs one more check. Returns the content in use, and the numbers of successful and failed reloads.
        fn check(&mut self) -> (String, u64, u64) {
            self.check_because(Trigger::Regular)
        }

        fn check_because(&mut self, trigger: Trigger) -> (String, u64, u64) {
            self.watcher.check(trigger);
            let reloads =
                |result| self.metrics.file_reloads_total.with_label_values(&["keys", result]);
            (
                self.text.applied.lock().unwrap().clone(),
                reloads("ok").get(),
                reloads("failed").get(),
            )
        }
    }

    fn state(text: &str, ok: u64, failed: u64) -> (String, u64, u64) {
        (text.to_owned(), ok, failed)
    }

    #[test]
    fn changes_are_taken_and_what_cannot_be_used_is_counted_once_and_changes_nothing() {
        let mut rig = TestWatcher::start();
        assert_eq!([rig.check(), rig.check()], [state("one", 0, 0), state("one", 0, 0)]);
        // The new content has the same size as the old content, so only a comparison of the contents can detect the
        // change.
        rig.write("two");
        assert_eq!([rig.check(), rig.check()], [state("one", 0, 0), state("two", 1, 0)]);
        assert_eq!(rig.check(), state("two", 1, 0));
        rig.write("bad");
        assert_eq!([rig.check(), rig.check()], [state("two", 1, 0), state("two", 1, 1)]);
        assert_eq!(rig.check(), state("two", 1, 1));
        std::fs::remove_file(&rig.path).unwrap();
        assert_eq!(rig.check(), state("two", 1, 2));
        rig.write(&"x".repeat(1 + (1 << 20)));
        assert_eq!(rig.check(), state("two", 1, 3));
        rig.write("two");
        assert_eq!(rig.check(), state("two", 2, 3));
    }

    #[test]
    fn each_change_that_cannot_be_used_is_counted_even_when_the_reason_is_the_same() {
        let mut rig = TestWatcher::start();
        for (failed, content) in (1..).zip(["bad", "bad ", "bad"]) {
            rig.write(content);
            assert_eq!(rig.check(), state("one", 0, failed - 1));
            for _ in 0..3 {
                assert_eq!(rig.check(), state("one", 0, failed));
            }
        }
    }

    #[test]
    fn on_demand_one_look_is_enough_and_every_failure_is_told() {
        let mut rig = TestWatcher::start();
        rig.write("two");
        assert_eq!(rig.check_because(Trigger::Demanded), state("two", 1, 0));
        rig.write("bad");
        assert_eq!(rig.check_because(Trigger::Demanded), state("two", 1, 1));
        assert_eq!(rig.check(), state("two", 1, 1));
        assert_eq!(rig.check_because(Trigger::Demanded), state("two", 1, 2));
        rig.write("two");
        assert_eq!(rig.check_because(Trigger::Demanded), state("two", 2, 2));
    }

    #[tokio::test]
    async fn a_demand_does_not_wait_for_the_time_of_the_next_look() {
        let rig = TestWatcher::start();
        rig.write("two");
        let (demand, demands) = tokio::sync::watch::channel(());
        let stop = CancellationToken::new();
        let never = Duration::from_secs(24 * 3600);
        let (text, metrics) = (rig.text.clone(), Arc::clone(&rig.metrics));
        let watching = tokio::spawn(watch(text, metrics, never, demands, stop.clone()));
        demand.send_replace(());
        while *rig.text.applied.lock().unwrap() != "two" {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        watching.await.unwrap();
    }

    #[test]
    fn a_file_that_is_being_written_is_taken_when_two_looks_saw_the_same_and_not_before() {
        let mut rig = TestWatcher::start();
        for half in ["t", "tw", "bad", "two an", ""] {
            rig.write(half);
            assert_eq!(rig.check(), state("one", 0, 0), "{half:?}");
        }
        rig.write("two and three");
        assert_eq!(rig.check(), state("one", 0, 0));
        // A check that cannot read the file does not count as one of the two successive checks that have to see the
        // same contents.
        std::fs::remove_file(&rig.path).unwrap();
        assert_eq!(rig.check(), state("one", 0, 1));
        rig.write("two and three");
        assert_eq!(rig.check(), state("one", 0, 1));
        assert_eq!(rig.check(), state("two and three", 1, 1));
    }
}
