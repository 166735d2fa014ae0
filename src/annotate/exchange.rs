//! Sends lines and receives answers. If a request ends early (the server stops, the connection breaks), the pictures
//! without an answer are read again and sent in the next one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::outputs::Outputs;
use super::reader::{LineMaker, Read, Reader};
use super::row::{self, Item, Outcome, problem};
use super::service::{BulkService, SendError};
use super::{Progress, RunError, Summary};

/// Maximum number of pictures that are sent and not answered: enough to keep the models busy, and few enough that slow
/// models answer the last before its deadline.
const UNANSWERED: usize = 64;

/// Number of requests in a row without any answer after which the run ends. Between them are pauses of 1, 2, 4, 8, 16 and
/// 30 s: a minute, in which a server can restart and load its models.
const ATTEMPTS: u32 = 7;
/// Bounds of the pause before the next attempt; it doubles before each.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Time to the beginning of the answer. A server begins it at once.
const HEAD: Duration = Duration::from_secs(120);

/// Codes of errors that every picture would get.
const OF_MODEL: [&str; 2] = ["model_not_found", "task_not_loaded"];

/// Runs the pictures of a reader through a service.
pub(super) struct Exchange<'a> {
    service: &'a dyn BulkService,
    progress: &'a dyn Progress,
    stop: CancellationToken,
    summary: Summary,
}

/// What the body of the request and the receiver of its answers share.
struct Shared {
    state: Mutex<State>,
    pictures: tokio::sync::Mutex<mpsc::Receiver<Read>>,
    lines: LineMaker,
    /// Notified when an answer has arrived.
    answered: Notify,
    /// Pictures that need no line.
    finished: mpsc::Sender<Finished>,
}

/// A picture that is not sent.
enum Finished {
    Failed(Item, Map<String, Value>),
    Skipped,
}

#[derive(Default)]
struct State {
    /// The pictures that were sent and not answered, by the number of their line.
    unanswered: HashMap<u64, Item>,
    /// Pictures that must be sent again.
    again: VecDeque<Item>,
    /// Number of lines of the current request.
    lines: u64,
    /// True if all pictures have been taken from the reader.
    all_read: bool,
    /// True if the reader has ended before the last picture.
    reader_failed: bool,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(
        service: &'a dyn BulkService,
        progress: &'a dyn Progress,
        stop: CancellationToken,
    ) -> Self {
        Self { service, progress, stop, summary: Summary::default() }
    }

