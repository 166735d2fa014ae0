//! The pipeline of every inference call, single or batch: read, plan, reserve capacity, tokenise, fetch and decode
//! images, submit, answer. `reply` and `routes::caption::stream` drive it.
//!
//! The trait [`Endpoint`] supplies the parts that differ between endpoints. A call as a whole is rejected only before
//! any of its images are fetched or decoded, for example if an input is invalid, or if the rows of all inputs together
//! cannot be reserved. Once fetching and decoding have begun, an error of one input affects only that input.
//!
//! [`within`] stops the work of a call at its deadline, or when the engine ends. It wraps the preparation of the call
//! ([`start_single`], [`start_batch`]), then the work on each input ([`Call::until_deadline`]).

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Request as HttpRequest;
use serde::de::DeserializeOwned;

use super::arity::ImageArity;
use super::endpoint::{
    AnswerParts, EachImage, Endpoint, FirstOutput, InputOf, PlanContext, check_count, typed,
};
use super::image_args::{ImageIndex, ImageSet, SharedImageFuture};
use crate::engine::{Admission, EngineHandle, ReservationGuard};
use crate::http::blocking;
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, Code, FieldError};
use crate::http::extract::fields::Text;
use crate::http::extract::request::{BatchRequest, Request, SingleRequest};
use crate::http::extract::{self, AdmittedBody, AdmittedRequest, head};
use crate::http::settings::Limits;
use crate::http::state::models::Model;
use crate::http::state::{HttpState, Services};
use crate::mutations::{self, Mutation};
use crate::platform;
use crate::task::{Preprocessing, Task, TaskOutput};
use crate::telemetry::metrics::Metrics;

/// Texts of up to this many bytes in total are tokenised on the async thread. Longer texts would block other
/// connections for too long.
const INLINE_TEXT_BYTES: usize = 16 << 10;

/// Runs one part of a call, such as reading the body or waiting for the worker. Stops it at the deadline, or as soon as
/// the engine can no longer answer any call.
///
/// # Errors
/// Those of `work`; `deadline_exceeded`; `shutting_down` or `not_ready` if the engine ends first.
async fn within<T>(
    engine: &EngineHandle,
    deadline: Instant,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let unless_closed = async {
        let waits = !mutations::is_active(Mutation::DrainIgnoresEarlyCalls);
        tokio::select! {
            biased;
            result = work => result,
            error = engine.closed(), if waits => Err(error.into()),
        }
    };
    tokio::time::timeout_at(deadline.into(), unless_closed)
        .await
        .unwrap_or_else(|_| Err(ApiError::deadline_exceeded()))
}

/// A prepared call: its capacity is reserved and its inputs can run.
pub(crate) struct Call {
    pub(crate) model: Model,
    /// The capacity reserved for the whole call.
    pub(crate) admission: Admission,
    engine: EngineHandle,
    context: RequestContext,
    metrics: Arc<Metrics>,
    /// True if bytes are reserved for the answer.
    is_large: bool,
}

/// One input that is ready to run.
pub(crate) struct PreparedInput<E: Endpoint> {
    pub(crate) plan: E,
    pub(crate) tokens: E::Tokens,
    pub(crate) images: EachImage<E, SharedImageFuture>,
    /// The images for the model of the second task, if that model prepares images differently.
    pub(crate) second_images: Option<EachImage<E, SharedImageFuture>>,
}

/// An input that is ready to run, or the error with which it has already failed.
pub(crate) type InputResult<E> = Result<PreparedInput<E>, ApiError>;

/// A prepared single call.
pub(crate) struct SingleCall<E: Endpoint, X = ExtrasOf<E>> {
    pub(crate) call: Call,
    pub(crate) input: InputResult<E>,
    /// The fields that only the single call has.
    pub(crate) extras: X,
}

/// The fields that only the single call of an endpoint has, as a tuple.
pub(crate) type ExtrasOf<E> = <<E as Endpoint>::Single as SingleRequest>::Extras;

