//! The pipeline of every inference call, single or batch: read, plan, reserve capacity, tokenise, fetch and decode
//! images, submit, answer. `reply` and `routes::caption::stream` drive it.
//!
//! The trait [`Endpoint`] supplies the parts that differ between endpoints. A call is rejected before any of its images
//! are fetched or decoded: first, an invalid input fails the whole call; then the rows of all inputs are reserved
//! together. After that, an error of one input affects only that input.

use std::future::Future;
use std::time::Instant;

use serde::Serialize;

use super::image_args::{ImageArg, ImageSet, SharedImageFuture};
use crate::engine::{Admission, EngineHandle};
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, Code, FieldError};
use crate::http::extract::fields::Text;
use crate::http::extract::request::Request;
use crate::http::extract::{self, AdmittedRequest};
use crate::http::settings::{Limits, MAX_LISTED};
use crate::http::state::HttpState;
use crate::http::state::models::Model;
use crate::task::{ImageInfo, PreparedImage, Role, TaskKind, TaskOutput, TaskShape};
use crate::telemetry::logging::clipped;
use crate::telemetry::metrics::Metrics;

/// Texts of up to this many bytes in total are tokenised on the async thread. Longer texts would block other
/// connections for too long.
const INLINE_TEXT_BYTES: usize = 16 << 10;

/// Runs one part of a call, such as reading the body or waiting for the worker. Stops it at the deadline, or as soon as
/// the engine can no longer answer any call.
///
/// # Errors
/// Those of `work`; `deadline_exceeded`; `shutting_down` or `not_ready` when the engine ends first.
pub(crate) async fn within<T>(
    engine: &EngineHandle,
    deadline: Instant,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let unless_closed = async {
        tokio::select! {
            biased;
            result = work => result,
            error = engine.closed() => Err(error.into()),
        }
    };
    tokio::time::timeout_at(deadline.into(), unless_closed)
        .await
        .unwrap_or_else(|_| Err(ApiError::deadline_exceeded()))
}

/// The parts of the pipeline that differ between endpoints. A value of a type that implements this trait is one
/// validated input.
pub(crate) trait Endpoint: Clone + Sized + Send + Sync + 'static {
    /// Value of the metric label `task`.
    const TASK: &'static str;
    /// Role of the models that serve this endpoint.
    const ROLE: Role;
    /// One input as sent by the client.
    type Input: Send + 'static;
    /// Token ids of an input's texts.
    type Tokens: Send + Sync + 'static;
    /// What the engine computes for one input.
    type Task: TaskKind;
    /// Answer to one input, without the model's name.
    type Answer: Serialize + Send + 'static;

    /// Checks what the types of the fields cannot: conflicts between fields, counts, and whether the model supports the
    /// request.
    ///
    /// # Errors
    /// `invalid_request` and `batch_too_large` fail the whole call; any other error fails this input only.
    fn plan(input: Self::Input, limits: &Limits, model: &Model) -> Result<Self, ApiError>;

    /// Returns how many rows and images the input needs in the engine.
    fn shape(&self) -> TaskShape;

    /// Returns the input's images, in the order in which `task` receives them.
    fn images(&self) -> Vec<ImageArg>;

    /// Returns the total size of the input's texts in bytes.
    fn text_bytes(&self) -> usize;

    /// Tokenises the input's texts.
    ///
    /// # Errors
    /// `text_too_long` or `invalid_request`, naming the field.
    fn tokenize(&self, model: &Model) -> Result<Self::Tokens, ApiError>;

    /// Returns the length of each text in tokens, for the metric `prompt_tokens`.
    fn token_counts(tokens: &Self::Tokens) -> Vec<usize>;

    /// Builds the task for the engine.
    fn task(&self, images: Vec<PreparedImage>, tokens: &Self::Tokens) -> Self::Task;

    /// Builds the answer for the client from the engine's output.
    ///
    /// # Errors
    /// `inference_failed` when the output holds a value that is not finite.
    fn answer(&self, parts: AnswerParts<'_, Self>) -> Result<Self::Answer, ApiError>;

    /// Returns the number of generated tokens, for the access log.
    fn generated_tokens(_output: &OutputOf<Self>) -> usize {
        0
    }
}

