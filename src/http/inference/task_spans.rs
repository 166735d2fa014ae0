//! The spans of a task: `queue`, `vision` and `text`, from the times that the worker has measured. A task that ends
//! without an answer has the span `inference` instead, because the worker reports no times for it.

use crate::engine::Answered;
use crate::http::error::ApiError;
use crate::http::middleware::server_timing::milliseconds;
use crate::http::state::models::Model;
use crate::task::{StageRun, TaskRun};
use crate::telemetry::trace::{Attribute, OpenSpan, ParentSpan, Value};

/// Begins the span of a task that is submitted. If the span is dropped, the task was cancelled.
pub(crate) fn begin(spans: &ParentSpan, model: &Model) -> OpenSpan {
    let mut span = spans.open("inference");
    span.set("blip.model", || Value::text(&model.info.name));
    span
}

/// Ends the span of a task, or replaces it by those of the stages.
pub(crate) fn end(
    span: OpenSpan,
    (spans, model): (&ParentSpan, &Model),
    answer: &Result<Answered, ApiError>,
) {
    match answer {
        Ok(answered) => {
            span.discard();
            record(spans, &answered.run, model);
        }
        Err(error) => span.end(Some(error.code.name())),
    }
}

fn record(spans: &ParentSpan, run: &TaskRun, model: &Model) {
    if let Some(started) = run.started {
        spans.record("queue", (run.submitted, started), Vec::new);
    }
    for (name, stage) in [("vision", run.vision), ("text", run.text)] {
        if let Some(stage) = stage {
            spans.record(name, (stage.began, stage.ended), || attributes(&stage, model));
        }
    }
}

/// The units of a stage need not follow each other directly: `blip.busy_ms` is the time in which they ran.
fn attributes(stage: &StageRun, model: &Model) -> Vec<Attribute> {
    vec![
        ("blip.model", Value::text(&model.info.name)),
        ("blip.units", stage.units.into()),
        ("blip.busy_ms", Value::Number(milliseconds(stage.busy))),
        ("blip.batch_size", stage.largest_batch.into()),
    ]
}
