//! The backend of a simulation: the fake backend, whose calls take simulated time and fail as the scenario says.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::chance::Chance;
use crate::engine::backend::{
    Backend, BackendError, GroupSpec, SinglePassOutput, SinglePassRow, StepEvent,
};
use crate::engine::testing::fake::{
    FakeBackend, FakeControl, FakeEncoderStates, FakeGroup, models,
};
use crate::platform::simulated;
use crate::task::{ModelId, ModelInfo, Pixels, TowerId, VisionOutput};

/// Simulated time of each call, of each image of an encoding, and of each token of the other calls. These are costs of a
/// slow machine, so that few clients suffice to overload it.
const CALL: Duration = Duration::from_millis(5);
const IMAGE: Duration = Duration::from_millis(30);
const TOKEN: Duration = Duration::from_millis(5);

/// How often calls fail, in percent, and when the backend hangs.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    pub(super) errors: usize,
    pub(super) out_of_memory: usize,
    pub(super) panics: usize,
    /// Number of the call that never returns.
    pub(super) hangs_at: Option<u64>,
    /// True if a backend cannot be rebuilt.
    pub(super) rebuild_fails: bool,
}

impl Faults {
    /// True if requests of innocent clients may fail because of the backend.
    pub(super) fn any(&self) -> bool {
        self.errors + self.out_of_memory + self.panics > 0 || self.hangs_at.is_some()
    }
}

/// What all backends of one simulation share.
pub(super) struct Script {
    faults: Faults,
    chance: Mutex<Chance>,
    calls: AtomicU64,
    /// False until the warm-up is over: a backend that fails in it is a failed start.
    started: AtomicBool,
    /// True once the simulation ends: a call that hangs returns.
    over: AtomicBool,
    pub(super) control: FakeControl,
}

pub(super) struct SimulatedBackend {
    inner: FakeBackend,
    script: Arc<Script>,
}

impl Script {
    pub(super) fn new(faults: Faults, chance: Chance) -> Arc<Self> {
        let (_, control) = FakeBackend::new(models());
        Arc::new(Self {
            faults,
            chance: Mutex::new(chance),
            calls: AtomicU64::new(0),
            started: AtomicBool::new(false),
            over: AtomicBool::new(false),
            control,
        })
    }

    /// Creates a backend that follows this script.
    pub(super) fn backend(self: &Arc<Self>) -> SimulatedBackend {
        let inner = FakeBackend::on(models(), &self.control);
        SimulatedBackend { inner, script: Arc::clone(self) }
    }

    /// From now on, calls fail.
    pub(super) fn start_faults(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    /// Lets a call that hangs return.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Lets the time of a call pass, and fails if it is the call's lot.
    fn call(&self, images: usize, tokens: usize) -> Result<(), BackendError> {
        simulated::sleep(CALL + IMAGE * images as u32 + TOKEN * tokens as u32);
        if !self.started.load(Ordering::Relaxed) || self.over.load(Ordering::Relaxed) {
            return Ok(());
        }
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        if self.faults.hangs_at.is_some_and(|at| number >= at) {
            while !self.over.load(Ordering::Relaxed) {
                simulated::sleep(Duration::from_secs(1));
            }
        }
        let lot = self.chance.lock().unwrap_or_else(PoisonError::into_inner).below(100);
        let Faults { errors, out_of_memory, panics, .. } = self.faults;
        if lot < errors {
            return Err(BackendError::Device("scripted".into()));
        }
        if lot < errors + out_of_memory {
            return Err(BackendError::OutOfMemory("scripted".into()));
        }
        assert!(lot >= errors + out_of_memory + panics, "scripted panic");
        Ok(())
    }
}

impl Backend for SimulatedBackend {
    type EncoderStates = FakeEncoderStates;
    type Group = FakeGroup;

    fn models(&self) -> &[ModelInfo] {
        self.inner.models()
    }

    fn feature_bytes(&self, tower: TowerId) -> u64 {
        self.inner.feature_bytes(tower)
    }

    fn cross_kv_bytes(&self, model: ModelId) -> u64 {
        self.inner.cross_kv_bytes(model)
    }

    fn row_kv_bytes_per_token(&self, model: ModelId) -> u64 {
        self.inner.row_kv_bytes_per_token(model)
    }

    fn encode(
        &mut self,
        output: VisionOutput,
        images: &[&Pixels],
    ) -> Result<Vec<FakeEncoderStates>, BackendError> {
        self.script.call(images.len(), 0)?;
        self.inner.encode(output, images)
    }

    fn run_single_pass(
        &mut self,
        model: ModelId,
        rows: &[SinglePassRow<FakeEncoderStates>],
    ) -> Result<Vec<SinglePassOutput<FakeEncoderStates>>, BackendError> {
        self.script.call(0, rows.iter().map(SinglePassRow::tokens).sum())?;
        self.inner.run_single_pass(model, rows)
    }

    fn open(&mut self, spec: GroupSpec<FakeEncoderStates>) -> FakeGroup {
        self.inner.open(spec)
    }

    fn pending_tokens(&self, group: &FakeGroup) -> usize {
        self.inner.pending_tokens(group)
    }

    fn step(
        &mut self,
        model: ModelId,
        groups: &mut [&mut FakeGroup],
    ) -> Result<Vec<StepEvent>, BackendError> {
        let tokens = groups.iter().map(|group| self.inner.pending_tokens(group)).sum();
        self.script.call(0, tokens)?;
        self.inner.step(model, groups)
    }
}
