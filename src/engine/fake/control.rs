//! The other side of the fake: gate, faults, costs, log; and what makes it a mock that serves (`app::mock`).

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::STOP;
use crate::engine::Clock;
use crate::engine::backend::BackendError;

/// A test that waits longer than this for the worker has found a deadlock.
const PATIENCE: Duration = Duration::from_secs(20);

/// A call of the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FakeCall {
    /// A vision batch.
    Encode,
    /// A pass of one-pass rows.
    Score,
    /// A step of groups.
    Step,
}

/// By what a fault finds its item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FakeMark {
    /// The first byte of the item's image.
    Image(u8),
    /// A token of the item's text.
    Token(u32),
}

/// What happens to a call that holds a marked item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FakeFault {
    /// A device error.
    Error,
    /// A panic.
    Panic,
    /// Out of memory, whenever the call holds more items than this.
    OutOfMemoryAbove(usize),
    /// The call succeeds; the item's numbers are NaN.
    NonFinite,
}

/// One call that the worker made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeUnit {
    /// Which.
    pub call: FakeCall,
    /// Of which tower (`Encode`) or model.
    pub of: usize,
    /// Tokens that it ran.
    pub tokens: usize,
    /// The marks of each item.
    pub items: Vec<Vec<FakeMark>>,
}

#[derive(Debug)]
struct State {
    /// Calls that may pass; `None` when the gate is open.
    permits: Option<usize>,
    at_gate: bool,
    log: Vec<FakeUnit>,
    faults: Vec<(FakeCall, FakeMark, FakeFault)>,
    text_length: Option<usize>,
    token_ids: Range<u32>,
    open_groups: usize,
    deadly: bool,
    costs: Option<Costs>,
    /// Calls are remembered.
    remembers: bool,
    stop: u32,
    /// Bytes kept for good with every image, and what was kept.
    leak: usize,
    leaked: Vec<Vec<u8>>,
}

/// How long calls take.
#[derive(Debug, Clone)]
struct Costs {
    /// The clock that they move on; without one the caller sleeps.
    clock: Option<ManualClock>,
    time: FakeTime,
}

/// Time of a call: the sum of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FakeTime {
    /// Of any call.
    pub fixed: Duration,
    /// For each image that is encoded.
    pub image: Duration,
    /// For each token.
    pub token: Duration,
}

impl FakeTime {
    fn of(self, images: usize, tokens: usize) -> Duration {
        self.fixed + self.image * images as u32 + self.token * tokens as u32
    }
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

/// Drives a [`FakeBackend`](super::FakeBackend) from the test. Clones share it.
#[derive(Debug, Clone)]
pub struct FakeControl(Arc<Inner>);

impl FakeControl {
    pub(super) fn new() -> Self {
        let state = State {
            permits: None,
            at_gate: false,
            log: Vec::new(),
            faults: Vec::new(),
            text_length: None,
            token_ids: 1000..2000,
            open_groups: 0,
            deadly: false,
            costs: None,
            remembers: true,
            stop: STOP,
            leak: 0,
            leaked: Vec::new(),
        };
        Self(Arc::new(Inner { state: Mutex::new(state), changed: Condvar::new() }))
    }

    /// From now on every call waits at the gate.
    pub fn hold(&self) {
        self.state().permits = Some(0);
    }

    /// Lets `calls` calls through a gate that is held.
    pub fn pass(&self, calls: usize) {
        let mut state = self.state();
        state.permits = state.permits.map(|permits| permits + calls);
        self.0.changed.notify_all();
    }

    /// Opens the gate.
    pub fn release(&self) {
        self.state().permits = None;
        self.0.changed.notify_all();
    }

