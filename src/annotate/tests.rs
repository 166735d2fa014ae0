//! Runs through a scripted service: attempts that break, and answers that name their lines by position.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    BulkService, Existing, Identity, Job, Kind, Lines, Pictures, Planned, Progress, Run, RunError,
    SendError, SidecarFormat, Summary, plan,
};

/// Answers the lines of each request by a function of the number of the attempt, from 0.
struct Scripted<F> {
    attempts: AtomicUsize,
    answer: F,
}

impl<F> Scripted<F>
where
    F: Fn(usize, Vec<Value>) -> Result<Vec<Value>, SendError> + Send + Sync,
{
    fn new(answer: F) -> Self {
        Self { attempts: AtomicUsize::new(0), answer }
    }
}

impl<F> BulkService for Scripted<F>
where
    F: Fn(usize, Vec<Value>) -> Result<Vec<Value>, SendError> + Send + Sync,
{
    fn send(&self, lines: BoxStream<'static, Bytes>) -> BoxFuture<'_, Result<Lines, SendError>> {
        async move {
            let lines = lines.collect::<Vec<Bytes>>().await.concat();
            let lines = serde_json::Deserializer::from_slice(&lines).into_iter();
            let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
            let answers = (self.answer)(attempt, lines.map(Result::unwrap).collect())?;
            let answers: Vec<_> =
                answers.iter().map(|answer| Ok(Bytes::from(format!("{answer}\n")))).collect();
            Ok(stream::iter(answers).boxed())
        }
        .boxed()
    }
}

struct Silent;

impl Progress for Silent {
    fn found(&self, _: u64, _: bool) {}
    fn advanced(&self, _: &Summary) {}
    fn warn(&self, _: &str) {}
}

fn folder(names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in names {
        fs::write(folder.path().join(name), name).unwrap();
    }
    folder
}

fn job(folder: &Path) -> Job {
    let paths = vec![folder.to_str().unwrap().to_owned()];
    Job {
        kind: Kind::Caption,
        pictures: Arc::new(Pictures::try_new(paths, Vec::new(), &[], &[]).unwrap()),
        fields: Map::new(),
        table: Some(folder.join("t.jsonl")),
        sidecars: Vec::new(),
        npy: None,
        existing: Existing::Refuse,
        identity: Identity::SizeAndTime,
        affixes: (String::new(), String::new()),
        language: None,
        least_match: None,
        max_image_bytes: 1000,
    }
}

async fn run(job: Job, service: &dyn BulkService) -> Result<Summary, RunError> {
    let run = Run::open(job).unwrap();
    run.through(service, Arc::new(Silent), CancellationToken::new()).await
}

fn broken() -> SendError {
    SendError { message: "broken".to_owned(), retry_after: Some(Duration::ZERO) }
}

/// Answers each line by its position, with its picture as caption.
fn answers_by_position(lines: &[Value]) -> Vec<Value> {
    let answer = |(at, line): (usize, &Value)| json!({"line": at + 1, "result": {"captions": [{"text": line["image"]}]}});
    let answers = lines.iter().enumerate().map(answer);
    answers.chain([json!({"done": lines.len(), "failed": 0})]).collect()
}

#[tokio::test(start_paused = true)]
async fn a_picture_that_is_gone_at_the_second_attempt_shifts_no_answer() {
    let folder = folder(&["a.png", "b.png", "c.png"]);
    let gone = folder.path().join("a.png");
    let service = Scripted::new(|attempt, lines: Vec<Value>| {
        if attempt == 0 {
            assert_eq!(lines.len(), 3);
            fs::remove_file(&gone).unwrap();
            return Err(broken());
        }
        Ok(answers_by_position(&lines))
    });
    let summary = run(job(folder.path()), &service).await.unwrap();
    assert_eq!((summary.done, summary.failed), (2, 1));
    let table = fs::read_to_string(folder.path().join("t.jsonl")).unwrap();
    for row in table.lines() {
        let row: Value = serde_json::from_str(row).unwrap();
        let name = Path::new(row["path"].as_str().unwrap()).file_name().unwrap().to_str().unwrap();
        if name == "a.png" {
            assert_eq!(row["error"]["code"], "unreadable");
        } else {
            // The content of each file is its name.
            let content = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, name);
            assert_eq!(row["captions"][0]["text"], content);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_is_given_up_after_a_minute() {
    let folder = folder(&["a.png"]);
    let service = Scripted::new(|_, _| Err(broken()));
    let began = Instant::now();
    let error = run(job(folder.path()), &service).await.unwrap_err();
    assert!(matches!(error, RunError::Service(_)), "{error}");
    // The sum of the pauses, rounded up to milliseconds by the clock: docs/files.md says about a minute.
    assert_eq!(began.elapsed().as_secs(), 61);
    assert_eq!(service.attempts.load(Ordering::Relaxed), 7);
}

#[tokio::test(start_paused = true)]
async fn an_empty_file_beside_a_picture_counts_as_missing() {
    let folder = folder(&["a.png", "b.png"]);
    for (name, content) in [("a.txt", ""), ("b.txt", "by hand"), ("a.png.xmp", "")] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let sidecars = vec![SidecarFormat::Txt, SidecarFormat::Xmp];
    let job = Job { table: None, sidecars, existing: Existing::Resume, ..job(folder.path()) };
    let service = Scripted::new(|_, lines: Vec<Value>| Ok(answers_by_position(&lines)));
    let summary = run(job, &service).await.unwrap();
    assert_eq!((summary.done, summary.failed), (2, 0));
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert!(!read("a.txt").is_empty() && read("a.png.xmp").contains("dc:description"));
    assert_eq!(read("b.txt"), "by hand");
}

#[tokio::test(start_paused = true)]
async fn a_full_name_never_takes_the_file_of_another_picture() {
    let folder = folder(&["a.jpg", "a.png", "a.jpg.png"]);
    let job = Job { table: None, sidecars: vec![SidecarFormat::Txt], ..job(folder.path()) };
    let service = Scripted::new(|_, lines: Vec<Value>| Ok(answers_by_position(&lines)));
    let summary = run(job, &service).await.unwrap();
    assert_eq!((summary.done, summary.failed), (3, 0));
    for name in ["a.jpg.txt", "a.png.txt", "a.jpg.png.txt"] {
        assert!(folder.path().join(name).exists(), "{name}");
    }
}

#[test]
fn a_plan_changes_nothing_and_leaves_out_what_is_done() {
    let folder = folder(&["a.png", "b.png", "large.png"]);
    fs::write(folder.path().join("large.png"), vec![0; 2000]).unwrap();
    let planned = |job: &Job| {
        let mut all = Vec::new();
        let summary = plan(job, &mut |one| all.push(one)).unwrap();
        (all, (summary.done, summary.failed, summary.skipped))
    };
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (all, counts) = planned(&job(folder.path()));
    assert_eq!(counts, (2, 1, 0));
    assert_eq!(all[..2], ["a.png", "b.png"].map(|name| Planned::Picture(path(name))));
    let Planned::Failed(reason) = &all[2] else { panic!("{all:?}") };
    assert!(reason.contains("larger than 1000 bytes"), "{reason}");
    assert!(!folder.path().join("t.jsonl").exists());
    // A row of one, a row with an error of another, and a torn end.
    let a = super::reader::facts_of(Path::new(&path("a.png")), Identity::SizeAndTime).unwrap();
    let done = json!({
        "path": path("a.png"), "size": a.size, "modified": a.modified, "captions": [],
    });
    let failed = json!({"path": path("b.png"), "error": {"code": "c"}});
    let table = format!("{done}\n{failed}\n{{\"path\":");
    fs::write(folder.path().join("t.jsonl"), &table).unwrap();
    let resumed = Job { existing: Existing::Resume, ..job(folder.path()) };
    let (all, counts) = planned(&resumed);
    assert_eq!((&all[0], counts), (&Planned::Picture(path("b.png")), (1, 1, 1)));
    assert_eq!(fs::read_to_string(folder.path().join("t.jsonl")).unwrap(), table);
    // What a run refuses, a plan refuses.
    assert!(plan(&job(folder.path()), &mut |_| {}).is_err());
    let elsewhere = Some(PathBuf::from("/no/such/folder/t.jsonl"));
    assert!(plan(&Job { table: elsewhere, ..job(folder.path()) }, &mut |_| {}).is_err());
}

#[test]
fn a_run_without_files_cannot_be_resumed() {
    let folder = folder(&[]);
    assert!(job(folder.path()).can_be_resumed());
    let printed = Job { table: Some("-".into()), ..job(folder.path()) };
    assert!(!printed.can_be_resumed());
    assert!(Job { npy: Some("v.npy".into()), ..printed }.can_be_resumed());
}
