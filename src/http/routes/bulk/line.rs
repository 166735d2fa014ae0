//! One line of a bulk request: parsing, running its task, and writing its answer.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::de::{Deserializer, Error, Unexpected, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Number;

use super::lines::Line;
use crate::engine::Admission;
use crate::http::blocking::Jobs;
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, Code, Problem};
use crate::http::extract::fields::Int;
use crate::http::extract::line::{self as extract_line, OwnFields};
use crate::http::extract::request::SingleRequest;
use crate::http::inference::call::{Call, ExtrasOf, SingleCall};
use crate::http::inference::endpoint::Endpoint;
use crate::http::inference::reply::{self, SingleResponse};
use crate::http::inference::start::Start;
use crate::http::routes::caption::CaptionPlan;
use crate::http::routes::classify::ClassifyPlan;
use crate::http::routes::embeddings::EmbeddingPlan;
use crate::http::routes::similarity::SimilarityPlan;
use crate::http::routes::vqa::VqaPlan;
use crate::http::state::HttpState;
use crate::platform;
use crate::telemetry::trace::{OpenSpan, Value};

/// Lines of up to this many bytes are parsed on the async thread.
const INLINE_BYTES: usize = 64 << 10;

/// The endpoint that a line names.
#[derive(Debug, Clone, Copy)]
enum TaskName {
    Caption,
    Vqa,
    Similarity,
    Embeddings,
    Classify,
}

/// The names of the tasks, for messages.
const TASKS: &str = "caption, vqa, similarity, embeddings or classify";

/// Written by hand, because the code that serde derives reports a number as a syntax error.
struct TaskNameVisitor;

impl Visitor<'_> for TaskNameVisitor {
    type Value = TaskName;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(TASKS)
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<TaskName, E> {
        Ok(match name {
            "caption" => TaskName::Caption,
            "vqa" => TaskName::Vqa,
            "similarity" => TaskName::Similarity,
            "embeddings" => TaskName::Embeddings,
            "classify" => TaskName::Classify,
            other => return Err(E::invalid_value(Unexpected::Str(other), &self)),
        })
    }
}

impl<'de> Deserialize<'de> for TaskName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TaskNameVisitor)
    }
}

/// The fields that every line has, whatever its task.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LineFields {
    id: Option<LineId>,
    task: Option<TaskName>,
    deadline_ms: Option<Milliseconds>,
}

/// A time in milliseconds. More than the server's own deadline has no effect, so no number is too large.
type Milliseconds = Int<0, { u64::MAX }>;

impl OwnFields for LineFields {
    const NAMES: &'static [&'static str] = &["id", "task", "deadline_ms"];
}

/// The id of a line whose other fields cannot be read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct IdField {
    id: Option<LineId>,
}

impl OwnFields for IdField {
    const NAMES: &'static [&'static str] = &["id"];
}

/// How an answer names its line: by the client's id, or by the number of the line if that has no id.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
enum LineName {
    Id(LineId),
    Line(u64),
}

/// Maximum length of an id in bytes.
const MAX_ID_BYTES: usize = 4096;

/// 2^53, the number from which on neighbouring integers are the same `f64`.
const ROUNDED: f64 = 9_007_199_254_740_992.0;

/// The client's id of a line: a text or a number. Clones share the text.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
enum LineId {
    Text(Arc<str>),
    Number(Number),
}

struct LineIdVisitor;

