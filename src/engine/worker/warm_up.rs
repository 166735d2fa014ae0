//! Warm-up: measures what work costs before the first request, so that there are estimates even for a first burst of
//! requests. It runs one small unit of each kind on each tower and model.
//!
//! These units do not count as served work, and no result is kept. A unit that fails shows that its model cannot be
//! served. `probe` runs the same units to check whether the backend works.

use std::collections::HashMap;

use super::fault::attempt;
use super::meter::Meter;
use crate::engine::WarmUpError;
use crate::engine::backend::{
    Backend, BackendError, GroupSpec, SinglePassOutput, SinglePassRow, StepEvent,
};
use crate::engine::ids::FeatureKey;
use crate::engine::scheduler::{Scheduler, UnitWork};
use crate::engine::shared::Shared;
use crate::task::{
    EmbedOutput, GenerationParams, ImageId, MatchLogits, ModelClass, ModelId, ModelInfo, Pixels,
    Pooling, Scope, TokenIds, TowerId, VisionInfo, VisionOutput,
};

/// Number of tokens in each text: as many as in a short question.
const TEXT_TOKENS: usize = 8;

/// Until real captions have been generated, a caption is assumed to have this many tokens, and to take part in this
/// many units.
const CAPTION_TOKENS: usize = 10;

/// Number of steps to run. The first step also projects the image; the second step is like all later steps.
const STEPS: usize = 2;

/// A unit that failed: what it should have computed, and why it failed.
pub(super) struct UnitFault {
    unit: &'static str,
    cause: String,
}

/// Runs small units on the worker's backend. They belong to no task.
pub(super) struct TrialRun<'a, B> {
    pub(super) backend: &'a mut B,
    pub(super) scheduler: &'a mut Scheduler,
    pub(super) meter: &'a mut Meter,
    pub(super) shared: &'a Shared,
}