    /// Sends all pictures and writes their answers.
    ///
    /// # Errors
    /// If an output cannot be written, the service fails for good, or every picture would fail.
    pub(super) async fn run(
        mut self,
        reader: Reader,
        outputs: &mut Outputs,
    ) -> Result<Summary, RunError> {
        let (finished, mut not_sent) = mpsc::channel(UNANSWERED);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            pictures: tokio::sync::Mutex::new(reader.pictures),
            lines: reader.lines,
            answered: Notify::new(),
            finished,
        });
        let (mut failures, mut pause) = (0, PAUSES.0);
        loop {
            let before = self.summary;
            let ended = self.request(&shared, outputs, &mut not_sent).await?;
            if self.stop.is_cancelled() {
                self.summary.interrupted = true;
                return Ok(self.summary);
            }
            if shared.state().reader_failed {
                return Err(RunError::Reader);
            }
            let rest = shared.state().begin_again();
            let error = match ended {
                Err(error) => error,
                Ok(()) if rest == 0 => return Ok(self.summary),
                Ok(()) => broken("the server left lines without an answer"),
            };
            (failures, pause) =
                if self.summary == before { (failures + 1, pause * 2) } else { (0, PAUSES.0) };
            let Some(wait) = error.retry_after.filter(|_| failures < ATTEMPTS) else {
                return Err(error.into());
            };
            let wait = wait.max(pause).min(PAUSES.1);
            self.progress.warn(&format!("{error}; trying again in {:.1} s", wait.as_secs_f64()));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Makes one request. The inner error says why it ended early.
    async fn request(
        &mut self,
        shared: &Arc<Shared>,
        outputs: &mut Outputs,
        not_sent: &mut mpsc::Receiver<Finished>,
    ) -> Result<Result<(), SendError>, RunError> {
        let lines = stream::unfold(Arc::clone(shared), |shared| async {
            let line = shared.next_line().await?;
            Some((stream::iter(line), shared))
        });
        let sending = self.service.send(lines.flatten().boxed());
        tokio::pin!(sending);
        let began = tokio::time::Instant::now();
        let answers = loop {
            tokio::select! {
                answers = &mut sending => break answers,
                () = self.stop.cancelled() => return Ok(Ok(())),
                Some(finished) = not_sent.recv() => self.note(outputs, finished)?,
                () = tokio::time::sleep_until(began + HEAD) => {
                    let message = "no answer has begun; if a proxy stands between, let it pass requests on while they \
                                   arrive (nginx: proxy_request_buffering off)";
                    return Ok(Err(SendError { message: message.to_owned(), retry_after: None }));
                }
            }
        };
        let mut answers = match answers {
            Ok(answers) => answers,
            Err(error) => return Ok(Err(error)),
        };
        let mut buffer = BytesMut::new();
        loop {
            let piece = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(Ok(())),
                Some(finished) = not_sent.recv() => {
                    self.note(outputs, finished)?;
                    continue;
                }
                piece = answers.next() => piece,
            };
            match piece {
                None => return Ok(Err(broken("the answer ended early"))),
                Some(Err(error)) => return Ok(Err(broken(error))),
                Some(Ok(piece)) => buffer.extend_from_slice(&piece),
            }
            while let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
                let line = buffer.split_to(end + 1);
                let Ok(Value::Object(line)) = serde_json::from_slice(&line) else {
                    let message = "the answer is not that of a blip-server".to_owned();
                    return Ok(Err(SendError { message, retry_after: None }));
                };
                if line.contains_key("done") {
                    let error = line.get("error").and_then(Value::as_object);
                    while let Ok(finished) = not_sent.try_recv() {
                        self.note(outputs, finished)?;
                    }
                    return Ok(error.map_or(Ok(()), |error| Err(broken(row::detail(error)))));
                }
                self.answer(shared, outputs, line)?;
            }
        }
    }

    /// Notes a picture that needed no line.
    fn note(&mut self, outputs: &mut Outputs, finished: Finished) -> Result<(), RunError> {
        match finished {
            Finished::Skipped => self.summary.skipped += 1,
            Finished::Failed(item, problem) => self.write(outputs, &item, Err(problem))?,
        }
        self.progress.advanced(&self.summary);
        Ok(())
    }

    /// Writes the answer of a line.
    fn answer(
        &mut self,
        shared: &Shared,
        outputs: &mut Outputs,
        mut line: Map<String, Value>,
    ) -> Result<(), RunError> {
        let number = line.get("id").or(line.get("line")).and_then(Value::as_u64);
        let item = number.and_then(|number| shared.state().unanswered.remove(&number));
        shared.answered.notify_one();
        let Some(item) = item else { return Ok(()) };
        let mut object = |name: &str| match line.remove(name) {
            Some(Value::Object(object)) => Some(object),
            _ => None,
        };
        let outcome = match (object("result"), object("error")) {
            (Some(answer), _) => Ok(answer),
            (None, error) => Err(error.unwrap_or_else(|| problem("internal_error", "no result"))),
        };
        if let Err(error) = &outcome
            && self.summary.done == 0
            && is_of_all(&shared.lines, &item, error)
        {
            return Err(RunError::Parameters(error.clone()));
        }
        self.write(outputs, &item, outcome)?;
        self.progress.advanced(&self.summary);
        Ok(())
    }

    fn write(
        &mut self,
        outputs: &mut Outputs,
        item: &Item,
        outcome: Outcome,
    ) -> Result<(), RunError> {
        let written = outputs.write(item, outcome)?;
        self.summary.rejected += written.rejected;
        match written.problem {
            None => self.summary.done += 1,
            Some(problem) => {
                self.summary.failed += 1;
                self.progress.warn(&format!("{}: {}", item.place.name(), row::detail(&problem)));
            }
        }
        Ok(())
    }
}