impl Visitor<'_> for LineIdVisitor {
    type Value = LineId;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a string of at most {MAX_ID_BYTES} bytes, or a number")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<LineId, E> {
        if text.len() > MAX_ID_BYTES {
            return Err(E::invalid_length(text.len(), &self));
        }
        Ok(LineId::Text(text.into()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<LineId, E> {
        Ok(LineId::Number(number.into()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<LineId, E> {
        Ok(LineId::Number(number.into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<LineId, E> {
        // An integer beyond 64 bits arrives here too, already rounded.
        if number.abs() >= ROUNDED {
            let detail = "this number is too large to be returned exactly; send it as a string";
            return Err(E::custom(detail));
        }
        let number = Number::from_f64(number);
        number.map(LineId::Number).ok_or_else(|| E::custom("not a number"))
    }
}

impl<'de> Deserialize<'de> for LineId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LineIdVisitor)
    }
}

/// The answer to a line.
#[derive(Serialize)]
struct Answer<R> {
    #[serde(flatten)]
    name: LineName,
    /// The status that a single call would have.
    status: u16,
    #[serde(flatten)]
    outcome: Outcome<R>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome<R> {
    Result(R),
    Error(Problem),
}

/// A written answer, with its line break.
pub(super) struct Answered {
    pub(super) bytes: Bytes,
    /// The error with which the line failed.
    pub(super) failed: Option<Code>,
}

/// The work on a line whose capacity is reserved.
pub(super) type Work = BoxFuture<'static, Answered>;

/// What all lines of a request share.
#[derive(Clone)]
pub(super) struct Lines {
    pub(super) state: HttpState,
    pub(super) context: RequestContext,
    /// Time that a line may take, unless it sets its own.
    pub(super) deadline: Duration,
}

impl Lines {
    /// Like [`prepare`](Self::prepare); a panic is the error of this line.
    pub(super) async fn try_prepare(
        &self,
        line: Line,
        admission: &Admission,
    ) -> Result<Work, Answered> {
        let number = LineName::Line(line.number);
        let mut span = self.context.spans.open("line");
        span.set("blip.line", || Value::Count(line.number));
        // The spans of the line's work are recorded below its own.
        let lines = Self { context: self.context.below(span.spans()), ..self.clone() };
        let prepared = AssertUnwindSafe(Box::pin(lines.prepare(line, admission))).catch_unwind();
        let prepared = prepared.await.unwrap_or_else(|_| {
            tracing::error!("preparing a line of a bulk request panicked");
            Err(self.failed(number, &ApiError::internal()))
        });
        let end = |span: OpenSpan, answered: &Answered| span.end(answered.failed.map(Code::name));
        match prepared {
            Ok(work) if self.context.spans.is_recorded() => Ok(async move {
                let answered = work.await;
                end(span, &answered);
                answered
            }
            .boxed()),
            Ok(work) => Ok(work),
            Err(answered) => {
                end(span, &answered);
                Err(answered)
            }
        }
    }

    /// Parses a line and waits until its capacity is reserved. Returns the rest of the work, or the answer of a line that
    /// has failed.
    async fn prepare(&self, line: Line, admission: &Admission) -> Result<Work, Answered> {
        let number = LineName::Line(line.number);
        let failed = |name: LineName, error: &ApiError| self.failed(name, error);
        let bytes = line.bytes.map_err(|error| failed(number.clone(), &error))?;
        let jobs = (self.state.jobs(), admission);
        let fields = match in_pool(jobs, &bytes, extract_line::own_fields::<LineFields>).await {
            Ok(fields) => fields,
            Err(error) => {
                // The client finds the error by its id, whichever other field is wrong.
                let id = in_pool(jobs, &bytes, extract_line::own_fields::<IdField>).await;
                let id = id.ok().and_then(|fields| fields.id);
                return Err(failed(id.map_or(number, LineName::Id), &error));
            }
        };
        let name = fields.id.map_or(number, LineName::Id);
        let Some(task) = fields.task else {
            let detail = format!("is needed: {TASKS}");
            let error = ApiError::field(Code::InvalidRequest, "task", detail);
            return Err(failed(name, &error));
        };
        let wish = fields.deadline_ms.map_or(self.deadline, |wish| Duration::from_millis(wish.0));
        let deadline = platform::now() + wish.min(self.deadline);
        let part = admission.admit_part(deadline);
        let prepared = match task {
            TaskName::Caption => self.start::<CaptionPlan>(&name, bytes, part).await,
            TaskName::Vqa => self.start::<VqaPlan>(&name, bytes, part).await,
            TaskName::Similarity => self.start::<SimilarityPlan>(&name, bytes, part).await,
            TaskName::Embeddings => self.start::<EmbeddingPlan>(&name, bytes, part).await,
            TaskName::Classify => self.start::<ClassifyPlan>(&name, bytes, part).await,
        };
        prepared.map_err(|error| failed(name, &error))
    }

    /// Prepares a line of this endpoint.
    async fn start<E: Endpoint>(
        &self,
        name: &LineName,
        line: Bytes,
        admission: Admission,
    ) -> Result<Work, ApiError>
    where
        ExtrasOf<E>: LineExtras,
    {
        let jobs = (self.state.jobs(), &admission);
        let request = in_pool(jobs, &line, extract_line::request::<E::Single, LineFields>).await?;
        let (model, input, extras) = request.into_parts();
        extras.check()?;
        let bytes = line.len() as u64;
        drop(line);
        let start = Start::line(&self.state, &self.context, admission.deadline(), bytes)?;
        let single = Box::pin(start.single::<E>(admission, model, input)).await?;
        let (lines, name) = (self.clone(), name.clone());
        Ok(lines.run(single, name).boxed())
    }

    /// Runs a prepared line and writes its answer.
    async fn run<E: Endpoint>(self, single: SingleCall<E, ()>, name: LineName) -> Answered {
        let SingleCall { call, input, .. } = single;
        // A panic must not leave a line without an answer.
        let answer = AssertUnwindSafe(Box::pin(call.run(input))).catch_unwind().await;
        let answer = answer.unwrap_or_else(|_| {
            tracing::error!("a line of a bulk request panicked");
            Err(ApiError::internal())
        });
        match Self::write(&call, name.clone(), answer).await {
            Ok(bytes) => Answered { bytes: bytes.into(), failed: None },
            Err(error) => self.failed(name, &error),
        }
    }

    /// Writes the answer of a line that was computed, with a line break.
    async fn write<A: Serialize + Send + 'static>(
        call: &Call,
        name: LineName,
        answer: Result<A, ApiError>,
    ) -> Result<Vec<u8>, ApiError> {
        let result = SingleResponse { model: call.model.info.name.clone(), answer: answer? };
        let outcome = Outcome::Result(result);
        let mut bytes = call.write(Answer { name, status: 200, outcome }).await?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    fn failed(&self, name: LineName, error: &ApiError) -> Answered {
        let problem = error.to_problem(&self.context.id);
        let status = error.code.status().as_u16();
        let answer: Answer<()> = Answer { name, status, outcome: Outcome::Error(problem) };
        let written = reply::to_bytes(&answer).map(|mut bytes| {
            bytes.push(b'\n');
            bytes
        });
        Answered { bytes: written.unwrap_or_default().into(), failed: Some(error.code) }
    }
}

/// The fields that only the single call of an endpoint has.
trait LineExtras {
    /// Rejects fields that a line cannot have.
    ///
    /// # Errors
    /// `invalid_request`.
    fn check(&self) -> Result<(), ApiError>;
}

impl LineExtras for () {
    fn check(&self) -> Result<(), ApiError> {
        Ok(())
    }
}

/// `stream` of captions.
impl LineExtras for (Option<bool>,) {
    fn check(&self) -> Result<(), ApiError> {
        if self.0 == Some(true) {
            let detail = "a line of a bulk request cannot be streamed; leave it out";
            return Err(ApiError::field(Code::InvalidRequest, "stream", detail));
        }
        Ok(())
    }
}

/// Parses a line; a long line by a job of the call.
async fn in_pool<T: Send + 'static>(
    (jobs, admission): (&Jobs, &Admission),
    line: &Bytes,
    parse: impl FnOnce(&[u8]) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if line.len() <= INLINE_BYTES {
        return parse(line);
    }
    let line = line.clone();
    jobs.run(admission, "parsing a line", move |_| parse(&line)).await?
}
