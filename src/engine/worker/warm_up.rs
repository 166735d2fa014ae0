//! What work costs, measured before anybody waits: one small unit of each kind on each tower and model, so that the
//! first burst already meets estimates. None of it counts as served work, and nothing of it is kept. `probe` runs the
//! same units to learn whether the backend works.

use std::collections::HashMap;
use std::sync::Arc;

use super::Worker;
use super::fault::attempt;
use super::probe::is_finite;
use crate::engine::backend::{
    Backend, BackendError, GroupSpec, OnePassOutput, OnePassRow, StepEvent,
};
use crate::engine::ids::FeatureKey;
use crate::engine::scheduler::UnitWork;
use crate::task::{
    GenerationParams, ImageId, ModelClass, ModelId, ModelInfo, Pixels, Scope, TokenIds, TowerId,
};

/// Tokens of a short question.
const TEXT_TOKENS: usize = 8;

/// Units and tokens of a caption, until some were generated.
const CAPTION_TOKENS: usize = 10;

/// The first step projects the image, the second is like all that follow.
const STEPS: usize = 2;

impl<B: Backend> Worker<B> {
    /// Runs the units and publishes what they cost; true when none failed. One that fails is logged and teaches
    /// nothing: whoever asks for the same will be told.
    pub(super) fn warm_up(&mut self) -> bool {
        let models = Arc::clone(&self.shared.models);
        let mut images: HashMap<TowerId, B::Memory> = HashMap::new();
        let mut works = true;
        for model in models.iter() {
            if !images.contains_key(&model.tower)
                && let Some(image) = self.warm_tower(model, true)
            {
                images.insert(model.tower, image);
            }
            let image = images.get(&model.tower);
            works &= image.is_some_and(|image| self.warm_texts(model, image, true));
        }
        self.publish();
        works
    }

    /// A black image. Once: it takes by far the most time of all, and a cold start is soon outvoted.
    pub(super) fn warm_tower(&mut self, model: &ModelInfo, learn: bool) -> Option<B::Memory> {
        let (size, tower) = (model.preprocessing, model.tower);
        let black = vec![0; 3 * size.width as usize * size.height as usize];
        let black = Pixels::new(size.width, size.height, black.into());
        let image = ImageId::from_digest([0; 32]);
        let key = FeatureKey { tower, scope: Scope::EVERYONE, image, preprocessing: size };
        let work = UnitWork::Encode { tower, images: vec![key] };
        let work = learn.then_some(&work);
        let encoded = self.measure(work, |backend| backend.encode(tower, &[&black]));
        encoded?.into_iter().next()
    }

    /// Each kind of text unit; true when none failed. To learn from it, it runs twice: the first touches the weights,
    /// the second is measured.
    pub(super) fn warm_texts(&mut self, model: &ModelInfo, image: &B::Memory, learn: bool) -> bool {
        let first = self.warm_text_units(model, image, false);
        first && (!learn || self.warm_text_units(model, image, true))
    }

    fn warm_text_units(&mut self, model: &ModelInfo, image: &B::Memory, learn: bool) -> bool {
        let text = TokenIds::new([0; TEXT_TOKENS]);
        let image_work = self.scheduler.image_work(model.id);
        let works = match model.class {
            ModelClass::ConditionalGeneration => {
                self.warm_steps(model.id, image.clone(), image_work, learn)
            }
            ModelClass::QuestionAnswering => {
                let question = text.clone();
                let row = OnePassRow::EncodeQuestion { image: image.clone(), question };
                match self.warm_pass(model.id, row, image_work, learn) {
                    Some(OnePassOutput::Memory(states)) => {
                        self.warm_steps(model.id, states, 0.0, learn)
                    }
                    _ => false,
                }
            }
            ModelClass::ImageTextRetrieval | ModelClass::Base => {
                let row = OnePassRow::EmbedText { text: text.clone() };
                self.warm_pass(model.id, row, 0.0, learn).is_some()
            }
        };
        if !works || !model.class.has_matching_head() {
            return works;
        }
        let row = OnePassRow::MatchPair { image: image.clone(), text };
        self.warm_pass(model.id, row, image_work, learn).is_some()
    }

    /// One row of [`TEXT_TOKENS`] tokens; `None` when it fails or its numbers are not finite.
    fn warm_pass(
        &mut self,
        model: ModelId,
        row: OnePassRow<B::Memory>,
        image_work: f64,
        learn: bool,
    ) -> Option<OnePassOutput<B::Memory>> {
        let tokens = TEXT_TOKENS as f64 + image_work;
        let work = UnitWork::Score { model, rows: Vec::new(), work: tokens };
        let rows = [row];
        let outputs =
            self.measure(learn.then_some(&work), |backend| backend.score(model, &rows))?;
        if learn {
            self.meter.row_ended(1, tokens);
        }
        outputs.into_iter().next().filter(is_finite)
    }

    /// The first steps of one sequence; false when one fails or its numbers are not finite.
    fn warm_steps(
        &mut self,
        model: ModelId,
        memory: B::Memory,
        image_work: f64,
        learn: bool,
    ) -> bool {
        let params = GenerationParams { min_new_tokens: STEPS, ..GenerationParams::greedy(STEPS) };
        let spec = GroupSpec { model, memory, prompt: None, params, sequence: 0 };
        let Some(mut group) = self.measure(None, |backend| Ok(backend.open(spec))) else {
            return false;
        };
        for work in [1.0 + image_work, 1.0] {
            let work = UnitWork::Step { model, groups: Vec::new(), joining: 0, work };
            let step = |backend: &mut B| backend.step(model, &mut [&mut group]);
            let events = self.measure(learn.then_some(&work), step).unwrap_or_default();
            let finite =
                |event: &StepEvent| event.token.is_none_or(|token| token.logprob.is_finite());
            if events.is_empty() || !events.iter().all(finite) {
                return false;
            }
        }
        if learn {
            self.meter.row_ended(CAPTION_TOKENS, CAPTION_TOKENS as f64 + image_work);
        }
        true
    }

    /// Makes a call, and learns from it what `work` costs.
    fn measure<T>(
        &mut self,
        work: Option<&UnitWork>,
        call: impl FnOnce(&mut B) -> Result<T, BackendError>,
    ) -> Option<T> {
        let start = self.now();
        let backend = &mut self.backend;
        let result = attempt(|| call(backend));
        self.meter.call("warm-up", 1, &result);
        let value = result.ok()?;
        if let Some(work) = work {
            self.record(work, start, true);
        }
        Some(value)
    }
}