/// A prepared batch call, with the inputs in order.
pub(crate) struct BatchCall<E: Endpoint> {
    pub(crate) call: Call,
    pub(crate) inputs: Vec<InputResult<E>>,
}

/// An input that has been validated. Its images are indices into the [`ImageSet`] of the call.
struct PlannedInput<E: Endpoint> {
    plan: E,
    images: EachImage<E, ImageIndex>,
}

/// The inputs of a call in order, each validated or failed.
type Plans<E> = Vec<Result<PlannedInput<E>, ApiError>>;

/// Reads and prepares a single call.
///
/// # Errors
/// Those that concern the call as a whole, and those of [`within`].
pub(crate) async fn start_single<E: Endpoint>(
    http: HttpRequest,
    state: &HttpState,
    context: &RequestContext,
) -> Result<SingleCall<E>, ApiError> {
    let start = Start::new(&http, state, context)?;
    within(&start.services.engine, start.deadline, async {
        let AdmittedRequest { request, admission } = start.read::<E, E::Single>(http).await?;
        let (model, input, extras) = request.into_parts();
        let inputs = Inputs { list: vec![input], batch: false };
        let (call, mut inputs) = start.prepare::<E>(admission, model, inputs).await?;
        let input = inputs.pop().expect("each input has a result");
        Ok(SingleCall { call, input, extras })
    })
    .await
}

/// Reads and prepares a batch call.
///
/// # Errors
/// Those that concern the call as a whole, and those of [`within`].
pub(crate) async fn start_batch<E: Endpoint>(
    http: HttpRequest,
    state: &HttpState,
    context: &RequestContext,
) -> Result<BatchCall<E>, ApiError> {
    let start = Start::new(&http, state, context)?;
    within(&start.services.engine, start.deadline, async {
        let AdmittedRequest { request, admission } = start.read::<E, E::Batch>(http).await?;
        let (model, list) = request.into_parts();
        let inputs = Inputs { list, batch: true };
        let (call, inputs) = start.prepare::<E>(admission, model, inputs).await?;
        Ok(BatchCall { call, inputs })
    })
    .await
}

/// The inputs of a call. In a batch call, errors name an input as `inputs[i]`.
struct Inputs<I> {
    list: Vec<I>,
    batch: bool,
}

/// Data that every step of the preparation of a call needs.
pub(crate) struct Start<'a> {
    state: &'a HttpState,
    services: &'a Services,
    context: &'a RequestContext,
    /// Deadline of the whole call, which the client may have shortened.
    deadline: Instant,
    /// Number of bytes of the line that is the body of this call; `None` if the body is that of the request.
    line_bytes: Option<u64>,
}

impl<'a> Start<'a> {
    /// Starts the call of one line of a bulk request.
    ///
    /// # Errors
    /// `not_ready`.
    pub(crate) fn line(
        state: &'a HttpState,
        context: &'a RequestContext,
        deadline: Instant,
        line_bytes: u64,
    ) -> Result<Self, ApiError> {
        let services = state.services()?;
        Ok(Self { state, services, context, deadline, line_bytes: Some(line_bytes) })
    }

    /// Starts a call that the routes of another API translate.
    ///
    /// # Errors
    /// `not_ready`; `invalid_request` if the client asks for an invalid deadline.
    pub(crate) fn new(
        http: &HttpRequest,
        state: &'a HttpState,
        context: &'a RequestContext,
    ) -> Result<Self, ApiError> {
        let deadline = head::deadline(http.headers(), context.arrived, state.settings().deadline)?;
        Ok(Self { state, services: state.services()?, context, deadline, line_bytes: None })
    }

