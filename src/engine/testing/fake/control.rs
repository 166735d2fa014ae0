//! [`FakeControl`], through which a test controls the fake backend: its gate, faults, costs and log.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::engine::backend::BackendError;
use crate::engine::testing::ManualClock;

/// A test that waits longer than this for the worker has found a deadlock.
const PATIENCE: Duration = Duration::from_secs(20);

/// The kinds of backend calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FakeCall {
    /// A call to encode a vision batch.
    Encode,
    /// A call to run single-pass rows.
    SinglePass,
    /// A call to advance groups by one decode step.
    Step,
}

/// How a fault identifies its item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FakeMark {
    /// The first byte of the item's image.
    Image(u8),
    /// A token of the item's text.
    Token(u32),
}

/// What happens to a call that contains a marked item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FakeFault {
    /// The call returns a device error.
    Error,
    /// The call loses the device.
    DeviceLost,
    /// The call panics inside the backend.
    Panic,
    /// The backend call runs out of memory if it has more items than this.
    OutOfMemoryAbove(usize),
    /// The call succeeds, but the item's numbers are NaN.
    NonFinite,
}

/// One call that the worker made to the backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeUnit {
    /// The kind of backend call.
    pub call: FakeCall,
    /// Index of the tower (for `Encode`) or of the model (for the other calls).
    pub of: usize,
    /// Total number of tokens that the call processed.
    pub tokens: usize,
    /// Marks of each item in the call.
    pub items: Vec<Vec<FakeMark>>,
}

#[derive(Debug)]
struct ControlState {
    /// Number of backend calls that may still pass the gate; `None` while the gate is open.
    permits: Option<usize>,
    at_gate: bool,
    log: Vec<FakeUnit>,
    faults: Vec<(FakeCall, FakeMark, FakeFault)>,
    text_length: Option<usize>,
    open_groups: usize,
    deadly: bool,
    costs: Option<CallCosts>,
}

/// How far each call advances the clock: the sum of a fixed part, a part per encoded image and a part per token.
#[derive(Debug)]
struct CallCosts {
    clock: ManualClock,
    fixed: Duration,
    image: Duration,
    token: Duration,
}

/// What all clones of a [`FakeControl`] share. `changed` is notified when a call reaches the gate and when the gate
/// lets calls pass.
#[derive(Debug)]
struct SharedControl {
    state: Mutex<ControlState>,
    changed: Condvar,
}

/// Controls a [`FakeBackend`](super::FakeBackend) from the test. Clones share the state.
#[derive(Debug, Clone)]
pub struct FakeControl(Arc<SharedControl>);

impl FakeControl {
    pub(super) fn new() -> Self {
        let state = ControlState {
            permits: None,
            at_gate: false,
            log: Vec::new(),
            faults: Vec::new(),
            text_length: None,
            open_groups: 0,
            deadly: false,
            costs: None,
        };
        Self(Arc::new(SharedControl { state: Mutex::new(state), changed: Condvar::new() }))
    }

    /// Closes the gate: from now on every backend call waits at the gate.
    pub fn hold(&self) {
        self.state().permits = Some(0);
    }

    /// Lets `calls` calls pass a closed gate.
    pub fn pass(&self, calls: usize) {
        let mut state = self.state();
        state.permits = state.permits.map(|permits| permits + calls);
        self.0.changed.notify_all();
    }

    /// Opens the gate for all calls.
    pub fn release(&self) {
        self.state().permits = None;
        self.0.changed.notify_all();
    }

