//! The plans of a call's inputs: validation, the preprocessing of images, the size of the answer, and tokens.

use std::collections::HashSet;

use super::arity::ImageArity;
use super::endpoint::{EachImage, Endpoint, InputOf, PlanContext, check_count};
use super::image_args::{ImageIndex, ImageSet};
use super::text::TextEncoder;
use crate::engine::Admission;
use crate::http::blocking::{Jobs, Stop};
use crate::http::error::{ApiError, Code, FieldError};
use crate::http::settings::Limits;
use crate::http::state::models::Model;
use crate::platform;
use crate::task::Preprocessing;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trace::ParentSpan;

/// An input that has been validated. Its images are indices into the [`ImageSet`] of the call.
pub(super) struct PlannedInput<E: Endpoint> {
    pub(super) plan: E,
    pub(super) images: EachImage<E, ImageIndex>,
}

/// The inputs of a call in order, each validated or failed.
pub(super) type Plans<E> = Vec<Result<PlannedInput<E>, ApiError>>;

/// The inputs of a call. In a batch call, errors name an input as `inputs[i]`.
pub(super) struct Inputs<I> {
    pub(super) list: Vec<I>,
    pub(super) batch: bool,
}

/// Memory for one number of a large answer: 4 bytes from the engine, 4 in the answer, and up to 13 as text, in a buffer
/// that doubles when it grows, next to its old contents.
pub(super) const BYTES_PER_NUMBER: u64 = 48;

/// Texts of up to this many bytes in total are tokenised on the async thread. Longer texts would block other
/// connections for too long.
const INLINE_TEXT_BYTES: usize = 1 << 10;

/// Bytes of text that one job tokenises. That takes some milliseconds, at most about 20 (4,096 Chinese characters, which are
/// words of their own; two busy cores of an AMD EPYC, 2026-12-01).
const SLICE_BYTES: usize = 16 << 10;

/// Validates every input, and collects the images of the valid ones. If inputs have `invalid_request` errors, the whole
/// call is rejected with all of these errors. A `batch_too_large` error rejects the call at once. Any other error
/// concerns only its own input.
pub(super) fn plan_all<E: Endpoint>(
    inputs: Inputs<InputOf<E>>,
    context: &PlanContext<'_>,
) -> Result<(Plans<E>, ImageSet), ApiError> {
    let Inputs { list, batch } = inputs;
    if list.is_empty() {
        return Err(ApiError::field(Code::InvalidRequest, "inputs", "at least one is needed"));
    }
    let max = context.limits.max_batch_inputs;
    check_count("inputs", list.len(), max, "limits.max_batch_inputs")?;
    let mut invalid: Vec<FieldError> = Vec::new();
    let mut plans = Vec::with_capacity(list.len());
    let mut distinct = ImageSet::default();
    for (index, input) in list.into_iter().enumerate() {
        match E::plan(input, context).map_err(|error| named(error, index, batch)) {
            Err(error) if error.code == Code::BatchTooLarge => return Err(error),
            // An error that names no field must not be lost among those that do.
            Err(error) if error.code == Code::InvalidRequest && error.errors.is_empty() => {
                return Err(error);
            }
            Err(error) if error.code == Code::InvalidRequest => invalid.extend(error.errors),
            Err(error) => plans.push(Err(error)),
            Ok(plan) => {
                let input = batch.then_some(index);
                let images = E::Images::map(plan.images(), |image| distinct.add(input, image));
                plans.push(Ok(PlannedInput { plan, images }));
            }
        }
    }
    if invalid.is_empty() {
        Ok((plans, distinct))
    } else {
        Err(ApiError::fields(Code::InvalidRequest, invalid))
    }
}

/// Returns the number of bytes to reserve for the numbers of a large answer; 0 for answers of a usual size. Rejects a call
/// whose answer would have too many numbers.
pub(super) fn answer_bytes<E: Endpoint>(
    plans: &[Result<PlannedInput<E>, ApiError>],
    tokens: &[Result<E::Tokens, ApiError>],
    model: &Model,
    limits: &Limits,
) -> Result<u64, ApiError> {
    let inputs = plans.iter().zip(tokens);
    let values: usize = inputs
        .filter_map(|(planned, tokens)| {
            Some(planned.as_ref().ok()?.plan.answer_values(tokens.as_ref().ok()?, model))
        })
        .sum();
    let max = limits.max_embedding_values;
    if values <= max {
        return Ok(values as u64 * BYTES_PER_NUMBER);
    }
    let detail = format!(
        "the answer would have up to {values} numbers, at most {max} are allowed (limits.max_embedding_values); split the \
         request or ask for less"
    );
    Err(ApiError::new(Code::BatchTooLarge, detail))
}

