//! What every inference call goes through, single or batch, whatever its endpoint:
//! read - plan - reserve - tokenise - fetch and decode images - submit - answer.
//!
//! An [`Endpoint`] says what is its own about that. Nothing that is refused is fetched or decoded: a malformed input refuses
//! the whole call, then the rows of all inputs are reserved at once. From there on, what is wrong with one input
//! stays with that input.

use std::future::Future;
use std::time::Instant;

use serde::Serialize;

use super::error::{ApiError, Code, FieldError};
use super::extract::fields::{MAX_LISTED, Text};
use super::extract::request::Request;
use super::extract::{self, Admitted};
use super::image_args::{ImageArg, ImageSet, SharedImage};
use super::middleware::context::RequestContext;
use super::models::Model;
use super::settings::Limits;
use super::state::HttpState;
use crate::engine::{Admission, EngineHandle};
use crate::task::{ImageInfo, PreparedImage, Role, Task, TaskOutput};
use crate::telemetry::logging::clipped;
use crate::telemetry::metrics::Metrics;

/// Texts up to this many bytes in all are tokenised on the spot; more would hold up other connections.
const INLINE_TEXT_BYTES: usize = 16 << 10;

/// Waits for a part of a call, whatever it waits for itself: a body, a picture, the worker. It ends early at the deadline,
/// and when the engine can answer nothing any more.
///
/// # Errors
/// `work`'s own; `deadline_exceeded`; `shutting_down` or `worker_down` when the engine ends first.
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

/// What is particular to an endpoint: one value is one input, checked.
pub(crate) trait Endpoint: Clone + Sized + Send + Sync + 'static {
    /// The task's name in metrics.
    const TASK: &'static str;
    /// The role of the models that serve it.
    const ROLE: Role;
    /// One input as the client sent it.
    type Input: Send + 'static;
    /// Its texts as ids.
    type Tokens: Send + Sync + 'static;
    /// One answer, without the model's name.
    type Answer: Serialize + Send + 'static;

    /// Checks what types alone cannot: conflicts, counts, what the model has.
    ///
    /// # Errors
    /// `invalid_request` and `batch_too_large` refuse the whole call, anything else this input alone.
    fn plan(input: Self::Input, limits: &Limits, model: &Model) -> Result<Self, ApiError>;

    /// Rows that it occupies.
    fn rows(&self) -> usize;

    /// Its images, in order.
    fn images(&self) -> Vec<ImageArg>;

    /// Bytes of its texts.
    fn text_bytes(&self) -> usize;

    /// Its texts as ids.
    ///
    /// # Errors
    /// `text_too_long`, naming the field.
    fn tokenize(&self, model: &Model) -> Result<Self::Tokens, ApiError>;

    /// Lengths of its texts in tokens, for the metrics.
    fn token_counts(tokens: &Self::Tokens) -> Vec<usize>;

    /// The task for the worker.
    fn task(&self, images: Vec<PreparedImage>, tokens: &Self::Tokens) -> Task;

    /// The answer for the client.
    ///
    /// # Errors
    /// `inference_failed` when the output is not made of numbers.
    fn answer(&self, parts: AnswerParts<'_, Self::Tokens>) -> Result<Self::Answer, ApiError>;

    /// Tokens that were generated, for the log.
    fn generated_tokens(output: &TaskOutput) -> usize {
        match output {
            TaskOutput::Caption(sequences) => sequences.iter().map(|s| s.tokens.len()).sum(),
            TaskOutput::Vqa(_) | TaskOutput::Similarity(_) | TaskOutput::Embed(_) => 0,
        }
    }
}

/// What an answer is made of.
pub(crate) struct AnswerParts<'a, Tokens> {
    /// The model that answered.
    pub(crate) model: &'a Model,
    /// The input's images, in order.
    pub(crate) images: Vec<ImageInfo>,
    /// The input's texts.
    pub(crate) tokens: &'a Tokens,
    /// What the worker computed.
    pub(crate) output: TaskOutput,
}

/// A call that was read: its inputs are checked next.
pub(crate) struct Opened<'a, R> {
    /// What was asked.
    pub(crate) request: R,
    admission: Admission,
    state: &'a HttpState,
    context: &'a RequestContext,
}

/// A call whose room is reserved; its inputs can run.
pub(crate) struct Call<E: Endpoint> {
    /// The model that answers.
    pub(crate) model: Model,
    /// The call's room.
    pub(crate) admission: Admission,
    pub(crate) engine: EngineHandle,
    context: RequestContext,
    metrics: std::sync::Arc<Metrics>,
    /// The inputs in order, those that were refused by themselves as errors.
    pub(crate) items: Vec<Result<Item<E>, ApiError>>,
}

/// One input, ready to run.
pub(crate) struct Item<E: Endpoint> {
    /// What is asked.
    pub(crate) plan: E,
    /// Its texts.
    pub(crate) tokens: E::Tokens,
    images: Vec<SharedImage>,
}