    /// Blocks until a backend call waits at the gate.
    ///
    /// # Panics
    /// If no backend call arrives within 20 seconds.
    pub fn wait_until_held(&self) {
        let state = self.state();
        let waiting = |state: &mut ControlState| !(state.at_gate && state.permits == Some(0));
        let (state, timeout) = self
            .0
            .changed
            .wait_timeout_while(state, PATIENCE, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        drop(state);
        assert!(!timeout.timed_out(), "no call has come to the gate");
    }

    /// From now on, applies this fault to backend calls of this kind that contain an item with this mark.
    pub fn fault(&self, call: FakeCall, mark: FakeMark, fault: FakeFault) {
        self.state().faults.push((call, mark, fault));
    }

    /// Removes all faults set so far.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Makes the backend panic the next time the worker asks for the size of an image's features. The worker asks for
    /// this size when it accepts a task with a new image. It does not catch panics of this backend call, so without
    /// supervision its thread ends.
    pub fn kill_worker(&self) {
        self.state().deadly = true;
    }

    /// Reverts [`kill_worker`](Self::kill_worker) for later tasks.
    pub fn spare_worker(&self) {
        self.state().deadly = false;
    }

    pub(super) fn panic_if_scripted(&self) {
        let deadly = self.state().deadly;
        assert!(!deadly, "scripted death of the worker");
    }

    /// Sets the number of tokens of every generated text (within the limits of its parameters), instead of 2 to 8.
    pub fn set_text_length(&self, tokens: usize) {
        self.state().text_length = Some(tokens);
    }

    /// Sets how long backend calls take on `clock`: a fixed part, a part per image, a part per token.
    pub fn set_costs(
        &self,
        clock: &ManualClock,
        fixed: Duration,
        image: Duration,
        token: Duration,
    ) {
        self.state().costs = Some(CallCosts { clock: clock.clone(), fixed, image, token });
    }

    /// Returns all calls so far, including failed ones.
    #[must_use]
    pub fn log(&self) -> Vec<FakeUnit> {
        self.state().log.clone()
    }

    /// Returns the number of groups that the worker has opened and not yet dropped.
    #[must_use]
    pub fn open_groups(&self) -> usize {
        self.state().open_groups
    }

    pub(super) fn opened(&self) {
        self.state().open_groups += 1;
    }

    pub(super) fn closed(&self) {
        self.state().open_groups -= 1;
    }

    pub(super) fn text_length(&self) -> Option<usize> {
        self.state().text_length
    }

    pub(super) fn is_non_finite(&self, call: FakeCall, marks: &[FakeMark]) -> bool {
        let hit = |&(of, mark, fault): &(FakeCall, FakeMark, FakeFault)| {
            of == call && fault == FakeFault::NonFinite && marks.contains(&mark)
        };
        self.state().faults.iter().any(hit)
    }

    /// Handles a backend call: waits at the gate, logs the call, advances the clock by its duration, and fails if a
    /// fault applies.
    pub(super) fn enter(
        &self,
        call: FakeCall,
        of: usize,
        tokens: usize,
        items: &[Vec<FakeMark>],
    ) -> Result<(), BackendError> {
        let mut state = self.state();
        state.at_gate = true;
        self.0.changed.notify_all();
        let closed = |state: &mut ControlState| state.permits == Some(0);
        state = self.0.changed.wait_while(state, closed).unwrap_or_else(PoisonError::into_inner);
        state.at_gate = false;
        state.permits = state.permits.map(|permits| permits - 1);
        state.log.push(FakeUnit { call, of, tokens, items: items.to_vec() });
        if let Some(CallCosts { clock, fixed, image, token }) = &state.costs {
            let images = if call == FakeCall::Encode { items.len() } else { 0 };
            clock.advance(*fixed + *image * images as u32 + *token * tokens as u32);
        }
        let hit = |(at, mark): (FakeCall, FakeMark)| {
            at == call && items.iter().any(|marks| marks.contains(&mark))
        };
        let fault = state
            .faults
            .iter()
            .find(|&&(at, mark, fault)| hit((at, mark)) && fires(fault, items.len()))
            .map(|&(_, _, fault)| fault);
        // The lock is released before a panic, which would poison it.
        drop(state);
        match fault {
            None | Some(FakeFault::NonFinite) => Ok(()),
            Some(FakeFault::Error) => Err(BackendError::Device("scripted".into())),
            Some(FakeFault::DeviceLost) => Err(BackendError::DeviceLost("scripted".into())),
            Some(FakeFault::OutOfMemoryAbove(_)) => {
                Err(BackendError::OutOfMemory("scripted".into()))
            }
            Some(FakeFault::Panic) => panic!("scripted panic"),
        }
    }

    fn state(&self) -> MutexGuard<'_, ControlState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fires(fault: FakeFault, items: usize) -> bool {
    match fault {
        FakeFault::Error | FakeFault::DeviceLost | FakeFault::Panic => true,
        FakeFault::OutOfMemoryAbove(most) => items > most,
        FakeFault::NonFinite => false,
    }
}
