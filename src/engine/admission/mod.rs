//! Admission control: capacity in rows and bytes is reserved before any work is done. Admission never waits; an
//! overloaded engine sheds load by rejecting calls. Only bulk work waits for capacity ([`bulk`]).
//!
//! The [`AdmissionController`] is a mutex around a few numbers. The mutex is held for nanoseconds and never across an
//! await. Reservations are guards that release their capacity when dropped. A [`CallReservation`] holds what a call has
//! reserved and not yet submitted; `handle` creates it. A [`TaskReservation`] holds the part that belongs to one
//! submitted task; the task carries it to the worker.
//!
//! The cost of an image is known only after the worker has looked it up in the feature cache. Until then the image
//! counts as a fraction of an encoding, namely the recent miss rate. After a hit (the image is cached, or in flight for
//! another task) it costs nothing. After a miss it costs a full encoding.
//!
//! Estimates are learnt from work units that run, so a bad estimate must not stop units from running. Therefore, while
//! no other call has work, estimates never reject a small call, and stale estimates reject no call at all.

mod bulk;
mod estimate;
mod moving;
mod rejection;
mod reservation;
#[cfg(test)]
mod tests;
mod usage;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

pub use self::estimate::Estimates;
use self::estimate::Profile;
use self::rejection::{RejectReason, Rejection};
pub(crate) use self::reservation::{CallReservation, TaskReservation};
use self::usage::{State, Usage};
use super::ids::{CallId, CallNumbers};
use super::sync::{Mutex, MutexGuard, Notify};
use super::{EngineError, EngineSettings};
use crate::fairness::{self, ClientId};
use crate::mutations::{self, Mutation};
use crate::telemetry::gauge_share::GaugeShare;
use crate::telemetry::metrics::Metrics;

/// Maximum numbers of rows and images of a "small" call. On an idle engine the estimates never reject a small call, so
/// that the worker can measure again what work costs.
const SMALL: (usize, usize) = (8, 1);

/// Safety factor on estimated waits at startup. Later the factor follows how long calls really waited. It is needed
/// because calls wait longer than the backend's own times suggest: between backend calls the worker plans and sends
/// answers, HTTP competes for the cores, and a call whose turn has come shares the worker with others until it is done.
/// Under ten times the load that two cores can serve, 1 % of the accepted calls took 4.5 s where 3 s were estimated
/// (2026-11-25).
const FIRST_SAFETY_FACTOR: f64 = 1.5;
/// Range of the safety factor. If calls wait longer than the maximum factor accounts for, the cause is something other
/// than a wrong estimate.
const SAFETY_FACTORS: (f64, f64) = (1.0, 4.0);
/// Tasks whose expected wait plus service time is shorter than this do not change the safety factor, because they say
/// little about long waits.
const LEAST_TELLING_WAIT: Duration = Duration::from_secs(1);
/// Weights of a task in the moving average of the safety factor: the first if the task took longer than the factor
/// predicts, the second otherwise. Because the first is twenty times the second, the average settles where about one
/// task in twenty takes longer than predicted.
const SAFETY_FACTOR_WEIGHTS: (f64, f64) = (0.02, 0.001);

/// Bounds of `Retry-After` in seconds: at least one, and short enough that clients soon find a recovered server.
const RETRY_AFTER_SECONDS: (f64, f64) = (1.0, 30.0);

/// The admission controller of one worker. It records how much capacity each call uses. Shared by all handles, all
/// reservations and the worker.
pub(crate) struct AdmissionController {
    state: Mutex<State>,
    settings: EngineSettings,
    numbers: CallNumbers,
    gauges: Gauges,
    metrics: Arc<Metrics>,
    /// Notified when the last admitted call has ended.
    emptied: Notify,
    /// Notified when capacity is released while calls wait for it.
    freed: Notify,
}

/// This controller's shares of the gauges of the queue.
#[derive(Debug)]
struct Gauges {
    capacity: GaugeShare,
    rows: GaugeShare,
    bytes: GaugeShare,
}

impl Gauges {
    fn new(metrics: &Metrics) -> Self {
        Self {
            capacity: GaugeShare::new(&metrics.queue_capacity),
            rows: GaugeShare::new(&metrics.queue_rows),
            bytes: GaugeShare::new(&metrics.queue_bytes),
        }
    }
}

impl std::fmt::Debug for AdmissionController {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdmissionController").field("state", &self.state).finish_non_exhaustive()
    }
}