    pub(crate) fn services(&self) -> &'a Services {
        self.services
    }

    pub(crate) fn limits(&self) -> &'a Limits {
        &self.state.settings().limits
    }

    pub(crate) fn context(&self) -> &'a RequestContext {
        self.context
    }

    /// Admits the call and reads its body, whatever content type the head declares.
    ///
    /// # Errors
    /// Those of reading, and those of [`within`].
    pub(crate) async fn read_any_type(&self, http: HttpRequest) -> Result<AdmittedBody, ApiError> {
        let Self { state, services, context, deadline, .. } = *self;
        let read = extract::read_any_type(http, state, services, context, deadline);
        within(&services.engine, deadline, read).await
    }

    /// Waits, but not beyond the deadline.
    ///
    /// # Errors
    /// Those of [`within`].
    pub(crate) async fn pause(&self, time: Duration) -> Result<(), ApiError> {
        let pause = async {
            tokio::time::sleep(time).await;
            Ok(())
        };
        within(&self.services.engine, self.deadline, pause).await
    }

    /// Parses a body as a JSON object. Unknown fields are the concern of the type.
    ///
    /// # Errors
    /// `invalid_request`, with the field; `overloaded` if there is no memory for it; those of [`within`].
    pub(crate) async fn json<R: DeserializeOwned + Send + 'static>(
        &self,
        body: &AdmittedBody,
    ) -> Result<R, ApiError> {
        within(&self.services.engine, self.deadline, body.json()).await
    }

    /// Prepares a call with one input, in the format of this server's own routes.
    ///
    /// # Errors
    /// Those that concern the call as a whole, and those of [`within`].
    pub(crate) async fn single<E: Endpoint>(
        &self,
        admission: Admission,
        model: impl Into<Option<Text>>,
        input: InputOf<E>,
    ) -> Result<SingleCall<E, ()>, ApiError> {
        let inputs = Inputs { list: vec![input], batch: false };
        let prepare = self.prepare::<E>(admission, model.into(), inputs);
        let (call, mut inputs) = within(&self.services.engine, self.deadline, prepare).await?;
        let input = inputs.pop().expect("each input has a result");
        Ok(SingleCall { call, input, extras: () })
    }

    /// Prepares a call with several inputs, in the format of this server's own routes.
    ///
    /// # Errors
    /// Those that concern the call as a whole, and those of [`within`].
    pub(crate) async fn batch<E: Endpoint>(
        &self,
        admission: Admission,
        model: Text,
        list: Vec<InputOf<E>>,
    ) -> Result<BatchCall<E>, ApiError> {
        let prepare = self.prepare::<E>(admission, Some(model), Inputs { list, batch: true });
        let (call, inputs) = within(&self.services.engine, self.deadline, prepare).await?;
        Ok(BatchCall { call, inputs })
    }

    /// Admits the call and reads its body.
    async fn read<E: Endpoint, R: Request>(
        &self,
        http: HttpRequest,
    ) -> Result<AdmittedRequest<R>, ApiError> {
        let Self { state, services, context, deadline, .. } = *self;
        // Fail before the body is read if no model serves the endpoint.
        services.models.pick(E::MODELS, None)?;
        extract::read(http, state, services, context, deadline).await
    }

    /// Validates the inputs and reserves their capacity, then tokenises texts and parses image values.
    async fn prepare<E: Endpoint>(
        &self,
        mut admission: Admission,
        name: Option<Text>,
        inputs: Inputs<InputOf<E>>,
    ) -> Result<(Call, Vec<InputResult<E>>), ApiError> {
        let Self { state, services, context, .. } = *self;
        let batch = inputs.batch;
        let name = name.as_ref().map(|name| &*name.0);
        let model = services.models.pick(E::MODELS, name)?.clone();
        context.note(|notes| {
            notes.model = Some(model.info.name.clone());
            notes.inputs += inputs.list.len();
        });
        let limits = &state.settings().limits;
        let plan = PlanContext { limits, model: &model, models: &services.models };
        let (plans, mut images) = plan_all::<E>(inputs, &plan)?;
        let needs = self.needs(&plans, &images, &model)?;
        let (tokens, answer_bytes) = if admission.is_bulk() {
            // Bulk work waits for all its capacity at once, so the size of the answer must be known before.
            let tokens = tokenize_all(&plans, &model, state.metrics()).await?;
            let answer_bytes = self.answer_bytes(&plans, &tokens, &model)?;
            let bytes = needs.bytes + self.body_bytes() + answer_bytes;
            admission.reserve_when_room(needs.rows, needs.images, bytes).await?;
            images.parse(&state.settings().input, services.fetcher.as_ref()).await?;
            (tokens, answer_bytes)
        } else {
            admission.reserve(needs.rows, needs.images)?;
            admission.reserve_bytes(needs.bytes)?;
            images.parse(&state.settings().input, services.fetcher.as_ref()).await?;
            let files = images.files();
            if files > 0 {
                // The engine's own estimate does not include the wait for a decoding thread, so check that wait here.
                let decodes = files * preprocessings(&plans, &model).len();
                admission.check_wait(services.images.estimated_wait(admission.call(), decodes))?;
            }
            let tokens = tokenize_all(&plans, &model, state.metrics()).await?;
            let answer_bytes = self.answer_bytes(&plans, &tokens, &model)?;
            admission.reserve_bytes(answer_bytes)?;
            (tokens, answer_bytes)
        };
        let is_large = answer_bytes > 0;
        let mut find = images.start_lookup(services, context, &admission);
        let inputs = plans.into_iter().zip(tokens).enumerate().map(|(index, (planned, tokens))| {
            let PlannedInput { plan, images } = planned?;
            let tokens = tokens.map_err(|error| named(error, index, batch))?;
            let first = || model.info.vision_tower().preprocessing;
            let second = second_preprocessing(&plan, &model);
            let second_images =
                second.map(|second| E::Images::map_ref(&images, |image| find.get(*image, second)));
            let images = E::Images::map(images, |image| find.get(image, first()));
            Ok(PreparedInput { plan, tokens, images, second_images })
        });
        let inputs = inputs.collect();
        let (engine, metrics) = (services.engine.clone(), Arc::clone(state.metrics()));
        Ok((Call { model, admission, engine, context: context.clone(), metrics, is_large }, inputs))
    }

    /// Returns the number of bytes of the call's body.
    fn body_bytes(&self) -> u64 {
        self.line_bytes.unwrap_or_else(|| self.context.notes().bytes_in)
    }

    /// Returns the number of bytes to reserve for the numbers of a large answer; 0 for answers of a usual size.
    ///
    /// # Errors
    /// `batch_too_large`.
    fn answer_bytes<E: Endpoint>(
        &self,
        plans: &[Result<PlannedInput<E>, ApiError>],
        tokens: &[Result<E::Tokens, ApiError>],
        model: &Model,
    ) -> Result<u64, ApiError> {
        let bytes = answer_bytes(plans, tokens, model, self.limits())?;
        check_bytes(bytes, self.services.engine.settings().capacity_bytes)?;
        Ok(bytes)
    }

    /// Returns the rows, images and bytes that all inputs together need.
    ///
    /// # Errors
    /// `batch_too_large`.
    fn needs<E: Endpoint>(
        &self,
        plans: &[Result<PlannedInput<E>, ApiError>],
        images: &ImageSet,
        model: &Model,
    ) -> Result<Needs, ApiError> {
        let rows: usize = plans.iter().flatten().map(|planned| planned.plan.shape().rows).sum();
        let (max_rows, setting) = E::max_rows(&self.state.settings().limits);
        if rows > max_rows {
            let detail = format!(
                "the request needs {rows} rows, at most {max_rows} are allowed ({setting}); split it"
            );
            return Err(ApiError::new(Code::BatchTooLarge, detail));
        }
        // A second task on another vision tower encodes the images once more.
        let has_other_tower = |planned: &PlannedInput<E>| {
            let second = planned.plan.second_model();
            second.is_some_and(|second| second.info.tower() != model.info.tower())
        };
        let passes = 1 + usize::from(plans.iter().flatten().any(has_other_tower));
        let bytes_outside_body = images.extra_bytes(&preprocessings(plans, model));
        let capacity = self.services.engine.settings().capacity_bytes;
        check_bytes(self.body_bytes().saturating_add(bytes_outside_body), capacity)?;
        let images = images.distinct() * passes;
        Ok(Needs { rows: rows.max(1), images, bytes: bytes_outside_body })
    }
}

