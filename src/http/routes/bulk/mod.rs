//! `POST /bulk`: many inputs that may wait, one JSON object per line. Answers are sent as they are ready. Nothing is
//! rejected because the server is busy: the server reads on only while it has room, and runs bulk work behind interactive
//! calls. Requests take turns if there are too many (`state::bulk_requests`).
//!
//! - `lines`: reads the lines. `line`: one line, from its bytes to its answer.
//! - `answers`: the answers that wait to be sent.

mod answers;
mod line;
mod lines;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Request as HttpRequest, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use tokio::task::JoinSet;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::answers::{AnswerReceiver, AnswerSender};
use self::line::{Answered, Lines, Work};
use self::lines::{LOOK, LineReader, Read};
use crate::engine::{Admission, EngineError, EngineHandle};
use crate::fairness::ClientId;
use crate::http::context::{BulkConnection, BulkGuard, RequestContext};
use crate::http::error::{ApiError, Code};
use crate::http::extract::head;
use crate::http::inference::reply;
use crate::http::middleware::load_shedding::connections_full;
use crate::http::openapi::BulkProblems;
use crate::http::state::HttpState;
use crate::http::state::bulk_requests::BulkTurn;
use crate::telemetry::metrics::GaugeGuard;

/// Returns the route.
pub(crate) fn routes() -> OpenApiRouter<HttpState> {
    OpenApiRouter::default().routes(routes!(run_bulk))
}

/// The last line of the answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BulkSummary {
    /// Number of lines that were answered.
    done: u64,
    /// Number of these whose answer is an error.
    failed: u64,
    /// Why the server read no further lines; absent if it read all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = crate::http::error::Problem, required = false)]
    error: Option<crate::http::error::Problem>,
}

/// Run many inputs that may wait
///
/// Each line of the body is a JSON object with the fields of a single call and `task` (`caption`, `vqa`, `similarity`,
/// `embeddings` or `classify`), and optionally `id` (a string or number, returned with the answer) and `deadline_ms`.
/// The answer has one line for each line, in the order in which they are ready: `{"id", "status", "result"}` or `{"id",
/// "status", "error"}`, with `line` instead of `id` if there is none. The last line is `{"done", "failed"}`. Lines are
/// read only while there is room, and run behind other requests, so none is rejected because the server is busy.
#[utoipa::path(
    post,
    path = "/bulk",
    operation_id = "run_bulk",
    tag = "bulk",
    request_body(
        content = String, content_type = "application/x-ndjson", description = "One JSON object per line.",
        example = json!("{\"id\": \"1\", \"task\": \"embeddings\", \"text\": \"two cats\"}\n"),
    ),
    responses(
        (status = 200, description = "One result line for each input line, in the order in which they are ready, then a `BulkSummary` line.", content_type = "application/x-ndjson", body = String),
        BulkProblems,
    ),
)]
pub(crate) async fn run_bulk(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    let (parts, body) = http.into_parts();
    head::check_lines(&parts)?;
    let settings = state.settings().bulk.clone();
    let deadline = head::deadline(&parts.headers, context.arrived, settings.deadline)?;
    let engine = state.services()?.engine.clone();
    let client = state.access().client_id(&parts.extensions, &context);
    let admission = engine.admit_bulk(client, deadline)?;
    let connection = parts.extensions.get::<BulkConnection>().cloned().unwrap_or_default();
    let body = lines::ask_for(body, &parts.headers).await;
    let (sender, receiver) = answers::queue(&state.metrics().bulk_held_bytes);
    context.note(|notes| notes.streaming = true);
    let lines =
        Lines { deadline: deadline.saturating_duration_since(context.arrived), state, context };
    let bulk = Bulk {
        sink: Sink { lines, answers: sender.clone(), counts: Arc::default() },
        engine,
        client,
        connection: connection.clone().begin(settings.idle_timeout),
    };
    tokio::spawn(async move {
        // Ends the response even if the work panics.
        let _end = EndOfAnswers(sender);
        bulk.run(body, (admission, connection)).await;
    });
    Ok(response(receiver))
}

/// Ends the queue of answers when it is dropped.
struct EndOfAnswers(AnswerSender);