/// Output of the engine for one input of an endpoint.
pub(crate) type OutputOf<E> = <<E as Endpoint>::Task as TaskKind>::Output;

/// The values from which [`Endpoint::answer`] builds an answer.
pub(crate) struct AnswerParts<'a, E: Endpoint> {
    pub(crate) model: &'a Model,
    /// Descriptions of the input's images, in order.
    pub(crate) images: Vec<ImageInfo>,
    pub(crate) tokens: &'a E::Tokens,
    pub(crate) output: OutputOf<E>,
}

/// Converts the engine's output to the output type of this endpoint.
///
/// # Errors
/// `internal_error` if the output belongs to another kind of task, which breaks an invariant of the engine.
pub(crate) fn typed<E: Endpoint>(output: TaskOutput) -> Result<OutputOf<E>, ApiError> {
    E::Task::output(output).ok_or_else(|| {
        tracing::error!("the engine returned the output of a different task");
        ApiError::internal()
    })
}

/// A call that has been admitted and whose body has been read. Its inputs are not validated yet.
pub(crate) struct AdmittedCall<'a, R> {
    pub(crate) request: R,
    admission: Admission,
    state: &'a HttpState,
    context: &'a RequestContext,
}

/// A prepared call: its capacity is reserved and its inputs can run.
pub(crate) struct Call<E: Endpoint> {
    pub(crate) model: Model,
    /// The capacity reserved for the whole call.
    pub(crate) admission: Admission,
    pub(crate) engine: EngineHandle,
    context: RequestContext,
    metrics: std::sync::Arc<Metrics>,
    /// The inputs in order. An input that has already failed is an `Err`.
    pub(crate) items: Vec<Result<Item<E>, ApiError>>,
}

/// One input that is ready to run.
pub(crate) struct Item<E: Endpoint> {
    pub(crate) plan: E,
    pub(crate) tokens: E::Tokens,
    images: Vec<SharedImageFuture>,
}

/// Admits a call and reads its body. `deadline` is that of the whole call.
///
/// # Errors
/// Those that concern the call as a whole.
pub(crate) async fn open<'a, R: Request>(
    http: axum::extract::Request,
    state: &'a HttpState,
    context: &'a RequestContext,
    role: Role,
    deadline: Instant,
) -> Result<AdmittedCall<'a, R>, ApiError> {
    let services = state.services()?;
    // Fail before the body is read if no model serves the endpoint.
    services.models.pick(role, None)?;
    let AdmittedRequest { request, admission } =
        extract::read(http, state, services, context, deadline).await?;
    Ok(AdmittedCall { request, admission, state, context })
}