impl<B: Backend> TrialRun<'_, B> {
    /// Runs the units of all models and learns their costs. A unit that fails is logged and not measured; the other
    /// models are still warmed up.
    ///
    /// # Errors
    /// `ModelFailed` for the first unit that failed.
    pub(super) fn warm_up(&mut self) -> Result<(), WarmUpError> {
        let shared = self.shared;
        let mut images: HashMap<TowerId, B::EncoderStates> = HashMap::new();
        let mut outcome = Ok(());
        for model in shared.models.iter() {
            let warmed = self.warm_model(model, &mut images);
            outcome = outcome.and(warmed.map_err(|UnitFault { unit, cause }| {
                WarmUpError::ModelFailed { model: model.name.clone(), unit, cause }
            }));
        }
        outcome
    }

    /// Runs the units of one model. `images` holds the features from towers that have already run for other models.
    fn warm_model(
        &mut self,
        model: &ModelInfo,
        images: &mut HashMap<TowerId, B::EncoderStates>,
    ) -> Result<(), UnitFault> {
        let image = match &model.vision {
            None => None,
            Some(vision) => {
                let image = match images.get(&vision.tower) {
                    Some(image) => image.clone(),
                    None => self.encode_image(vision, true)?,
                };
                images.insert(vision.tower, image.clone());
                Some(image)
            }
        };
        self.run_texts(model, image.as_ref(), true)
    }

    /// Encodes a black image and returns its features. If `learn` is set, learns the cost from a single run. On a CPU, a
    /// second run would make startup much slower, because images take by far the most time. One run is enough, because
    /// a slow cold start soon loses its weight in the average. Backends for which that is not enough say so.
    pub(super) fn encode_image(
        &mut self,
        vision: &VisionInfo,
        learn: bool,
    ) -> Result<B::EncoderStates, UnitFault> {
        const UNIT: &str = "encoding an image";
        let (size, tower) = (vision.preprocessing, vision.tower);
        let black = vec![0; 3 * size.width as usize * size.height as usize];
        let black = Pixels::new(size.width, size.height, black);
        let image = ImageId::from_digest([0; 32]);
        let output = VisionOutput::last(tower);
        let key = FeatureKey { output, scope: Scope::EVERYONE, image, preprocessing: size };
        let work = UnitWork::Encode { output, images: vec![key] };
        let work = learn.then_some(&work);
        let before = if learn { self.backend.units_to_warm_up() } else { 0 };
        for _ in 0..before {
            self.measure(UNIT, None, |backend| backend.encode(output, &[&black]))?;
        }
        let encoded = self.measure(UNIT, work, |backend| backend.encode(output, &[&black]))?;
        encoded.into_iter().next().ok_or_else(|| UnitFault::without_result(UNIT))
    }

    /// Runs each kind of text unit. If `learn` is set, runs each at least twice: the first run brings the weights into
    /// memory, the last is measured. `image` holds the features of an image; it is `None` for a model without a vision tower.
    pub(super) fn run_texts(
        &mut self,
        model: &ModelInfo,
        image: Option<&B::EncoderStates>,
        learn: bool,
    ) -> Result<(), UnitFault> {
        let before = if learn { self.backend.units_to_warm_up() } else { 0 };
        for _ in 0..before.max(1) {
            self.run_text_units(model, image, false)?;
        }
        if learn { self.run_text_units(model, image, true) } else { Ok(()) }
    }

    fn run_text_units(
        &mut self,
        model: &ModelInfo,
        image: Option<&B::EncoderStates>,
        learn: bool,
    ) -> Result<(), UnitFault> {
        let text = TokenIds::new([0; TEXT_TOKENS]);
        let Some(image) = image else {
            let output = EmbedOutput { pooling: Pooling::Cls, layer: None };
            let row = SinglePassRow::EmbedText { text, output };
            return self.run_pass("embedding a text", model.id, row, 0.0, learn).map(drop);
        };
        let image_work = self.scheduler.image_work(model.id);
        match model.class {
            ModelClass::ConditionalGeneration => {
                self.run_steps(model.id, image.clone(), image_work, learn)?;
            }
            ModelClass::QuestionAnswering => {
                const UNIT: &str = "encoding a question";
                let question = text.clone();
                // The cost of several questions about one image is the higher one.
                let row = SinglePassRow::EncodeQuestion {
                    image: image.clone(),
                    question,
                    is_only_text: false,
                    explain: None,
                };
                match self.run_pass(UNIT, model.id, row, image_work, learn)? {
                    SinglePassOutput::EncoderStates { states, .. } => {
                        self.run_steps(model.id, states, 0.0, learn)?;
                    }
                    SinglePassOutput::Scored(_)
                    | SinglePassOutput::MatchLogits(_)
                    | SinglePassOutput::Embedding(_) => {
                        return Err(UnitFault::without_result(UNIT));
                    }
                }
            }
            ModelClass::ImageTextRetrieval | ModelClass::Base => {
                let output = EmbedOutput::PROJECTION;
                let row = SinglePassRow::EmbedText { text: text.clone(), output };
                self.run_pass("embedding a text", model.id, row, 0.0, learn)?;
                // This row only projects one image, so its time says nothing about text units.
                if !learn {
                    let pooling = Pooling::Projection;
                    let row = SinglePassRow::EmbedImage { image: image.clone(), pooling };
                    self.run_pass("embedding an image", model.id, row, 0.0, false)?;
                }
            }
            ModelClass::Vision if !learn => {
                let pooling = Pooling::Pooler;
                let row = SinglePassRow::EmbedImage { image: image.clone(), pooling };
                self.run_pass("embedding an image", model.id, row, 0.0, false)?;
            }
            ModelClass::Vision | ModelClass::Text => {}
        }
        if model.class.has_matching_head() {
            let row = SinglePassRow::MatchPair { image: image.clone(), text, is_only_text: false };
            self.run_pass("matching an image and a text", model.id, row, image_work, learn)?;
        }
        Ok(())
    }

    /// Runs one single-pass row, and fails if its numbers are not finite. If `learn` is set, records its cost as the
    /// cost of a row of [`TEXT_TOKENS`] tokens.
    fn run_pass(
        &mut self,
        unit: &'static str,
        model: ModelId,
        row: SinglePassRow<B::EncoderStates>,
        image_work: f64,
        learn: bool,
    ) -> Result<SinglePassOutput<B::EncoderStates>, UnitFault> {
        let tokens = TEXT_TOKENS as f64 + image_work;
        let work = UnitWork::SinglePass { model, rows: Vec::new(), work: tokens };
        let rows = [row];
        let outputs = self.measure(unit, learn.then_some(&work), |backend| {
            backend.run_single_pass(model, &rows)
        })?;
        if learn {
            self.meter.record_finished_row(1, tokens);
        }
        let output = outputs.into_iter().next().ok_or_else(|| UnitFault::without_result(unit))?;
        if is_finite(&output) { Ok(output) } else { Err(UnitFault::non_finite(unit)) }
    }

    /// Runs the first steps of one sequence, and fails if their numbers are not finite.
    fn run_steps(
        &mut self,
        model: ModelId,
        states: B::EncoderStates,
        image_work: f64,
        learn: bool,
    ) -> Result<(), UnitFault> {
        const UNIT: &str = "generating a token";
        let params = GenerationParams { min_new_tokens: STEPS, ..GenerationParams::greedy(STEPS) };
        let spec = GroupSpec { model, states, prompt: None, params, sequence: 0, explain: None };
        let mut group = self.measure(UNIT, None, |backend| Ok(backend.open(spec)))?;
        for work in [1.0 + image_work, 1.0] {
            let work = UnitWork::Step { model, groups: Vec::new(), joining: 0, work };
            let step = |backend: &mut B| backend.step(model, &mut [&mut group]);
            let events = self.measure(UNIT, learn.then_some(&work), step)?;
            let finite =
                |event: &StepEvent| event.token.is_none_or(|token| token.logprob.is_finite());
            if events.is_empty() {
                return Err(UnitFault::without_result(UNIT));
            }
            if !events.iter().all(finite) {
                return Err(UnitFault::non_finite(UNIT));
            }
        }
        if learn {
            self.meter.record_finished_row(CAPTION_TOKENS, CAPTION_TOKENS as f64 + image_work);
        }
        Ok(())
    }

    /// Calls the backend. If `work` is given, learns its cost from the elapsed time.
    fn measure<T>(
        &mut self,
        unit: &'static str,
        work: Option<&UnitWork>,
        call: impl FnOnce(&mut B) -> Result<T, BackendError>,
    ) -> Result<T, UnitFault> {
        let start = self.shared.clock.now();
        let result = attempt(|| call(self.backend));
        self.meter.record_call("warm-up", 1, &result);
        let value = result.map_err(|fault| UnitFault { unit, cause: fault.cause() })?;
        if let Some(work) = work {
            let now = self.shared.clock.now();
            self.scheduler.record(work, now.saturating_duration_since(start), true);
            self.meter.record_measurement(work.stage(), now);
        }
        Ok(value)
    }
}

impl UnitFault {
    fn non_finite(unit: &'static str) -> Self {
        Self { unit, cause: "it returned NaN or infinite values".to_owned() }
    }

    fn without_result(unit: &'static str) -> Self {
        Self { unit, cause: "it returned no result of the expected kind".to_owned() }
    }
}

/// True if the output contains no NaN or infinity.
fn is_finite<M>(output: &SinglePassOutput<M>) -> bool {
    match output {
        SinglePassOutput::EncoderStates { .. } => true,
        SinglePassOutput::Scored(text) => text.tokens.iter().all(|token| token.logprob.is_finite()),
        SinglePassOutput::MatchLogits(MatchLogits { no_match, is_match }) => {
            no_match.is_finite() && is_match.is_finite()
        }
        SinglePassOutput::Embedding(embedding) => {
            embedding.as_slice().iter().all(|value| value.is_finite())
        }
    }
}