    /// Blocks until a call stands at the gate.
    ///
    /// # Panics
    /// When none comes.
    pub fn wait_until_held(&self) {
        let state = self.state();
        let waiting = |state: &mut State| !(state.at_gate && state.permits == Some(0));
        let (state, timeout) = self
            .0
            .changed
            .wait_timeout_while(state, PATIENCE, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        drop(state);
        assert!(!timeout.timed_out(), "no call has come to the gate");
    }

    /// From now on calls that hold an item with this mark have this fault.
    pub fn fault(&self, call: FakeCall, mark: FakeMark, fault: FakeFault) {
        self.state().faults.push((call, mark, fault));
    }

    /// Takes all faults back.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// The next task with an image panics where the worker guards nothing: its thread dies.
    pub fn kill_worker(&self) {
        self.state().deadly = true;
    }

    /// Takes that back.
    pub fn spare_worker(&self) {
        self.state().deadly = false;
    }

    pub(super) fn die_if_told(&self) {
        let deadly = self.state().deadly;
        assert!(!deadly, "scripted death of the worker");
    }

    /// Every text gets this many tokens (within its parameters) instead of 2 to 8.
    pub fn set_text_length(&self, tokens: usize) {
        self.state().text_length = Some(tokens);
    }

    /// Generated ids come from this range (default 1000..2000), which the tokenizer at hand should know.
    pub fn set_token_ids(&self, ids: Range<u32>) {
        self.state().token_ids = ids;
    }

    /// Calls take this long on `clock`: a fixed part, a part per image, a part per token.
    pub fn set_costs(
        &self,
        clock: &ManualClock,
        fixed: Duration,
        image: Duration,
        token: Duration,
    ) {
        let time = FakeTime { fixed, image, token };
        self.state().costs = Some(Costs { clock: Some(clock.clone()), time });
    }

    /// Calls take this long in truth: the worker sleeps, as it would wait for a device.
    pub fn sleep(&self, time: FakeTime) {
        self.state().costs = Some(Costs { clock: None, time });
    }

    /// Forgets calls as soon as they were made: a log would grow for ever.
    pub fn forget_calls(&self) {
        self.state().remembers = false;
    }

    /// Sequences end with this token (default [`STOP`](super::STOP)).
    pub fn set_stop_token(&self, stop: u32) {
        self.state().stop = stop;
    }

    /// Every encoded image leaves this many bytes behind for good: a leak for tests that look for leaks.
    pub fn set_leak(&self, bytes: usize) {
        self.state().leak = bytes;
    }

    pub(super) fn stop_token(&self) -> u32 {
        self.state().stop
    }

    /// Every call so far, failed ones included.
    #[must_use]
    pub fn log(&self) -> Vec<FakeUnit> {
        self.state().log.clone()
    }

    /// Groups that the worker holds.
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

    pub(super) fn token_id(&self, hash: u64) -> u32 {
        let ids = self.state().token_ids.clone();
        ids.start + (hash % u64::from(ids.end - ids.start)) as u32
    }

    pub(super) fn is_non_finite(&self, call: FakeCall, marks: &[FakeMark]) -> bool {
        let hit = |&(of, mark, fault): &(FakeCall, FakeMark, FakeFault)| {
            of == call && fault == FakeFault::NonFinite && marks.contains(&mark)
        };
        self.state().faults.iter().any(hit)
    }

    /// A call comes in: it waits at the gate, is logged, takes its time, and fails if it is to.
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
        let closed = |state: &mut State| state.permits == Some(0);
        state = self.0.changed.wait_while(state, closed).unwrap_or_else(PoisonError::into_inner);
        state.at_gate = false;
        state.permits = state.permits.map(|permits| permits - 1);
        if state.remembers {
            state.log.push(FakeUnit { call, of, tokens, items: items.to_vec() });
        }
        let images = if call == FakeCall::Encode { items.len() } else { 0 };
        let leak = state.leak;
        if leak > 0 {
            // Written, so that the bytes are there and not only promised.
            state.leaked.extend((0..images).map(|_| vec![1; leak]));
        }
        let mut sleep = Duration::ZERO;
        if let Some(Costs { clock, time }) = &state.costs {
            match clock {
                Some(clock) => clock.advance(time.of(images, tokens)),
                None => sleep = time.of(images, tokens),
            }
        }
        let hit = |(at, mark): (FakeCall, FakeMark)| {
            at == call && items.iter().any(|marks| marks.contains(&mark))
        };
        let fault = state
            .faults
            .iter()
            .find(|&&(at, mark, fault)| hit((at, mark)) && fires(fault, items.len()))
            .map(|&(_, _, fault)| fault);
        // The lock is released before a panic, which would poison it, and before any sleep.
        drop(state);
        pass_time(sleep);
        match fault {
            None | Some(FakeFault::NonFinite) => Ok(()),
            Some(FakeFault::Error) => Err(BackendError::Device("scripted".into())),
            Some(FakeFault::OutOfMemoryAbove(_)) => {
                Err(BackendError::OutOfMemory("scripted".into()))
            }
            Some(FakeFault::Panic) => panic!("scripted panic"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the event that a mock waits for is the passing of time"
)]
fn pass_time(time: Duration) {
    if !time.is_zero() {
        std::thread::sleep(time);
    }
}

fn fires(fault: FakeFault, items: usize) -> bool {
    match fault {
        FakeFault::Error | FakeFault::Panic => true,
        FakeFault::OutOfMemoryAbove(most) => items > most,
        FakeFault::NonFinite => false,
    }
}

/// A clock that stands still until it is moved. Clones share the time.
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<Mutex<Instant>>);

impl ManualClock {
    /// A clock that shows the present.
    #[must_use]
    pub fn start() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    /// Its time.
    #[must_use]
    pub fn now(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves it on.
    pub fn advance(&self, by: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }

    /// What the engine takes.
    #[must_use]
    pub fn clock(&self) -> Clock {
        let clock = self.clone();
        Clock::new(move || clock.now())
    }
}
