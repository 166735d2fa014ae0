//! Checks whether the backend still works, after a failure that may be its fault: a unit in which every item failed, a
//! group that could not be opened, or an output that is not finite. If the items are at fault, only their tasks fail.
//! If the backend is broken, every task would fail. Running items that are known to be good shows which is the case.

use super::Worker;
use crate::engine::backend::{Backend, SinglePassOutput};
use crate::task::ModelId;

impl<B: Backend> Worker<B> {
    /// Runs one small unit of each kind that `model` supports. Returns true if all of them succeed with finite numbers.
    ///
    /// The probe takes about as long as one short request, so a request that makes units fail slows down the others no
    /// more than a good request would. If the probe runs out of memory, that proves nothing, and the backend counts as
    /// working.
    pub(super) fn probe(&mut self, model: ModelId) -> bool {
        if crate::faults::at("engine::probe") {
            return false;
        }
        let Some(info) = self.shared.models.get(model.0).cloned() else { return true };
        let full_before = self.meter.out_of_memory();
        let image = self.warm_tower(&info, false);
        let works = image.is_ok_and(|image| self.warm_texts(&info, &image, false).is_ok());
        if self.meter.out_of_memory() > full_before {
            return true;
        }
        if works {
            tracing::warn!(
                model.id = info.name,
                "the backend passed its probe; the failed items were at fault"
            );
        }
        works
    }
}

/// True if the output contains no NaN or infinity.
pub(super) fn is_finite<M>(output: &SinglePassOutput<M>) -> bool {
    match output {
        SinglePassOutput::EncoderStates(_) => true,
        SinglePassOutput::Logprob(value) | SinglePassOutput::Probability(value) => {
            value.is_finite()
        }
        SinglePassOutput::Embedding(embedding) => {
            embedding.as_slice().iter().all(|value| value.is_finite())
        }
    }
}
