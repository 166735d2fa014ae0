//! Adds points at which the checker may switch threads where the engine itself has none: at each reading of the clock,
//! and before and after each backend call.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::Clock;
use crate::engine::backend::{
    Backend, BackendError, GroupSpec, SinglePassOutput, SinglePassRow, StepEvent,
};
use crate::engine::sync::point;
use crate::engine::testing::ManualClock;
use crate::engine::testing::fake::{FakeBackend, FakeEncoderStates, FakeGroup};
use crate::task::{ModelId, ModelInfo, Pixels, TowerId, VisionOutput};

/// Time by which the clock moves each time the engine reads it.
const TICK: Duration = Duration::from_millis(1);

/// Returns the clock for the engine, which moves with every reading.
pub(super) fn ticking(clock: &ManualClock) -> Clock {
    let clock = clock.clone();
    Clock::new(move || {
        point();
        clock.advance(TICK);
        clock.now()
    })
}

/// The fake backend, with a switch point before and after its calls.
pub(super) struct PacedBackend {
    pub(super) backend: FakeBackend,
    pub(super) clock: ManualClock,
    /// When each backend call began.
    pub(super) begun: Arc<Mutex<Vec<Instant>>>,
}

impl PacedBackend {
    fn paced<T>(&mut self, call: impl FnOnce(&mut FakeBackend) -> T) -> T {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).push(self.clock.now());
        point();
        let result = call(&mut self.backend);
        point();
        result
    }
}

impl Backend for PacedBackend {
    type EncoderStates = FakeEncoderStates;
    type Group = FakeGroup;

    fn models(&self) -> &[ModelInfo] {
        self.backend.models()
    }

    fn feature_bytes(&self, tower: TowerId) -> u64 {
        self.backend.feature_bytes(tower)
    }

    fn cross_kv_bytes(&self, model: ModelId) -> u64 {
        self.backend.cross_kv_bytes(model)
    }

    fn row_kv_bytes_per_token(&self, model: ModelId) -> u64 {
        self.backend.row_kv_bytes_per_token(model)
    }

    fn encode(
        &mut self,
        output: VisionOutput,
        images: &[&Pixels],
    ) -> Result<Vec<FakeEncoderStates>, BackendError> {
        self.paced(|backend| backend.encode(output, images))
    }

    fn run_single_pass(
        &mut self,
        model: ModelId,
        rows: &[SinglePassRow<FakeEncoderStates>],
    ) -> Result<Vec<SinglePassOutput<FakeEncoderStates>>, BackendError> {
        self.paced(|backend| backend.run_single_pass(model, rows))
    }

    fn open(&mut self, spec: GroupSpec<FakeEncoderStates>) -> FakeGroup {
        self.backend.open(spec)
    }

    fn pending_tokens(&self, group: &FakeGroup) -> usize {
        self.backend.pending_tokens(group)
    }

    fn step(
        &mut self,
        model: ModelId,
        groups: &mut [&mut FakeGroup],
    ) -> Result<Vec<StepEvent>, BackendError> {
        self.paced(|backend| backend.step(model, groups))
    }
}