impl AdmissionController {
    /// Creates the controller of one worker. It takes the numbers of its calls from `numbers`.
    pub(crate) fn new(
        settings: &EngineSettings,
        metrics: Arc<Metrics>,
        numbers: CallNumbers,
    ) -> Arc<Self> {
        let state = State {
            usage: Usage::default(),
            bulk: Usage::default(),
            bulk_clients: 0,
            calls: 0,
            bulk_calls: 0,
            waiting: VecDeque::new(),
            clients: BTreeMap::new(),
            closed: false,
            estimates: Estimates::default(),
            safety_factor: FIRST_SAFETY_FACTOR,
        };
        let gauges = Gauges::new(&metrics);
        gauges.capacity.set(settings.capacity_rows);
        Arc::new(Self {
            state: Mutex::new(state),
            settings: settings.clone(),
            numbers,
            gauges,
            metrics,
            emptied: Notify::new(),
            freed: Notify::new(),
        })
    }

    /// Admits a call of `client` if one more row could be served in time and `bytes` would fit now.
    ///
    /// The call uses no capacity yet: bytes are reserved as they arrive, and rows when it is known how many the call
    /// needs. So a call whose body stalls takes no capacity from other calls.
    pub(crate) fn admit(
        self: &Arc<Self>,
        client: ClientId,
        bytes: u64,
        deadline: Instant,
        now: Instant,
    ) -> Result<CallReservation, EngineError> {
        let mut state = self.open_state()?;
        let call = CallId { client, number: self.numbers.next() };
        let left = deadline.saturating_duration_since(now);
        self.counted(self.check_call(&state, call, bytes, left))?;
        Ok(self.begin_call(&mut state, call, None))
    }

    /// True if [`admit`](Self::admit) would admit a call of `client` now.
    pub(crate) fn would_admit(&self, client: ClientId, bytes: u64, left: Duration) -> bool {
        let state = self.state();
        let call = CallId { client, number: u64::MAX };
        !state.closed && self.check_call(&state, call, bytes, left).is_ok()
    }

    /// Rejects a call of which nothing is known but its bytes. Its rows are not known yet, but it needs at least one.
    fn check_call(
        &self,
        state: &State,
        call: CallId,
        bytes: u64,
        left: Duration,
    ) -> Result<(), Rejection> {
        self.check_wait(state, call, (1, 0), left)?;
        self.check_capacity(state, call.client, Usage { rows: 1, bytes, ..Usage::default() })
    }

    /// Records a further call, which uses no capacity yet. The call `whole` stays in progress until this one has ended.
    fn begin_call(
        self: &Arc<Self>,
        state: &mut State,
        call: CallId,
        whole: Option<CallReservation>,
    ) -> CallReservation {
        self.add(state, call, Usage::default());
        *state.calls_like(call) += 1;
        CallReservation::new(Arc::clone(self), call, whole)
    }

    /// Raises a call's reservation from `held` to `rows` and `images`. Returns the difference, and the wait plus
    /// service time that is now expected. `left` is the time until the deadline.
    fn reserve_more(
        &self,
        (call, held): (CallId, Usage),
        rows: usize,
        images: usize,
        left: Duration,
    ) -> Result<(Usage, Duration), EngineError> {
        let capacity = self.settings.capacity_rows;
        if rows > capacity {
            let error = EngineError::TooManyRows { rows, capacity };
            return Err(self.count(Rejection(RejectReason::Full, error)));
        }
        let mut state = self.state();
        let expected = self.counted(self.check_wait(&state, call, (rows, images), left))?;
        let more = Usage {
            rows: rows.saturating_sub(held.rows),
            images: images.saturating_sub(held.images),
            ..Usage::default()
        };
        self.counted(self.check_capacity(&state, call.client, more))?;
        self.add(&mut state, call, more);
        Ok((more, expected))
    }

    /// Reserves `bytes` more for a call.
    fn reserve_more_bytes(&self, call: CallId, bytes: u64) -> Result<(), EngineError> {
        let mut state = self.state();
        let more = Usage { bytes, ..Usage::default() };
        self.counted(self.check_capacity(&state, call.client, more))?;
        self.add(&mut state, call, more);
        Ok(())
    }

    /// Replaces the estimates with those that the worker has measured.
    pub(crate) fn publish(&self, estimates: Estimates) {
        self.state().estimates = estimates;
    }

    pub(crate) fn estimates(&self) -> Estimates {
        self.state().estimates
    }

    /// Closes admission for good. Once this function returns, no other thread can still be admitting a call.
    pub(crate) fn close(&self) {
        self.state().closed = true;
    }

    /// Returns the number of rows in use.
    pub(crate) fn rows(&self) -> usize {
        self.state().usage.rows
    }

    /// Returns the length of the queue that a new call would join: the reserved rows plus the calls in progress. The calls
    /// count because those that are still being read have no rows yet; this spreads the bodies that are being read. Calls
    /// that are never sent keep nobody away from a worker, because the worker is chosen again when the rows of a call are
    /// known. Interactive calls run before bulk work, so for them only interactive calls count.
    pub(crate) fn queue_length(&self, is_bulk: bool) -> usize {
        let state = self.state();
        let (rows, calls) = if is_bulk {
            (state.usage.rows, state.calls + state.bulk_calls)
        } else {
            (state.usage.rows - state.bulk.rows, state.calls)
        };
        rows + calls
    }