/// Returns all ways in which the images of a call must be prepared.
pub(super) fn preprocessings<E: Endpoint>(
    plans: &[Result<PlannedInput<E>, ApiError>],
    model: &Model,
) -> HashSet<Preprocessing> {
    let second = plans.iter().flatten();
    let second = second.filter_map(|planned| second_preprocessing(&planned.plan, model));
    second.chain(model.info.preprocessing()).collect()
}

/// Returns how the images must be prepared for the second task, if its model needs them prepared in another way than the
/// first.
pub(super) fn second_preprocessing<E: Endpoint>(plan: &E, model: &Model) -> Option<Preprocessing> {
    let second = plan.second_model()?.info.preprocessing();
    second.filter(|_| second != model.info.preprocessing())
}

/// Prefixes the fields of an error with the input's position if the call is a batch.
pub(super) fn named(error: ApiError, index: usize, batch: bool) -> ApiError {
    if batch { error.prefix_fields(&format!("inputs[{index}]")) } else { error }
}

/// Tokenises the texts of every input. More than [`INLINE_TEXT_BYTES`] in total are tokenised in slices by jobs of the call,
/// so that the threads that serve connections are not delayed, and clients take turns between two slices. If the client
/// disconnects, no further slice begins.
pub(super) async fn tokenize_all<E: Endpoint>(
    plans: &[Result<PlannedInput<E>, ApiError>],
    model: &Model,
    (jobs, admission): (&Jobs, &Admission),
    (metrics, spans): (&Metrics, &ParentSpan),
) -> Result<Vec<Result<E::Tokens, ApiError>>, ApiError> {
    let began = platform::now();
    let bytes: usize = plans.iter().flatten().map(|planned| planned.plan.text_bytes()).sum();
    let plans = plans.iter().map(|planned| planned.as_ref().map(|planned| &planned.plan));
    let texts = TextEncoder::new(model.clone());
    let tokens = if bytes <= INLINE_TEXT_BYTES {
        plans.map(|plan| tokenize(plan, &texts)).collect()
    } else {
        let plans: Vec<Result<E, ApiError>> =
            plans.map(|plan| plan.cloned().map_err(Clone::clone)).collect();
        let mut work = Tokenizing { plans, texts, tokens: Vec::new() };
        while work.tokens.len() < work.plans.len() {
            let slice = move |_: &Stop| {
                work.run_slice();
                work
            };
            work = jobs.run(admission, "tokenizing", slice).await?;
        }
        work.tokens
    };
    if bytes > 0 {
        let ended = platform::now();
        let seconds = ended.saturating_duration_since(began).as_secs_f64();
        spans.record("tokenize", (began, ended), Vec::new);
        metrics.stage_duration_seconds.with_label_values(&["tokenize"]).observe(seconds);
    }
    for count in tokens.iter().flatten().flat_map(E::token_counts) {
        metrics.prompt_tokens.observe(count as f64);
    }
    Ok(tokens)
}

/// The texts of a call while they are tokenised in slices.
struct Tokenizing<E: Endpoint> {
    plans: Vec<Result<E, ApiError>>,
    texts: TextEncoder,
    /// The results for the first of the plans.
    tokens: Vec<Result<E::Tokens, ApiError>>,
}

impl<E: Endpoint> Tokenizing<E> {
    fn run_slice(&mut self) {
        self.texts.begin_slice(SLICE_BYTES);
        for plan in &self.plans[self.tokens.len()..] {
            let tokens = tokenize(plan.as_ref(), &self.texts);
            if self.texts.is_interrupted() {
                return;
            }
            self.tokens.push(tokens);
        }
    }
}

/// Tokenises the texts of an input that has been planned successfully.
fn tokenize<E: Endpoint>(
    plan: Result<&E, &ApiError>,
    texts: &TextEncoder,
) -> Result<E::Tokens, ApiError> {
    let plan = plan.map_err(Clone::clone)?;
    if crate::faults::at("http::tokenize") {
        return Err(ApiError::internal());
    }
    plan.tokenize(texts)
}
