//! `POST /bulk`: many inputs that may wait, one JSON object per line. Answers are sent as they are ready. Nothing is
//! rejected because the server is busy: the server reads on only while it has room, and runs bulk work behind interactive
//! calls.
//!
//! - `lines`: reads the lines. `line`: one line, from its bytes to its answer.
//! - `answers`: the answers that wait to be sent.

mod answers;
mod line;
mod lines;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
use self::lines::{LineReader, Read};
use crate::engine::{Admission, EngineHandle};
use crate::http::context::{BulkConnection, BulkGuard, RequestContext};
use crate::http::error::ApiError;
use crate::http::extract::head;
use crate::http::inference::reply;
use crate::http::openapi::InferenceProblems;
use crate::http::state::HttpState;
use crate::http::state::bulk_requests::BulkRequest;
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
/// `embeddings` or `classify`), and optionally `id` (a string or number, returned with the answer) and `deadline_ms`. The
/// answer has a line per line, in the order in which they are ready: `{"id", "status", "result"}` or `{"id", "status",
/// "error"}`, with `line` instead of `id` if there is none. The last line is `{"done", "failed"}`. Lines are read only
/// while there is room, and run behind other requests, so none is rejected because the server is busy.
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
        (status = 200, description = "A line per line, then `BulkSummary`.", content_type = "application/x-ndjson", body = String),
        InferenceProblems,
    ),
)]
pub(crate) async fn run_bulk(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    let (parts, body) = http.into_parts();
    head::check_lines(&parts.headers)?;
    let settings = state.settings().bulk.clone();
    let deadline = head::deadline(&parts.headers, context.arrived, settings.deadline)?;
    let engine = state.services()?.engine.clone();
    let client = state.access().client_id(&parts.extensions, &context);
    let request = state.bulk_requests().begin(client, settings.max_requests)?;
    let admission = engine.admit_bulk(client, deadline)?;
    let connection = parts.extensions.get::<BulkConnection>().cloned().unwrap_or_default();
    let (sender, receiver) = answers::queue(&state.metrics().bulk_held_bytes);
    context.note(|notes| notes.streaming = true);
    let lines =
        Lines { deadline: deadline.saturating_duration_since(context.arrived), state, context };
    let bulk = Bulk {
        sink: Sink { lines, answers: sender.clone(), counts: Arc::default() },
        engine,
        connection: connection.clone().begin(settings.idle_timeout),
    };
    tokio::spawn(async move {
        // Ends the response even if the work panics.
        let _end = EndOfAnswers(sender.clone());
        tokio::select! {
            biased;
            // Dropping the work cancels it in the engine.
            () = sender.closed() => {}
            () = bulk.run(body, (admission, connection)) => {}
        }
    });
    Ok(response(receiver, request))
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

/// A bulk request in progress.
struct Bulk {
    sink: Sink,
    engine: EngineHandle,
    connection: BulkGuard,
}

impl Bulk {
    /// Reads and runs all lines, and sends their answers.
    async fn run(self, body: Body, admission: (Admission, BulkConnection)) {
        let state = self.sink.lines.state.clone();
        let context = self.sink.lines.context.clone();
        let settings = state.settings();
        let mut reader = LineReader::new(body, settings, &context, admission);
        let mut tasks = JoinSet::new();
        let mut draining = false;
        let broken = loop {
            while tasks.len() >= settings.bulk.max_lines_in_flight {
                tasks.join_next().await;
            }
            while tasks.try_join_next().is_some() {}
            self.connection.set_working(!tasks.is_empty());
            let read = if draining {
                // What has been read is answered; nothing more is read.
                reader.buffered().map_or(Read::End, Read::Line)
            } else {
                tokio::select! {
                    biased;
                    () = self.engine.draining() => {
                        draining = true;
                        continue;
                    }
                    read = self.next(&mut reader, &mut tasks) => read,
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
                Read::End if draining => {
                    break Some(crate::engine::EngineError::ShuttingDown.into());
                }
                Read::End => break None,
                Read::Broken(error) => break Some(error),
            }
        };
        while tasks.join_next().await.is_some() {}
        self.finish(broken.as_ref());
    }

    /// Waits until the client has read enough answers, then reads the next line.
    async fn next(&self, reader: &mut LineReader<'_>, tasks: &mut JoinSet<()>) -> Read {
        self.sink.answers.room(self.sink.lines.state.settings().bulk.max_held_bytes).await;
        let read = reader.next();
        tokio::pin!(read);
        loop {
            tokio::select! {
                biased;
                line = &mut read => return line,
                Some(_) = tasks.join_next() => self.connection.set_working(!tasks.is_empty()),
            }
        }
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

    fn finish(&self, error: Option<&ApiError>) {
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
        self.sink.answers.end();
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

/// Writes the response whose body is the queue of answers. The request counts until the client has read it.
fn response(receiver: AnswerReceiver, request: BulkRequest) -> Response {
    let lines = stream::unfold((receiver, request), |(mut receiver, request)| async {
        let line: Bytes = receiver.next().await?;
        Some((Ok::<_, Infallible>(line), (receiver, request)))
    });
    let mut response = Response::new(Body::from_stream(lines));
    let content_type = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}
