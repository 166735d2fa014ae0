//! Checks whether the backend still works, after a failure that the backend may have caused: a unit in which every item
//! failed, a group that could not be opened, or an output that is not finite. If the items are at fault, only their
//! tasks fail. If the backend is broken, every task would fail. Running items that are known to be good shows which is
//! the case.

use super::warm_up::TrialRun;
use crate::engine::backend::Backend;
use crate::task::ModelId;

/// Runs one small unit of each kind that `model` supports. Returns true if all of them succeed with finite numbers.
///
/// The probe takes about as long as one short request, so a request that makes units fail delays other requests no more
/// than a good request would. If the probe runs out of memory, that proves nothing, and the backend counts as working.
pub(super) fn passes_probe<B: Backend>(trial: &mut TrialRun<'_, B>, model: ModelId) -> bool {
    if crate::faults::at("engine::probe") {
        return false;
    }
    let Some(info) = trial.shared.models.get(model.0) else { return true };
    let full_before = trial.meter.out_of_memory();
    let image = info.vision.as_ref().map(|vision| trial.encode_image(vision, false)).transpose();
    let works = image.is_ok_and(|image| trial.run_texts(info, image.as_ref(), false).is_ok());
    if trial.meter.out_of_memory() > full_before {
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