impl Drop for EndOfAnswers {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Number of lines that were answered, and how many of these failed.
#[derive(Default)]
struct Counts {
    done: AtomicU64,
    failed: AtomicU64,
}

/// Time that a client has to read its answers when its turn is over.
const UNREAD_ANSWERS: Duration = Duration::from_secs(1);

/// A bulk request in progress.
struct Bulk {
    sink: Sink,
    engine: EngineHandle,
    client: ClientId,
    connection: BulkGuard,
}

impl Bulk {
    /// Reads and runs all lines, and sends their answers, unless the client leaves.
    async fn run(self, body: Body, admission: (Admission, BulkConnection)) {
        let state = self.sink.lines.state.clone();
        let context = self.sink.lines.context.clone();
        let mut reader = LineReader::new(body, state.settings(), &context, admission);
        let mut turn = None;
        let broken = tokio::select! {
            biased;
            // Dropping the work cancels it in the engine.
            () = self.sink.answers.closed() => return,
            broken = self.serve(&mut reader, &mut turn) => broken,
        };
        self.push_summary(broken.as_ref());
        if broken.is_some() {
            // A client that sends everything before it reads must come to the end of its lines.
            reader.discard().await;
        }
        self.sink.answers.end();
        drop(reader);
        self.keep_until_read(turn).await;
    }