    /// True if no admitted call is in progress.
    pub(crate) fn is_empty(&self) -> bool {
        self.state().clients.is_empty()
    }

    /// Resolves when all admitted calls have ended and released their reservations.
    pub(crate) async fn emptied(&self) {
        loop {
            // The waiter is registered before the check. Otherwise a notification between the check and the wait
            // would be lost.
            let emptied = self.emptied.notified();
            if self.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// Returns the value for `Retry-After`: the estimated time until all current work is done.
    pub(crate) fn retry_after(&self) -> Duration {
        let state = self.state();
        self.retry(&state)
    }

    fn retry(&self, state: &State) -> Duration {
        let Usage { rows, images, encodings, .. } = state.usage.minus(state.bulk);
        let images = state.estimates.encodings(images, Profile::default()) + encodings as f64;
        retry_after(state.estimates.work(rows as f64, images, &self.settings))
    }

    /// Rejects `call`, which needs `own` rows and images, if its work or its wait would take too long. Otherwise
    /// returns the expected wait plus service time. `left` is the time until the call's deadline. The estimated
    /// wait assumes round robin: a call of one row waits only one turn for each large call and each client with many
    /// calls.
    fn check_wait(
        &self,
        state: &State,
        call: CallId,
        own: (usize, usize),
        left: Duration,
    ) -> Result<Duration, Rejection> {
        if left.is_zero() {
            return Err(Rejection(RejectReason::Deadline, EngineError::DeadlineExceeded));
        }
        let (calls, queue) = state.queue_ahead_of(call, own);
        let small = own.0 <= SMALL.0 && own.1 <= SMALL.1;
        if calls == 0 && (small || state.estimates.stale) {
            return Ok(Duration::ZERO);
        }
        // If no image is queued, the image of a small call is not counted, so that the call is admitted even if the
        // estimated cost of an image is far too high. Encoding the image corrects that estimate.
        let probe = small && queue.images == 0.0;
        let images =
            if probe { 0.0 } else { state.estimates.encodings(own.1, state.profile(call.client)) };
        let estimate = state.estimates.least_service(own.0, images, &self.settings);
        if estimate > left {
            // A client can hardly split a small call, so it is asked to retry later. This helps if a stall has made the
            // estimate too high, because the estimate soon falls again.
            let error = if small {
                EngineError::Overloaded { retry_after: retry_after(estimate) }
            } else {
                EngineError::TooLargeForDeadline { estimate, deadline: left }
            };
            return Err(Rejection(RejectReason::Deadline, error));
        }
        let wait = state.estimates.estimated_wait(&queue, &self.settings);
        self.check_time(wait.mul_f64(state.safety_factor), estimate, left)?;
        Ok(wait + estimate)
    }

    /// Rejects a call whose wait exceeds `max_queue_wait`, or whose `work` would end after its deadline. `left` is the
    /// time until that deadline.
    fn check_time(&self, wait: Duration, work: Duration, left: Duration) -> Result<(), Rejection> {
        let overloaded = EngineError::Overloaded { retry_after: retry_after(wait) };
        if wait > self.settings.max_queue_wait {
            return Err(Rejection(RejectReason::Full, overloaded));
        }
        if wait + work > left {
            return Err(Rejection(RejectReason::Deadline, overloaded));
        }
        Ok(())
    }

    fn check_capacity(
        &self,
        state: &State,
        client: ClientId,
        more: Usage,
    ) -> Result<(), Rejection> {
        let holder = state.clients.get(&client);
        let own = holder.map(|client| client.usage).unwrap_or_default();
        let mut clients = state.clients.len() - state.bulk_clients + usize::from(holder.is_none());
        if mutations::is_active(Mutation::DeclaredBodiesReserveCapacity) {
            // As if there were no other clients, so that nobody has a share.
            clients = 1;
        }
        let fit = |capacity, usage, own, more| fairness::fits(capacity, usage, own, clients, more);
        let (all, rows) = (&state.usage, |usage: &Usage| usage.rows as u64);
        // The rows of bulk work come on top of `capacity_rows`, because they wait behind all others.
        let interactive = state.usage.minus(state.bulk);
        if !fit(self.settings.capacity_rows as u64, rows(&interactive), rows(&own), rows(&more))
            || !fit(self.settings.capacity_bytes, all.bytes, own.bytes, more.bytes)
        {
            let overloaded = EngineError::Overloaded { retry_after: self.retry(state) };
            return Err(Rejection(RejectReason::Full, overloaded));
        }
        Ok(())
    }

    /// Rejects a call whose estimated wait outside the engine is `wait`. `left` is the time until its deadline.
    fn reject_long_wait(&self, wait: Duration, left: Duration) -> Result<(), EngineError> {
        self.counted(self.check_time(wait, Duration::ZERO, left))
    }

    /// Counts the call if it was rejected, and returns the error for its client.
    fn counted<T>(&self, checked: Result<T, Rejection>) -> Result<T, EngineError> {
        checked.map_err(|rejection| self.count(rejection))
    }

    /// Counts a call that was rejected, and returns the error for its client.
    fn count(&self, Rejection(reason, error): Rejection) -> EngineError {
        self.metrics.queue_rejected_total.with_label_values(&[reason.label()]).inc();
        error
    }

    fn add(&self, state: &mut State, call: CallId, more: Usage) {
        state.usage = state.usage.plus(more);
        if call.client.is_bulk() {
            state.bulk = state.bulk.plus(more);
            state.bulk_clients += usize::from(!state.clients.contains_key(&call.client));
        }
        let client = state.clients.entry(call.client).or_default();
        client.usage = client.usage.plus(more);
        let held = client.calls.entry(call.number).or_default();
        *held = held.plus(more);
        self.update_gauges(state);
    }

    /// Adds to an admitted call's usage without any check.
    fn take(&self, call: CallId, more: Usage) {
        let mut state = self.state();
        self.add(&mut state, call, more);
    }

    fn give_back(&self, call: CallId, less: Usage) {
        let mut state = self.state();
        state.usage = state.usage.minus(less);
        if call.client.is_bulk() {
            state.bulk = state.bulk.minus(less);
        }
        if let Some(client) = state.clients.get_mut(&call.client) {
            client.usage = client.usage.minus(less);
            if let Some(held) = client.calls.get_mut(&call.number) {
                *held = held.minus(less);
            }
        }
        self.update_gauges(&state);
        if !state.waiting.is_empty() {
            self.freed.notify_waiters();
        }
    }

    /// Ends a call and releases its remaining reservation. Its tasks have already ended.
    fn end_call(&self, call: CallId, rest: Usage) {
        self.give_back(call, rest);
        let mut state = self.state();
        *state.calls_like(call) -= 1;
        if let Some(client) = state.clients.get_mut(&call.client) {
            client.calls.remove(&call.number);
            if client.calls.is_empty() {
                state.clients.remove(&call.client);
                state.bulk_clients -= usize::from(call.client.is_bulk());
            }
        }
        if !state.waiting.is_empty() {
            // The shares of the remaining clients may have grown.
            self.freed.notify_waiters();
        }
        if state.clients.is_empty() {
            self.emptied.notify_waiters();
        }
    }

    /// Records whether an image of the client was a miss in the feature cache.
    fn record_lookup(&self, client: ClientId, missed: bool) {
        let State { clients, estimates, .. } = &mut *self.state();
        if let Some(client) = clients.get_mut(&client) {
            client.profile.record_lookup(missed, estimates);
        }
    }

    /// Records the total number of tokens that a row of the client has processed.
    fn record_row(&self, client: ClientId, tokens: f64) {
        let State { clients, estimates, .. } = &mut *self.state();
        if let Some(client) = clients.get_mut(&client) {
            client.profile.record_row(tokens, estimates);
        }
    }

    /// Learns from an answered task. `expected` is the wait plus service time expected at admission; `took` is the time
    /// from submission to the answer.
    fn record_answered(&self, expected: Duration, took: Duration) {
        if expected < LEAST_TELLING_WAIT {
            return;
        }
        let (least, most) = SAFETY_FACTORS;
        let ratio = (took.as_secs_f64() / expected.as_secs_f64()).clamp(least, most);
        let mut state = self.state();
        let (longer, shorter) = SAFETY_FACTOR_WEIGHTS;
        let weight = if ratio > state.safety_factor { longer } else { shorter };
        state.safety_factor += weight * (ratio - state.safety_factor);
    }

    /// Updates the gauges. Called under the lock, so that the last update always shows the latest state.
    fn update_gauges(&self, state: &State) {
        self.gauges.rows.set(state.usage.rows);
        self.gauges.bytes.set(state.usage.bytes);
    }

    /// Returns the state, unless a drain has begun.
    fn open_state(&self) -> Result<MutexGuard<'_, State>, EngineError> {
        let state = self.state();
        if state.closed {
            return Err(self.count(Rejection(RejectReason::Draining, EngineError::ShuttingDown)));
        }
        Ok(state)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A poisoned lock is usable, because no code that can panic leaves the numbers inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the value of `Retry-After` if the work ahead takes `work`.
fn retry_after(work: Duration) -> Duration {
    let (least, most) = RETRY_AFTER_SECONDS;
    Duration::from_secs_f64(work.as_secs_f64().ceil().clamp(least, most))
}