impl<R> AdmittedCall<'_, R> {
    /// Validates the inputs and reserves their capacity, then tokenises texts and parses image values.
    ///
    /// `split` splits the request into the model's name and the inputs. If `batch` is true, errors name an input as
    /// `inputs[i]`.
    ///
    /// # Errors
    /// Those that concern the call as a whole.
    pub(crate) async fn prepare<E: Endpoint>(
        self,
        batch: bool,
        split: impl FnOnce(R) -> (Option<Text>, Vec<E::Input>),
    ) -> Result<Call<E>, ApiError> {
        let Self { request, mut admission, state, context } = self;
        let services = state.services()?;
        let (name, inputs) = split(request);
        let model = services.models.pick(E::ROLE, name.as_ref().map(|name| &*name.0))?.clone();
        context.note(|notes| {
            notes.model = Some(model.info.name.clone());
            notes.inputs = inputs.len();
        });
        let limits = &state.settings().limits;
        if inputs.is_empty() {
            return Err(ApiError::field(Code::InvalidRequest, "inputs", "at least one is needed"));
        }
        check_count("inputs", inputs.len(), limits.max_batch_inputs, "limits.max_batch_inputs")?;
        let plans = plan_all::<E>(inputs, limits, &model, batch)?;

        let rows: usize = plans.iter().flatten().map(|plan| plan.shape().rows).sum();
        if rows > limits.max_rows {
            let detail = format!(
                "the request needs {rows} rows, at most {} are allowed (limits.max_rows); split it",
                limits.max_rows
            );
            return Err(ApiError::new(Code::BatchTooLarge, detail));
        }
        let mut images = ImageSet::new(
            batch,
            plans.iter().map(|plan| plan.as_ref().map(E::images).unwrap_or_default()),
        );
        admission.reserve(rows.max(1), images.distinct())?;
        let beside_body = images.extra_bytes(model.info.preprocessing);
        let capacity = services.engine.settings().capacity_bytes;
        check_bytes(context.notes().bytes_in.saturating_add(beside_body), capacity)?;
        admission.reserve_bytes(beside_body)?;

        images.parse(&state.settings().input, services.fetcher.as_ref()).await?;
        let files = images.files();
        if files > 0 {
            // The engine's own estimate does not include the wait for a decoding thread, so check that wait here.
            admission.check_wait(services.images.wait(admission.call(), files))?;
        }
        let tokens = tokenize_all(&plans, &model, state.metrics()).await?;
        let find = images.start_lookup(services, &model, context, &admission);
        let items = plans.into_iter().zip(tokens).enumerate().map(|(index, (plan, tokens))| {
            let (plan, tokens) = (plan?, tokens.map_err(|error| named(error, index, batch))?);
            Ok(Item { images: find.of(index), plan, tokens })
        });
        Ok(Call {
            items: items.collect(),
            model,
            admission,
            engine: services.engine.clone(),
            context: context.clone(),
            metrics: std::sync::Arc::clone(state.metrics()),
        })
    }
}

impl<E: Endpoint> Call<E> {
    /// Runs one input until its answer is complete, and counts the outcome in the metrics.
    ///
    /// # Errors
    /// Those of this input or of the server, and those of [`within`].
    pub(crate) async fn run(&self, item: Result<Item<E>, ApiError>) -> Result<E::Answer, ApiError> {
        let run = self.run_uncounted(item);
        let answer = within(&self.engine, self.admission.deadline(), run).await;
        self.count(answer.as_ref().err());
        answer
    }

    async fn run_uncounted(&self, item: Result<Item<E>, ApiError>) -> Result<E::Answer, ApiError> {
        let Item { plan, tokens, images } = item?;
        let images = self.images(images).await?;
        let infos = images.iter().map(|image| image.info).collect();
        let task = plan.task(images, &tokens).into();
        let answered = self.admission.submit(self.model.info.id, task).await?;
        let output = typed::<E>(answered.output)?;
        self.context.note(|notes| {
            notes.add_task(answered.timing);
            notes.tokens += E::generated_tokens(&output);
        });
        let began = Instant::now();
        let parts = AnswerParts { model: &self.model, images: infos, tokens: &tokens, output };
        let answer = plan.answer(parts);
        self.metrics
            .stage_duration_seconds
            .with_label_values(&["post"])
            .observe(began.elapsed().as_secs_f64());
        answer
    }

    /// Waits until all images of an input are fetched and decoded.
    ///
    /// # Errors
    /// The error of the first image that failed, in the order of the images.
    pub(crate) async fn images(
        &self,
        images: Vec<SharedImageFuture>,
    ) -> Result<Vec<PreparedImage>, ApiError> {
        let found = futures_util::future::join_all(images).await;
        found.into_iter().collect()
    }

    /// Counts an input's outcome in the metric `items_total`.
    pub(crate) fn count(&self, error: Option<&ApiError>) {
        let code = error.map_or("ok", |error| error.code.name());
        let labels = [E::TASK, self.model.info.name.as_str(), code];
        self.metrics.items_total.with_label_values(&labels).inc();
    }
}

