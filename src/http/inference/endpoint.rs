//! The trait [`Endpoint`], which defines everything that differs between the inference endpoints. The files in `routes`
//! implement the trait, and `call` drives it.

use serde::Serialize;

use super::arity::ImageArity;
use super::image_args::ImageArg;
use super::text::TextEncoder;
use crate::http::error::{ApiError, Code};
use crate::http::extract::request::{BatchRequest, Request, SingleRequest};
use crate::http::settings::{Limits, MAX_LISTED};
use crate::http::state::models::{Eligible, Model, Models};
use crate::task::{ImageInfo, PreparedImage, Task, TaskKind, TaskOutput, TaskShape};

/// Count of numbers that take as much memory as one listed token with its id, text and log-probability.
pub(crate) const NUMBERS_PER_TOKEN: usize = 3;

/// The parts of the pipeline that differ between endpoints. A value of a type that implements this trait is one
/// validated input.
pub(crate) trait Endpoint: Clone + Sized + Send + Sync + 'static {
    /// Value of the metric label `task`.
    const TASK: &'static str;
    /// The models that serve this endpoint.
    const MODELS: Eligible;
    /// The request of the single call.
    type Single: SingleRequest;
    /// The request of the batch call, which has the same kind of inputs.
    type Batch: BatchRequest<Input = InputOf<Self>>;
    /// How many images an input has.
    type Images: ImageArity;
    /// Token ids of an input's texts.
    type Tokens: Send + Sync + 'static;
    /// What the engine computes for one input.
    type Task: TaskKind;
    /// Answer to one input, without the model's name.
    type Answer: Serialize + Send + 'static;

    /// Checks what the field types cannot check: conflicts between fields, counts, and whether the model supports the
    /// request.
    ///
    /// # Errors
    /// `invalid_request` and `batch_too_large` reject the whole call; any other error concerns only this input.
    fn plan(input: InputOf<Self>, context: &PlanContext<'_>) -> Result<Self, ApiError>;

    /// Returns how many rows and images the input needs in the engine, for both tasks if there are two.
    fn shape(&self) -> TaskShape;

    /// Returns the maximum number of rows of one call, and the setting that determines it.
    fn max_rows(limits: &Limits) -> (usize, &'static str) {
        (limits.max_rows, "limits.max_rows")
    }

    /// Returns the input's images, in the order in which `task` receives them.
    fn images(&self) -> EachImage<Self, ImageArg>;

    /// Returns the total size of the input's texts in bytes.
    fn text_bytes(&self) -> usize;

    /// Tokenises the input's texts. May be interrupted and called again.
    ///
    /// # Errors
    /// `text_too_long` or `invalid_request`, naming the field.
    fn tokenize(&self, texts: &TextEncoder) -> Result<Self::Tokens, ApiError>;

    /// Returns the length of each text in tokens, for the metric `prompt_tokens`.
    fn token_counts(tokens: &Self::Tokens) -> Vec<usize>;

    /// Returns the largest possible count of numbers in the answer if it can be large, otherwise 0. A listed token counts
    /// as [`NUMBERS_PER_TOKEN`] numbers.
    /// [`Limits::max_embedding_values`] bounds their total over a call.
    fn answer_values(&self, _tokens: &Self::Tokens, _model: &Model) -> usize {
        0
    }

    /// Builds the task for the engine.
    fn task(&self, images: &EachImage<Self, PreparedImage>, tokens: &Self::Tokens) -> Self::Task;

    /// Returns the model of the second task, if there is a second task for another model.
    fn second_model(&self) -> Option<&Model> {
        None
    }

    /// Returns the second task of an input whose answer depends on the output of the first task. The second task runs on
    /// [`second_model`](Self::second_model), or else on the model of the first.
    ///
    /// # Errors
    /// Those of the texts that only the first task has produced.
    fn second_task(&self, _first: &FirstOutput<'_, Self>) -> Result<Option<Task>, ApiError> {
        Ok(None)
    }

    /// Builds the answer for the client from the engine's output.
    ///
    /// # Errors
    /// `inference_failed` if the output contains a value that is not finite.
    fn answer(&self, parts: AnswerParts<'_, Self>) -> Result<Self::Answer, ApiError>;

    /// Returns the number of generated tokens, for the access log.
    fn generated_tokens(_output: &OutputOf<Self>) -> usize {
        0
    }
}

/// One input of an endpoint as sent by the client.
pub(crate) type InputOf<E> = <<E as Endpoint>::Single as Request>::Input;

/// One `T` for each image of an input of an endpoint.
pub(crate) type EachImage<E, T> = <<E as Endpoint>::Images as ImageArity>::Each<T>;

/// Output of the engine for one input of an endpoint.
pub(crate) type OutputOf<E> = <<E as Endpoint>::Task as TaskKind>::Output;

/// The values from which [`Endpoint::answer`] builds an answer.
pub(crate) struct AnswerParts<'a, E: Endpoint> {
    pub(crate) model: &'a Model,
    /// Descriptions of the input's images.
    pub(crate) images: EachImage<E, ImageInfo>,
    pub(crate) tokens: &'a E::Tokens,
    pub(crate) output: OutputOf<E>,
    /// The output of the second task, if there was one.
    pub(crate) second: Option<TaskOutput>,
}

/// What [`Endpoint::plan`] may look at besides the input.
pub(crate) struct PlanContext<'a> {
    pub(crate) limits: &'a Limits,
    /// The model that the request selects.
    pub(crate) model: &'a Model,
    /// All loaded models.
    pub(crate) models: &'a Models,
}

/// The values from which [`Endpoint::second_task`] builds a task.
pub(crate) struct FirstOutput<'a, E: Endpoint> {
    /// Model of the first task.
    pub(crate) model: &'a Model,
    /// The images as the second task's model needs them.
    pub(crate) images: &'a EachImage<E, PreparedImage>,
    pub(crate) tokens: &'a E::Tokens,
    pub(crate) output: &'a OutputOf<E>,
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
