//! Does the backend still work? Asked after a unit of which nothing came: then either its items are poisoned, which costs
//! them alone, or the backend is broken, which would cost everybody. Items of our own, known to be good, tell which.

use super::Worker;
use crate::engine::backend::{Backend, OnePassOutput};
use crate::task::ModelId;

impl<B: Backend> Worker<B> {
    /// Runs one small unit of each kind that `model` has; true when all succeed with finite numbers. Takes about as
    /// long as one short request, so poisoned requests slow the others down by no more than good ones would.
    /// A device that has no memory left says nothing about whether it works.
    pub(super) fn probe(&mut self, model: ModelId) -> bool {
        if crate::faults::at("engine::probe") {
            return false;
        }
        let Some(info) = self.shared.models.get(model.0).cloned() else { return true };
        let full_before = self.shared.metrics.oom_total.get();
        let image = self.warm_tower(&info, false);
        let works = image.is_ok_and(|image| self.warm_texts(&info, &image, false).is_ok());
        if self.shared.metrics.oom_total.get() > full_before {
            return true;
        }
        if works {
            tracing::warn!(
                model.id = info.name,
                "the backend works: the failed items were at fault"
            );
        }
        works
    }
}

/// True when what a probe gave could be an answer.
pub(super) fn is_finite<M>(output: &OnePassOutput<M>) -> bool {
    match output {
        OnePassOutput::Memory(_) => true,
        OnePassOutput::Logprob(value) | OnePassOutput::Probability(value) => value.is_finite(),
        OnePassOutput::Embedding(embedding) => {
            embedding.as_slice().iter().all(|value| value.is_finite())
        }
    }
}