    /// Keeps the turn until the client has read its answers, because they take memory. If it does not for too long, and
    /// others wait, its response is cut off.
    async fn keep_until_read(&self, turn: Option<BulkTurn>) {
        loop {
            tokio::select! {
                () = self.sink.answers.room(1) => return,
                () = self.sink.answers.closed() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            if turn.as_ref().is_some_and(|turn| turn.is_over() && self.is_too_old(turn)) {
                return self.sink.answers.cut_off();
            }
        }
    }

    /// True if a client that does not read its answers must not keep its turn any longer.
    fn is_too_old(&self, turn: &BulkTurn) -> bool {
        turn.age() >= self.sink.lines.state.settings().bulk.idle_timeout
    }

    /// Reads and runs all lines. Returns the error that ended this early.
    async fn serve(
        &self,
        reader: &mut LineReader<'_>,
        turn: &mut Option<BulkTurn>,
    ) -> Option<ApiError> {
        let settings = self.sink.lines.state.settings();
        let mut tasks = JoinSet::new();
        // Set when the engine drains or has ended: what has been read is answered, and nothing more is read.
        let mut ending: Option<EngineError> = None;
        let most = settings.bulk.max_held_bytes;
        let broken = loop {
            while tasks.len() >= settings.bulk.max_lines_in_flight {
                tasks.join_next().await;
            }
            while tasks.try_join_next().is_some() {}
            self.connection.set_working(!tasks.is_empty());
            let read = if ending.is_some() {
                let has_room = turn.is_some() && self.sink.answers.has_room(most);
                let line = if has_room { reader.buffered() } else { None };
                line.map_or(Read::End, Read::Line)
            } else {
                tokio::select! {
                    biased;
                    () = self.engine.draining() => {
                        ending = Some(EngineError::ShuttingDown);
                        continue;
                    }
                    error = self.engine.closed() => {
                        ending = Some(error);
                        continue;
                    }
                    read = self.next(reader, &mut tasks, turn) => read,
                }
            };
            match read {
                Read::Line(line) => {
                    self.connection.set_working(true);
                    match self.sink.lines.try_prepare(line, reader.admission()).await {
                        Ok(work) => self.spawn(&mut tasks, work),
                        Err(answered) => self.sink.push(answered),
                    }
                    // Lines that fail at once need no wait, but must not keep this thread from others.
                    tokio::task::yield_now().await;
                }
                Read::End => break ending.map(ApiError::from),
                Read::Broken(error) => break Some(error),
            }
        };
        while tasks.join_next().await.is_some() {}
        self.connection.set_working(false);
        broken
    }

    /// Waits for the request's turn and until the client has read enough answers, then reads the next line.
    async fn next(
        &self,
        reader: &mut LineReader<'_>,
        tasks: &mut JoinSet<()>,
        turn: &mut Option<BulkTurn>,
    ) -> Read {
        let most = self.sink.lines.state.settings().bulk.max_held_bytes;
        loop {
            if turn.as_ref().is_none_or(BulkTurn::is_over)
                && let Err(error) = self.wait_for_turn(reader, tasks, turn).await
            {
                return Read::Broken(error);
            }
            let held = turn.as_ref();
            let is_over = || held.is_some_and(BulkTurn::is_over);
            let read = async {
                while tokio::time::timeout(LOOK, self.sink.answers.room(most)).await.is_err() {
                    if is_over() {
                        return None;
                    }
                }
                reader.next(is_over).await
            };
            tokio::pin!(read);
            let read = loop {
                tokio::select! {
                    biased;
                    read = &mut read => break read,
                    Some(_) = tasks.join_next() => self.connection.set_working(!tasks.is_empty()),
                }
            };
            if let Some(read) = read {
                return read;
            }
        }
    }

    /// Ends the turn of this request, if it has one, and waits for the next. A request that holds much keeps its turn: a
    /// long line that has not arrived completely, or answers that the client does not read. If it does not read them for
    /// too long, it is told to continue in another request.
    ///
    /// # Errors
    /// `overloaded`, also if the connection must close to make room for another.
    async fn wait_for_turn(
        &self,
        reader: &mut LineReader<'_>,
        tasks: &mut JoinSet<()>,
        turn: &mut Option<BulkTurn>,
    ) -> Result<(), ApiError> {
        if let Some(held) = turn {
            while tasks.join_next().await.is_some() {}
            self.connection.set_working(false);
            let all_read = self.sink.answers.room(1);
            let unread = tokio::time::timeout(UNREAD_ANSWERS, all_read).await.is_err();
            if unread && self.is_too_old(held) {
                let detail = "other requests wait (bulk.max_requests); read the answers while you send, and send the \
                              lines without an answer in another request";
                return Err(ApiError::new(Code::Overloaded, detail));
            }
            if unread || !reader.holds_little() {
                held.extend();
                return Ok(());
            }
        }
        reader.release();
        *turn = None;
        let _waiting = self.connection.wait();
        let next = self.sink.lines.state.bulk_requests().turn(self.client);
        tokio::select! {
            biased;
            next = next => *turn = Some(next),
            () = self.connection.must_close() => return Err(connections_full()),
        }
        reader.resume();
        Ok(())
    }

    fn spawn(&self, tasks: &mut JoinSet<()>, work: Work) {
        let gauge = GaugeGuard::new(&self.sink.lines.state.metrics().bulk_lines_in_flight);
        let sink = self.sink.clone();
        tasks.spawn(async move {
            let answered = work.await;
            sink.push(answered);
            drop(gauge);
        });
    }

    /// Appends the last line of the answer.
    fn push_summary(&self, error: Option<&ApiError>) {
        let Counts { done, failed } = &*self.sink.counts;
        let context = &self.sink.lines.context;
        if let Some(error) = error {
            context.note(|notes| notes.stream_error = Some(error.code));
        }
        let summary = BulkSummary {
            done: done.load(Ordering::Relaxed),
            failed: failed.load(Ordering::Relaxed),
            error: error.map(|error| error.to_problem(&context.id)),
        };
        let mut line = reply::to_bytes(&summary).unwrap_or_default();
        line.push(b'\n');
        self.sink.answers.push(line.into());
    }
}

/// What all lines of a request share: how to run a line, and where its answer goes.
#[derive(Clone)]
struct Sink {
    lines: Lines,
    answers: AnswerSender,
    counts: Arc<Counts>,
}

impl Sink {
    /// Counts an answer and queues it for the client.
    fn push(&self, Answered { bytes, failed }: Answered) {
        self.counts.done.fetch_add(1, Ordering::Relaxed);
        self.counts.failed.fetch_add(u64::from(failed.is_some()), Ordering::Relaxed);
        let code = failed.map_or("ok", crate::http::error::Code::name);
        self.lines.state.metrics().bulk_lines_total.with_label_values(&[code]).inc();
        self.answers.push(bytes);
    }
}

/// Writes the response whose body is the queue of answers. It ends with an error if the queue is cut off, so that it does
/// not look complete.
fn response(receiver: AnswerReceiver) -> Response {
    let lines = stream::unfold(receiver, |mut receiver| async {
        let line: io::Result<Bytes> = receiver.next().await?;
        Some((line, receiver))
    });
    let mut response = Response::new(Body::from_stream(lines));
    let content_type = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}