impl<E: Endpoint> Item<E> {
    /// Takes the input apart for `stream`, which does not use [`Call::run`].
    pub(crate) fn into_parts(self) -> (E, E::Tokens, Vec<SharedImageFuture>) {
        (self.plan, self.tokens, self.images)
    }
}

/// Checks a count against a limit. The error names the field and the setting of the limit.
///
/// # Errors
/// `batch_too_large`.
pub(crate) fn check_count(
    field: &str,
    count: usize,
    max: usize,
    setting: &str,
) -> Result<(), ApiError> {
    if count <= max {
        return Ok(());
    }
    let given =
        if count > MAX_LISTED { format!("more than {MAX_LISTED}") } else { count.to_string() };
    let detail = format!("{given} given, at most {max} are allowed per request ({setting})");
    Err(ApiError::field(Code::BatchTooLarge, field, detail))
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

/// Validates every input. The `invalid_request` errors of all inputs are collected and fail the whole call;
/// `batch_too_large` fails it at once.
fn plan_all<E: Endpoint>(
    inputs: Vec<E::Input>,
    limits: &Limits,
    model: &Model,
    batch: bool,
) -> Result<Vec<Result<E, ApiError>>, ApiError> {
    let mut invalid: Vec<FieldError> = Vec::new();
    let mut plans = Vec::with_capacity(inputs.len());
    for (index, input) in inputs.into_iter().enumerate() {
        let plan = E::plan(input, limits, model).map_err(|error| named(error, index, batch));
        match plan {
            Err(error) if error.code == Code::BatchTooLarge => return Err(error),
            Err(error) if error.code == Code::InvalidRequest => invalid.extend(error.errors),
            plan => plans.push(plan),
        }
    }
    if invalid.is_empty() {
        Ok(plans)
    } else {
        Err(ApiError::fields(Code::InvalidRequest, invalid))
    }
}

/// Prefixes the fields of an error with the input's position if the call is a batch.
fn named(error: ApiError, index: usize, batch: bool) -> ApiError {
    if batch { error.prefix_fields(&format!("inputs[{index}]")) } else { error }
}

/// Tokenises the texts of every input. If they are longer than [`INLINE_TEXT_BYTES`] in total, does this on a blocking
/// thread, so that the threads that serve connections are not delayed.
async fn tokenize_all<E: Endpoint>(
    plans: &[Result<E, ApiError>],
    model: &Model,
    metrics: &Metrics,
) -> Result<Vec<Result<E::Tokens, ApiError>>, ApiError> {
    let began = Instant::now();
    let bytes: usize = plans.iter().flatten().map(E::text_bytes).sum();
    let tokenize =
        |plans: &[Result<E, ApiError>], model: &Model| -> Vec<Result<E::Tokens, ApiError>> {
            let each = plans.iter().map(|plan| match plan {
                Ok(_) if crate::faults::at("http::tokenize") => Err(ApiError::internal()),
                Ok(plan) => plan.tokenize(model),
                Err(error) => Err(error.clone()),
            });
            each.collect()
        };
    let tokens = if bytes <= INLINE_TEXT_BYTES {
        tokenize(plans, model)
    } else {
        let (plans, model) = (plans.to_vec(), model.clone());
        let task = tokio::task::spawn_blocking(move || tokenize(&plans, &model));
        task.await.map_err(|error| {
            tracing::error!(error = clipped(&error), "the tokenizer panicked");
            ApiError::internal()
        })?
    };
    if bytes > 0 {
        let seconds = began.elapsed().as_secs_f64();
        metrics.stage_duration_seconds.with_label_values(&["tokenize"]).observe(seconds);
    }
    for count in tokens.iter().flatten().flat_map(E::token_counts) {
        metrics.prompt_tokens.observe(count as f64);
    }
    Ok(tokens)
}