/// The capacity that a call needs.
struct Needs {
    rows: usize,
    images: usize,
    /// Bytes outside the body: decoded base64 and pixels.
    bytes: u64,
}

impl Call {
    /// Runs one input until its answer is complete, and counts the outcome in the metrics.
    ///
    /// # Errors
    /// Those of this input or of the server, and those of [`within`].
    pub(crate) async fn run<E: Endpoint>(
        &self,
        input: InputResult<E>,
    ) -> Result<E::Answer, ApiError> {
        let answer = self.until_deadline(self.answer(input)).await;
        self.count::<E>(answer.as_ref().err());
        answer
    }

    async fn answer<E: Endpoint>(&self, input: InputResult<E>) -> Result<E::Answer, ApiError> {
        let PreparedInput { plan, tokens, images, second_images } = input?;
        // Wait for all images before the first task: a fetched file holds a permit, and an image that cannot be prepared
        // must cost no work.
        let second_images = async {
            match second_images {
                Some(images) => E::Images::wait(images).await.map(Some),
                None => Ok(None),
            }
        };
        let (images, second_images) = tokio::try_join!(E::Images::wait(images), second_images)?;
        let infos = E::Images::infos(&images);
        let output = self.submit(&self.model, plan.task(&images, &tokens).into()).await?;
        let output = typed::<E>(output)?;
        self.context.note(|notes| notes.tokens += E::generated_tokens(&output));
        let first = FirstOutput {
            model: &self.model,
            images: second_images.as_ref().unwrap_or(&images),
            tokens: &tokens,
            output: &output,
        };
        let second = match plan.second_task(&first)? {
            Some(task) => {
                Some(self.submit(plan.second_model().unwrap_or(&self.model), task).await?)
            }
            None => None,
        };
        let began = platform::now();
        let parts =
            AnswerParts { model: &self.model, images: infos, tokens: &tokens, output, second };
        let answer = plan.answer(parts);
        self.metrics
            .stage_duration_seconds
            .with_label_values(&["post"])
            .observe(platform::elapsed(began).as_secs_f64());
        answer
    }