/// Admits and reads a call. The deadline of the whole call is `deadline`.
///
/// # Errors
/// Everything that concerns the call as a whole.
pub(crate) async fn open<'a, R: Request>(
    http: axum::extract::Request,
    state: &'a HttpState,
    context: &'a RequestContext,
    role: Role,
    deadline: Instant,
) -> Result<Opened<'a, R>, ApiError> {
    let services = state.services()?;
    // Without a model for the endpoint there is nothing to read the body for.
    services.models.pick(role, None)?;
    let Admitted { request, admission } =
        extract::read(http, state, services, context, deadline).await?;
    Ok(Opened { request, admission, state, context })
}

impl<R> Opened<'_, R> {
    /// Checks the inputs, reserves their rows, then tokenises texts and finds images.
    ///
    /// `split` gives the model's name and the inputs; `batch` tells whether inputs are named `inputs[i]` in errors.
    ///
    /// # Errors
    /// What refuses the call as a whole.
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

        let rows: usize = plans.iter().flatten().map(E::rows).sum();
        if rows > limits.max_rows {
            let detail = format!(
                "the call needs {rows} rows, at most {} are taken (limits.max_rows); split it",
                limits.max_rows
            );
            return Err(ApiError::new(Code::BatchTooLarge, detail));
        }
        let mut images = ImageSet::new(batch, &plans);
        admission.reserve(rows.max(1), images.distinct())?;
        let beside_body = images.bytes_beside_body(model.info.preprocessing);
        let capacity = services.engine.settings().capacity_bytes;
        check_bytes(context.notes().bytes_in.saturating_add(beside_body), capacity)?;
        admission.reserve_bytes(beside_body)?;

        images.parse(&state.settings().input, services.fetcher.as_ref()).await?;
        let files = images.files();
        if files > 0 {
            // The engine's own estimate begins where the wait for a decoding thread ends.
            admission.check_wait(services.images.wait(admission.call(), files))?;
        }
        let tokens = tokenize_all(&plans, &model, state.metrics()).await?;
        let find = images.finder(services, &model, context, &admission);
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
    /// Runs one input to its answer, and counts its outcome.
    ///
    /// # Errors
    /// What is wrong with this input, or with the server; as [`within`].
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
        let task = plan.task(images, &tokens);
        let answered = self.admission.submit(self.model.info.id, task).await?;
        self.context.note(|notes| {
            notes.add_task(answered.timing);
            notes.tokens += E::generated_tokens(&answered.output);
        });
        let began = Instant::now();
        let output = answered.output;
        let parts = AnswerParts { model: &self.model, images: infos, tokens: &tokens, output };
        let answer = plan.answer(parts);
        self.metrics
            .stage_duration_seconds
            .with_label_values(&["post"])
            .observe(began.elapsed().as_secs_f64());
        answer
    }

    /// Waits for an input's images.
    ///
    /// # Errors
    /// The first image that cannot be had.
    pub(crate) async fn images(
        &self,
        images: Vec<SharedImage>,
    ) -> Result<Vec<PreparedImage>, ApiError> {
        let found = futures_util::future::join_all(images).await;
        found.into_iter().collect()
    }

    /// Counts an input's outcome.
    pub(crate) fn count(&self, error: Option<&ApiError>) {
        let code = error.map_or("ok", |error| error.code.name());
        let labels = [E::TASK, self.model.info.name.as_str(), code];
        self.metrics.items_total.with_label_values(&labels).inc();
    }
}

impl<E: Endpoint> Item<E> {
    /// Its parts, for who runs it in another way.
    pub(crate) fn into_parts(self) -> (E, E::Tokens, Vec<SharedImage>) {
        (self.plan, self.tokens, self.images)
    }
}

/// Refuses more of something than a limit, naming both.
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
    let detail = format!("{given} given, at most {max} are taken in one call ({setting})");
    Err(ApiError::field(Code::BatchTooLarge, field, detail))
}

/// Refuses a call that would not fit into an idle server either; waiting would be in vain.
fn check_bytes(bytes: u64, capacity: u64) -> Result<(), ApiError> {
    if bytes <= capacity {
        return Ok(());
    }
    let detail = format!(
        "the call needs {bytes} bytes for its body, images and pixels, at most {capacity} are held for all calls \
         (engine.capacity_bytes); split it"
    );
    Err(ApiError::new(Code::BatchTooLarge, detail))
}

/// Plans every input; what refuses the whole call is collected over all of them.
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

/// The error with its input's place in a batch before the fields.
fn named(error: ApiError, index: usize, batch: bool) -> ApiError {
    if batch { error.inside(&format!("inputs[{index}]")) } else { error }
}

/// Tokenises the texts of every input; many of them away from the threads that serve connections.
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