/// Returns the error of a request that ended early, after which another attempt can succeed.
fn broken(message: impl Into<String>) -> SendError {
    SendError { message: message.into(), retry_after: Some(Duration::ZERO) }
}

/// True for an error in what all pictures have in common: the model, or a parameter of the whole run.
fn is_of_all(lines: &LineMaker, item: &Item, error: &Map<String, Value>) -> bool {
    let code = error.get("code").and_then(Value::as_str).unwrap_or_default();
    let field = error.get("errors").and_then(|errors| errors.pointer("/0/field")?.as_str());
    let name = field.and_then(|field| field.split(['.', '[']).next());
    let is_shared = |name: &str| !item.fields.contains_key(name);
    (OF_MODEL.contains(&code) && is_shared("model"))
        || (code == "invalid_request"
            && name.is_some_and(|name| lines.has(name) && is_shared(name)))
}

impl Shared {
    /// Returns the pieces of the next line; `None` after the last.
    async fn next_line(&self) -> Option<[Bytes; 2]> {
        loop {
            let answered = self.answered.notified();
            if self.state().unanswered.len() < UNANSWERED {
                break;
            }
            answered.await;
        }
        loop {
            // Room for a picture that needs no line comes first: nothing may wait while a picture is taken and not noted,
            // because this future is dropped when the request ends.
            let room = self.finished.reserve().await.ok()?;
            let again = self.state().again.pop_front();
            if let Some(item) = again {
                // Noted first, so that it is not lost if the request ends here.
                let number = self.state().note(item.clone());
                let (lines, mut item) = (self.lines.clone(), item);
                let line = tokio::task::spawn_blocking(move || (lines.line(&mut item), item));
                match line.await.ok()? {
                    (Ok(line), _) => return Some(numbered(number, &line)),
                    (Err(reason), item) => {
                        self.state().take_back(number);
                        room.send(Finished::Failed(item, problem("unreadable", reason)));
                        continue;
                    }
                }
            }
            if self.state().all_read {
                return None;
            }
            let read = self.pictures.lock().await.recv().await;
            match read {
                Some(Read::End) => {
                    self.state().all_read = true;
                    return None;
                }
                None => {
                    self.state().reader_failed = true;
                    return None;
                }
                Some(Read::Picture(item, line)) => {
                    let number = self.state().note(item);
                    return Some(numbered(number, &line));
                }
                Some(Read::Failed(item, problem)) => {
                    room.send(Finished::Failed(item, problem));
                }
                Some(Read::Skipped) => room.send(Finished::Skipped),
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds this lock, so a poisoned lock cannot occur.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Notes a picture as sent. Returns the number of its line.
    fn note(&mut self, item: Item) -> u64 {
        self.lines += 1;
        self.unanswered.insert(self.lines, item);
        self.lines
    }

    /// Forgets the picture that was noted last, whose line is not sent. Its number is that of the next line, because answers
    /// may name a line by its position in the request.
    fn take_back(&mut self, number: u64) {
        self.unanswered.remove(&number);
        // Lines are made one after the other, so no later number is in use.
        self.lines = number - 1;
    }

    /// Prepares the next request. Returns the number of pictures that are left, not counting those that the reader has;
    /// at least one if it has any.
    fn begin_again(&mut self) -> usize {
        let mut left: Vec<_> = self.unanswered.drain().collect();
        left.sort_unstable_by_key(|(number, _)| *number);
        self.again.extend(left.into_iter().map(|(_, item)| item));
        self.lines = 0;
        self.again.len() + usize::from(!self.all_read)
    }
}

/// Puts the number of a line in front of its fields.
fn numbered(number: u64, line: &Bytes) -> [Bytes; 2] {
    [format!("{{\"id\":{number},").into(), line.slice(1..)]
}