    /// Returns a guard of the bytes reserved for the answer, which must live until the client has read the answer; `None`
    /// for answers of a usual size. Rows and images that no task has used are released now.
    pub(crate) fn hold_answer(&self) -> Option<ReservationGuard> {
        self.admission.release_work();
        self.hold_stream()
    }

    /// Like [`hold_answer`](Self::hold_answer), for a call whose tasks are still running.
    pub(crate) fn hold_stream(&self) -> Option<ReservationGuard> {
        self.is_large.then(|| self.admission.hold())
    }

    /// Runs a task in the engine and notes its times.
    async fn submit(&self, model: &Model, task: Task) -> Result<TaskOutput, ApiError> {
        let answered = self.admission.submit(model.info.id, task).await?;
        self.context.note(|notes| notes.add_task(answered.timing));
        Ok(answered.output)
    }

    /// Runs `work` on an input, and stops it at the deadline of the call.
    ///
    /// # Errors
    /// Those of [`within`].
    pub(crate) async fn until_deadline<T>(
        &self,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        within(&self.engine, self.admission.deadline(), work).await
    }

    /// Counts an input's outcome in the metric `items_total`.
    pub(crate) fn count<E: Endpoint>(&self, error: Option<&ApiError>) {
        let code = error.map_or("ok", |error| error.code.name());
        let labels = [E::TASK, self.model.info.name.as_str(), code];
        self.metrics.items_total.with_label_values(&labels).inc();
    }
}

