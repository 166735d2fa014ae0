//! The preparation of every inference call: read, plan, reserve capacity, tokenise, and parse image values.
//!
//! The trait [`Endpoint`] supplies the parts that differ between endpoints. A call as a whole is rejected only before
//! any of its images are fetched or decoded, for example if an input is invalid, or if the rows of all inputs together
//! cannot be reserved. Once fetching and decoding have begun, an error of one input affects only that input.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Request as HttpRequest;
use serde::de::DeserializeOwned;

use super::arity::ImageArity;
use super::call::{BatchCall, Call, InputResult, PreparedInput, SingleCall, within};
use super::endpoint::{Endpoint, InputOf, PlanContext};
use super::image_args::ImageSet;
use super::plans::{
    BYTES_PER_NUMBER, Inputs, PlannedInput, answer_bytes, named, plan_all, preprocessings,
    second_preprocessing, tokenize_all,
};
use crate::engine::Admission;
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, Code};
use crate::http::extract::fields::Text;
use crate::http::extract::request::{BatchRequest, Request, SingleRequest};
use crate::http::extract::{self, AdmittedBody, AdmittedRequest, head};
use crate::http::settings::Limits;
use crate::http::state::models::Model;
use crate::http::state::{HttpState, Services};

/// Reads and prepares a single call.
///
/// # Errors
/// Those that concern the call as a whole, and those of [`within`].
pub(crate) async fn single<E: Endpoint>(
    http: HttpRequest,
    state: &HttpState,
    context: &RequestContext,
) -> Result<SingleCall<E>, ApiError> {
    let start = Start::new(&http, state, context)?;
    let AdmittedRequest { request, admission } = start.read::<E, E::Single>(http).await?;
    let (model, input, extras) = request.into_parts();
    let SingleCall { call, input, .. } = start.single::<E>(admission, model, input).await?;
    Ok(SingleCall { call, input, extras })
}

/// Reads and prepares a batch call.
///
/// # Errors
/// Those that concern the call as a whole, and those of [`within`].
pub(crate) async fn batch<E: Endpoint>(
    http: HttpRequest,
    state: &HttpState,
    context: &RequestContext,
) -> Result<BatchCall<E>, ApiError> {
    let start = Start::new(&http, state, context)?;
    let AdmittedRequest { request, admission } = start.read::<E, E::Batch>(http).await?;
    let (model, list) = request.into_parts();
    start.batch::<E>(admission, model, list).await
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

    /// Starts the call of a whole request, native or of another API.
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
        within(&self.services.engine, self.deadline, body.json(self.state.jobs())).await
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
        model: impl Into<Option<Text>>,
        list: Vec<InputOf<E>>,
    ) -> Result<BatchCall<E>, ApiError> {
        let prepare = self.prepare::<E>(admission, model.into(), Inputs { list, batch: true });
        let (call, inputs) = within(&self.services.engine, self.deadline, prepare).await?;
        Ok(BatchCall { call, inputs })
    }

    /// Reserves memory for an answer of so many numbers, which the routes of another API put together.
    ///
    /// # Errors
    /// `batch_too_large`; `overloaded`.
    pub(crate) fn reserve_answer(
        &self,
        admission: &mut Admission,
        numbers: usize,
    ) -> Result<(), ApiError> {
        let bytes = numbers as u64 * BYTES_PER_NUMBER;
        let capacity = self.services.engine.settings().capacity_bytes;
        check_bytes(self.body_bytes().saturating_add(bytes), capacity)?;
        Ok(admission.reserve_bytes(bytes)?)
    }

    /// Admits the call and reads its body.
    async fn read<E: Endpoint, R: Request>(
        &self,
        http: HttpRequest,
    ) -> Result<AdmittedRequest<R>, ApiError> {
        let Self { state, services, context, deadline, .. } = *self;
        // Fail before the body is read if no model serves the endpoint.
        services.models.pick(E::MODELS, None)?;
        let read = extract::read(http, state, services, context, deadline);
        within(&services.engine, deadline, read).await
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
            notes.task_name = Some(E::TASK);
            notes.model = Some(model.info.name.clone());
            notes.inputs += inputs.list.len();
        });
        let limits = &state.settings().limits;
        let plan = PlanContext { limits, model: &model, models: &services.models };
        let (plans, mut images) = plan_all::<E>(inputs, &plan)?;
        let needs = self.needs(&plans, &images, &model)?;
        let (jobs, observers) = (state.jobs(), (&**state.metrics(), &context.spans));
        let values = (&state.settings().input, services.fetcher.as_ref());
        let (tokens, answer_bytes) = if admission.is_bulk() {
            // Bulk work waits for all its capacity at once, so the size of the answer must be known before.
            let tokens = tokenize_all(&plans, &model, (jobs, &admission), observers).await?;
            let answer_bytes = self.answer_bytes(&plans, &tokens, &model)?;
            let bytes = needs.bytes + self.body_bytes() + answer_bytes;
            admission.reserve_when_room(needs.rows, needs.images, bytes).await?;
            images.parse(values, (jobs, &admission)).await?;
            (tokens, answer_bytes)
        } else {
            admission.reserve_with_bytes(needs.rows, needs.images, needs.bytes)?;
            images.parse(values, (jobs, &admission)).await?;
            let files = images.files();
            if files > 0 {
                // The engine's own estimate does not include the wait for a decoding thread, so check that wait here.
                let decodes = files * preprocessings(&plans, &model).len();
                admission.check_wait(services.images.estimated_wait(admission.call(), decodes))?;
            }
            let tokens = tokenize_all(&plans, &model, (jobs, &admission), observers).await?;
            let answer_bytes = self.answer_bytes(&plans, &tokens, &model)?;
            admission.reserve_bytes(answer_bytes)?;
            (tokens, answer_bytes)
        };
        let is_large = answer_bytes > 0;
        let has_several = plans.len() > 1;
        let mut find = images.start_lookup(services, context, &admission);
        let inputs = plans.into_iter().zip(tokens).enumerate().map(|(index, (planned, tokens))| {
            let PlannedInput { plan, images } = planned?;
            let tokens = tokens.map_err(|error| named(error, index, batch))?;
            let first = || model.info.vision_tower().preprocessing;
            let second = second_preprocessing(&plan, &model);
            let second_images =
                second.map(|second| E::Images::map_ref(&images, |image| find.get(*image, second)));
            let images = E::Images::map(images, |image| find.get(image, first()));
            let index = has_several.then_some(index);
            Ok(PreparedInput { plan, tokens, images, second_images, index })
        });
        let inputs = inputs.collect();
        let call = Call {
            model,
            admission,
            engine: services.engine.clone(),
            context: context.clone(),
            jobs: jobs.clone(),
            metrics: Arc::clone(state.metrics()),
            is_large,
        };
        Ok((call, inputs))
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

/// Rejects a call that would not fit even into an idle server, because retrying it could never succeed.
fn check_bytes(bytes: u64, capacity: u64) -> Result<(), ApiError> {
    if bytes <= capacity {
        return Ok(());
    }
    let detail = format!(
        "the request needs {bytes} bytes for its body, images, pixels and answer, but the server holds at most {capacity} \
         for all requests (engine.capacity_bytes); split it"
    );
    Err(ApiError::new(Code::BatchTooLarge, detail))
}
