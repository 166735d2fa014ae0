//! Images that wait for a vision tower. Each image is one job, however many tasks wait for it. A vision batch
//! computes one output of one tower.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::costs::Costs;
use super::{Ready, after_linger};
use crate::engine::EngineSettings;
use crate::engine::ids::{CallId, FeatureKey, TaskId};
use crate::fairness::{Pick, Turns};
use crate::task::VisionOutput;

#[derive(Debug)]
struct ImageJob {
    bytes: u64,
    arrival: Instant,
    waiters: Vec<(TaskId, CallId)>,
}

impl ImageJob {
    /// True if the image may be encoded while `pinned` bytes of features are pinned. If nothing is pinned, any image may
    /// be encoded. An image that only bulk work waits for must leave half of the budget to others.
    fn fits_budget(&self, pinned: u64, settings: &EngineSettings) -> bool {
        let parts = if self.is_interactive() { 1 } else { 2 };
        pinned == 0
            || pinned.saturating_add(self.bytes) <= settings.max_pinned_feature_bytes / parts
    }

    /// True if any waiter is not bulk work.
    fn is_interactive(&self) -> bool {
        self.waiters.iter().any(|(_, call)| !call.client.is_bulk())
    }
}

/// Waiting images, queued fairly by client and call. A job is in the queue of every call that waits for it.
#[derive(Debug)]
pub(super) struct VisionStage {
    jobs: HashMap<FeatureKey, ImageJob>,
    turns: Turns<FeatureKey>,
}

/// A vision batch; its images have been removed from the queue.
pub(super) struct Batch {
    pub(super) output: VisionOutput,
    pub(super) images: Vec<FeatureKey>,
    pub(super) waited: Vec<Duration>,
    /// The tasks that waited for these images, each with the image that it waited for.
    pub(super) left: Vec<(TaskId, FeatureKey)>,
    pub(super) full: bool,
}

impl VisionStage {
    pub(super) fn new() -> Self {
        Self { jobs: HashMap::new(), turns: Turns::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    pub(super) fn push(
        &mut self,
        key: FeatureKey,
        bytes: u64,
        task: TaskId,
        call: CallId,
        now: Instant,
    ) {
        let job =
            self.jobs.entry(key).or_insert(ImageJob { bytes, arrival: now, waiters: Vec::new() });
        if job.waiters.iter().all(|&(_, waiting)| waiting != call) {
            self.turns.push(call, key);
        }
        job.waiters.push((task, call));
    }

    /// Removes a waiter. If it was the last waiter, also removes the job and returns true.
    pub(super) fn leave(&mut self, key: FeatureKey, task: TaskId) -> bool {
        let Some(job) = self.jobs.get_mut(&key) else { return false };
        let Some(place) = job.waiters.iter().position(|&(waiting, _)| waiting == task) else {
            return false;
        };
        let (_, call) = job.waiters.swap_remove(place);
        if job.waiters.iter().all(|&(_, waiting)| waiting != call) {
            self.turns.remove(call, key);
        }
        let gone = job.waiters.is_empty();
        if gone {
            self.jobs.remove(&key);
        }
        gone
    }

    /// Returns when the next batch that begins with bulk work, or with other work, can run.
    pub(super) fn ready(
        &self,
        bulk: bool,
        now: Instant,
        linger: Duration,
        pinned: u64,
        settings: &EngineSettings,
        costs: &Costs,
    ) -> Ready {
        let fits = |key: &FeatureKey| self.jobs[key].fits_budget(pinned, settings);
        let Some(head) = self.turns.front_of(bulk).filter(fits) else { return Ready::No };
        // Count only images for the same output as the image whose turn is next, because images for other outputs
        // cannot join the same batch.
        let mates = || self.jobs.iter().filter(|(key, _)| key.output == head.output);
        let full = mates().count() >= most_images(head.output, settings, costs);
        let oldest = mates().map(|(_, job)| job.arrival).min().unwrap_or(now);
        after_linger(oldest, linger, full, now)
    }

    /// Takes the next batch, which begins with bulk work or with other work. The caller has checked that it is ready.
    pub(super) fn take(
        &mut self,
        bulk: bool,
        now: Instant,
        pinned: u64,
        settings: &EngineSettings,
        costs: &Costs,
    ) -> Batch {
        let output = self.turns.front_of(bulk).expect("a ready stage has an image").output;
        let most = most_images(output, settings, costs);
        let (jobs, mut chosen, mut bytes, mut full) = (&self.jobs, Vec::new(), pinned, false);
        let pick = |key| {
            if chosen.contains(&key) {
                return Pick::Forget;
            }
            let job = &jobs[&key];
            // Each further image takes as long as the first, so images of bulk work would delay the others.
            if !bulk && !job.is_interactive() {
                return Pick::PassClient;
            }
            if key.output != output {
                return Pick::Pass;
            }
            if chosen.len() == most || !job.fits_budget(bytes, settings) {
                full = true;
                return Pick::Stop;
            }
            bytes += job.bytes;
            chosen.push(key);
            Pick::Take
        };
        if bulk {
            self.turns.take_bulk(pick)
        } else {
            self.turns.take(pick)
        };
        full |= chosen.len() == most;
        let mut batch =
            Batch { output, images: chosen, waited: Vec::new(), left: Vec::new(), full };
        for &key in &batch.images {
            let job = self.jobs.remove(&key).expect("a chosen image has a job");
            batch.waited.push(now.saturating_duration_since(job.arrival));
            for (task, call) in job.waiters {
                self.turns.remove(call, key);
                batch.left.push((task, key));
            }
        }
        batch
    }
}

/// Returns how many images a batch may hold so that the batch's estimated time stays in its budget: at least one, and
/// only one until there is an estimate.
#[expect(clippy::cast_sign_loss, reason = "a negative number becomes 0")]
fn most_images(output: VisionOutput, settings: &EngineSettings, costs: &Costs) -> usize {
    let Some(cost) = costs.images(output) else { return 1 };
    // If an image costs next to nothing, `max_batch_images` is the only limit.
    let in_time = (cost.budget(settings.unit_time()) - cost.fixed) / cost.per_item.max(1e-9);
    (in_time as usize).clamp(1, settings.max_batch_images)
}