/// Rejects a call that would not fit even into an idle server, because retrying it could never succeed.
fn check_bytes(bytes: u64, capacity: u64) -> Result<(), ApiError> {
    if bytes <= capacity {
        return Ok(());
    }
    let detail = format!(
        "the request needs {bytes} bytes for its body, images and pixels, but the server holds at most {capacity} for all \
         requests (engine.capacity_bytes); split it"
    );
    Err(ApiError::new(Code::BatchTooLarge, detail))
}

/// Validates every input, and collects the images of the valid ones. If inputs have `invalid_request` errors, the whole
/// call is rejected with all of these errors. A `batch_too_large` error rejects the call at once. Any other error
/// concerns only its own input.
fn plan_all<E: Endpoint>(
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

/// Memory for one number of a large answer: 4 bytes from the engine, 4 in the answer, and up to 13 as text, in a buffer
/// that doubles when it grows, next to its old contents.
const BYTES_PER_NUMBER: u64 = 48;

/// Returns the number of bytes to reserve for the numbers of a large answer; 0 for answers of a usual size. Rejects a call
/// whose answer would have too many numbers.
fn answer_bytes<E: Endpoint>(
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
fn preprocessings<E: Endpoint>(
    plans: &[Result<PlannedInput<E>, ApiError>],
    model: &Model,
) -> HashSet<Preprocessing> {
    let second = plans.iter().flatten();
    let second = second.filter_map(|planned| second_preprocessing(&planned.plan, model));
    second.chain(model.info.preprocessing()).collect()
}

/// Returns how the images must be prepared for the second task, if its model needs them prepared in another way than the
/// first.
fn second_preprocessing<E: Endpoint>(plan: &E, model: &Model) -> Option<Preprocessing> {
    let second = plan.second_model()?.info.preprocessing();
    second.filter(|_| second != model.info.preprocessing())
}

/// Prefixes the fields of an error with the input's position if the call is a batch.
fn named(error: ApiError, index: usize, batch: bool) -> ApiError {
    if batch { error.prefix_fields(&format!("inputs[{index}]")) } else { error }
}

/// Tokenises the texts of every input. Texts of more than [`INLINE_TEXT_BYTES`] in total are tokenised on a blocking
/// thread, so that the threads that serve connections are not delayed.
async fn tokenize_all<E: Endpoint>(
    plans: &[Result<PlannedInput<E>, ApiError>],
    model: &Model,
    metrics: &Metrics,
) -> Result<Vec<Result<E::Tokens, ApiError>>, ApiError> {
    let began = platform::now();
    let bytes: usize = plans.iter().flatten().map(|planned| planned.plan.text_bytes()).sum();
    let plans = plans.iter().map(|planned| planned.as_ref().map(|planned| &planned.plan));
    let tokens = if bytes <= INLINE_TEXT_BYTES {
        plans.map(|plan| tokenize(plan, model)).collect()
    } else {
        let plans: Vec<Result<E, ApiError>> =
            plans.map(|plan| plan.cloned().map_err(Clone::clone)).collect();
        let model = model.clone();
        let tokenize_all =
            move || plans.iter().map(|plan| tokenize(plan.as_ref(), &model)).collect::<Vec<_>>();
        blocking::run("tokenizing", tokenize_all).await?
    };
    if bytes > 0 {
        let seconds = platform::elapsed(began).as_secs_f64();
        metrics.stage_duration_seconds.with_label_values(&["tokenize"]).observe(seconds);
    }
    for count in tokens.iter().flatten().flat_map(E::token_counts) {
        metrics.prompt_tokens.observe(count as f64);
    }
    Ok(tokens)
}

/// Tokenises the texts of an input that has been planned successfully.
fn tokenize<E: Endpoint>(
    plan: Result<&E, &ApiError>,
    model: &Model,
) -> Result<E::Tokens, ApiError> {
    let plan = plan.map_err(Clone::clone)?;
    if crate::faults::at("http::tokenize") {
        return Err(ApiError::internal());
    }
    plan.tokenize(model)
}
