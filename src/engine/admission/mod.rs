//! Admission control: capacity in rows and bytes, reserved before any work is done. Nothing here waits; an overloaded
//! engine sheds load with an error.
//!
//! The [`AdmissionController`] is one std mutex around a few numbers. It is held for nanoseconds and never across an await.
//! Reservations are guards that release their capacity when dropped: a [`CallReservation`] for what a call has reserved and not
//! yet submitted, a [`TaskReservation`] for each submitted task. `handle` creates rooms; tasks carry their claims to the worker.
//!
//! The cost of an image is known only after the worker has looked it up in the feature cache. Until then it counts as a
//! fraction of an encoding, the recent miss rate. After a hit (cached, or in flight for another task) it costs nothing,
//! after a miss a full encoding.
//!
//! Estimates are learnt from work units that run, so a bad estimate must not stop units from running. While no other
//! call has work, the estimates never reject a small call, nor any call once they are stale.

mod estimate;
mod room;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

pub use self::estimate::Estimates;
use self::estimate::{Profile, Queue};
pub(crate) use self::room::{CallReservation, TaskReservation};
use super::ids::CallId;
use super::sync::{Mutex, MutexGuard, Notify};
use super::{EngineError, EngineSettings};
use crate::fairness::{self, ClientId};
use crate::telemetry::metrics::Metrics;

/// Most rows and images of a "small" call. On an idle engine the estimates never reject one, so that the worker learns
/// again what work costs.
const SMALL: (usize, usize) = (8, 1);

/// Safety factor: calls wait longer than the backend's own times suggest. Between backend calls the worker plans and
/// answers, HTTP competes for the cores, and a call whose turn has come shares the worker until it is done. At ten
/// times the capacity of two cores, 1 % of the accepted calls took 4.5 s where 3 s were estimated (2026-11-25).
const SLIPPAGE: f64 = 1.5;

/// Bounds of `Retry-After` in seconds: at least one, and short enough that clients soon find a recovered server.
const RETRY_AFTER_SECONDS: (f64, f64) = (1.0, 30.0);

/// Capacity in use by one call, one client, or all of them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Usage {
    rows: usize,
    /// Images not yet looked up in the feature cache.
    images: usize,
    /// Cache misses: images that still have to be encoded.
    encodings: usize,
    bytes: u64,
}

/// Capacity that a client uses, in all and by call number (live calls only).
#[derive(Debug, Default)]
struct Client {
    taken: Usage,
    calls: HashMap<u64, Usage>,
    profile: Profile,
}

impl Usage {
    /// True if the worker has something to do for it. A call whose body is still being read uses bytes only.
    fn is_work(self) -> bool {
        self.rows + self.images + self.encodings > 0
    }

    fn plus(self, more: Self) -> Self {
        Self {
            rows: self.rows + more.rows,
            images: self.images + more.images,
            encodings: self.encodings + more.encodings,
            bytes: self.bytes + more.bytes,
        }
    }

    fn minus(self, less: Self) -> Self {
        Self {
            rows: self.rows - less.rows,
            images: self.images - less.images,
            encodings: self.encodings - less.encodings,
            bytes: self.bytes - less.bytes,
        }
    }
}

/// The queue ahead of `call`, which needs `own` rows and images. Also returns the number of other calls with work.
///
/// Round robin serves clients in turn, then the calls of each client in turn. So of another call of the same client no
/// more items go first than the call's own, and of another client no more than the rounds until the call's last item.
fn queue_ahead_of(state: &State, call: CallId, own: (usize, usize)) -> (usize, Queue) {
    let mut queue = Queue::default();
    let (mut calls, mut all) = (0, Usage::default());
    // Rounds that the call's own client needs until the call's last item.
    let (mut turns_rows, mut turns_images) = own;
    let mut count = |taken: Usage, most: (usize, usize), profile: Profile| {
        let encodings = taken.encodings.min(most.1);
        let unknown = taken.images.min(most.1 - encodings);
        let rows = taken.rows.min(most.0);
        queue.rows += rows as f64 * state.estimates.row_weight(profile);
        queue.images += encodings as f64 + state.estimates.encodings(unknown, profile);
        (rows, encodings + unknown)
    };
    if let Some(client) = state.clients.get(&call.client) {
        for taken in client.calls.iter().filter(|&(&other, _)| other != call.number).map(|it| *it.1)
        {
            let (rows, images) = count(taken, own, client.profile);
            turns_rows += rows;
            turns_images += images;
            calls += usize::from(taken.is_work());
            all = all.plus(taken);
        }
    }
    for client in state.clients.iter().filter(|&(&other, _)| other != call.client).map(|it| it.1) {
        count(client.taken, (turns_rows, turns_images), client.profile);
        calls += usize::from(client.taken.is_work());
        all = all.plus(client.taken);
    }
    let images = all.encodings as f64 + state.estimates.encodings(all.images, Profile::default());
    queue.text_has_other_work = all.rows as f64 > images;
    queue.vision_has_other_work = images > 0.0;
    (calls, queue)
}

#[derive(Debug)]
struct State {
    taken: Usage,
    /// Usage by client. Empty when nothing that was admitted remains.
    clients: HashMap<ClientId, Client>,
    next_call: u64,
    draining: bool,
    estimates: Estimates,
}

/// The admission controller: who uses how much capacity. Shared by all handles, all rooms and the worker.
pub(crate) struct AdmissionController {
    state: Mutex<State>,
    settings: EngineSettings,
    metrics: Arc<Metrics>,
    /// Notified when the last room is released.
    emptied: Notify,
}

impl std::fmt::Debug for AdmissionController {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("book", &self.state).finish_non_exhaustive()
    }
}

/// Why a call was rejected; the label of `queue_rejected_total`.
#[derive(Debug, Clone, Copy)]
enum Refusal {
    Full,
    Deadline,
    Draining,
}

impl Refusal {
    const ALL: [Self; 3] = [Self::Full, Self::Deadline, Self::Draining];

    fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Deadline => "deadline",
            Self::Draining => "draining",
        }
    }
}

impl State {
    /// What the client's work has cost recently; nothing is known of a client without a call in progress.
    fn profile(&self, client: ClientId) -> Profile {
        self.clients.get(&client).map(|client| client.profile).unwrap_or_default()
    }
}

impl AdmissionController {
    pub(crate) fn new(settings: &EngineSettings, metrics: Arc<Metrics>) -> Arc<Self> {
        metrics.queue_capacity.set(settings.capacity_rows.try_into().unwrap_or(i64::MAX));
        for refusal in Refusal::ALL {
            metrics.queue_rejected_total.with_label_values(&[refusal.label()]).inc_by(0);
        }
        let state = State {
            taken: Usage::default(),
            clients: HashMap::new(),
            next_call: 0,
            draining: false,
            estimates: Estimates::default(),
        };
        Arc::new(Self {
            state: Mutex::new(state),
            settings: settings.clone(),
            metrics,
            emptied: Notify::new(),
        })
    }

    /// Admits a call of `client` if one more row could be served in time and `bytes` would fit now.
    ///
    /// The call uses no capacity yet: bytes are reserved as they arrive, rows once their number is known. So a call
    /// whose body stalls does not keep other calls out.
    pub(crate) fn admit(
        self: &Arc<Self>,
        client: ClientId,
        bytes: u64,
        deadline: Instant,
        now: Instant,
    ) -> Result<CallReservation, EngineError> {
        let mut state = self.state();
        if state.draining {
            return Err(self.refuse(Refusal::Draining, EngineError::ShuttingDown));
        }
        let call = CallId { client, number: state.next_call };
        // What the call needs is known later; it needs at least one row.
        self.check_wait(&state, call, (1, 0), deadline.saturating_duration_since(now))?;
        self.check_room(&state, client, Usage { rows: 1, bytes, ..Usage::default() })?;
        state.next_call += 1;
        self.add(&mut state, call, Usage::default());
        drop(state);
        Ok(CallReservation::new(Arc::clone(self), call))
    }

    /// Raises a call's reservation from `held` to `rows` and `images`. Returns what was added.
    fn reserve_more(
        &self,
        (call, held): (CallId, Usage),
        rows: usize,
        images: usize,
        left: Duration,
    ) -> Result<Usage, EngineError> {
        let capacity = self.settings.capacity_rows;
        if rows > capacity {
            let error = EngineError::TooManyRows { rows, capacity };
            return Err(self.refuse(Refusal::Full, error));
        }
        let mut state = self.state();
        self.check_wait(&state, call, (rows, images), left)?;
        let more = Usage {
            rows: rows.saturating_sub(held.rows),
            images: images.saturating_sub(held.images),
            ..Usage::default()
        };
        self.check_room(&state, call.client, more)?;
        self.add(&mut state, call, more);
        Ok(more)
    }

    /// Reserves `bytes` more for a call.
    fn reserve_more_bytes(&self, call: CallId, bytes: u64) -> Result<(), EngineError> {
        let mut state = self.state();
        let more = Usage { bytes, ..Usage::default() };
        self.check_room(&state, call.client, more)?;
        self.add(&mut state, call, more);
        Ok(())
    }

    /// Updates the estimates with what the worker has measured.
    pub(crate) fn publish(&self, estimates: Estimates) {
        self.state().estimates = estimates;
    }

    pub(crate) fn estimates(&self) -> Estimates {
        self.state().estimates
    }

    /// Starts draining: from now on no call is admitted.
    pub(crate) fn drain(&self) {
        self.state().draining = true;
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.state().draining
    }

    /// Rows in use.
    pub(crate) fn rows(&self) -> usize {
        self.state().taken.rows
    }

    /// Resolves when all rooms have been released.
    pub(crate) async fn emptied(&self) {
        loop {
            // Registered before the check, so that no notification is missed in between.
            let emptied = self.emptied.notified();
            if self.state().clients.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// Value for `Retry-After`: the estimated time until all current work is done.
    pub(crate) fn retry_after(&self) -> Duration {
        let state = self.state();
        self.retry(&state)
    }

    fn retry(&self, state: &State) -> Duration {
        let Usage { rows, images, encodings, .. } = state.taken;
        let images = state.estimates.encodings(images, Profile::default()) + encodings as f64;
        retry_after(state.estimates.work(rows as f64, images, &self.settings))
    }

    /// Rejects `own` rows and images of `call` if they would take or wait too long. With round robin a large call
    /// delays a single one by one turn only, and so does a client with many calls.
    fn check_wait(
        &self,
        state: &State,
        call: CallId,
        own: (usize, usize),
        left: Duration,
    ) -> Result<(), EngineError> {
        if left.is_zero() {
            return Err(self.refuse(Refusal::Deadline, EngineError::DeadlineExceeded));
        }
        let (calls, queue) = queue_ahead_of(state, call, own);
        let small = own.0 <= SMALL.0 && own.1 <= SMALL.1;
        if calls == 0 && (small || state.estimates.stale) {
            return Ok(());
        }
        // No image is queued, so encoding this one renews the estimate of what an image costs.
        let probe = small && queue.images == 0.0;
        let images =
            if probe { 0.0 } else { state.estimates.encodings(own.1, state.profile(call.client)) };
        let estimate = state.estimates.least_service(own.0, images, &self.settings);
        if estimate > left {
            // A small call cannot be split. After a stall the estimate is too high for a while, so retrying helps.
            let error = if small {
                EngineError::Overloaded { retry_after: retry_after(estimate) }
            } else {
                EngineError::TooLargeForDeadline { estimate, deadline: left }
            };
            return Err(self.refuse(Refusal::Deadline, error));
        }
        let wait = state.estimates.wait(&queue, &self.settings).mul_f64(SLIPPAGE);
        self.check_time(wait, estimate, left)
    }

    /// Rejects a wait above `max_queue_wait`, or one after which `work` would end beyond the deadline.
    fn check_time(
        &self,
        wait: Duration,
        work: Duration,
        left: Duration,
    ) -> Result<(), EngineError> {
        let overloaded = EngineError::Overloaded { retry_after: retry_after(wait) };
        if wait > self.settings.max_queue_wait {
            return Err(self.refuse(Refusal::Full, overloaded));
        }
        if wait + work > left {
            return Err(self.refuse(Refusal::Deadline, overloaded));
        }
        Ok(())
    }

    fn check_room(&self, state: &State, client: ClientId, more: Usage) -> Result<(), EngineError> {
        let holder = state.clients.get(&client);
        let own = holder.map(|client| client.taken).unwrap_or_default();
        let clients = state.clients.len() + usize::from(holder.is_none());
        let fit = |capacity, taken, own, more| fairness::fits(capacity, taken, own, clients, more);
        let (all, rows) = (&state.taken, |taken: &Usage| taken.rows as u64);
        if !fit(self.settings.capacity_rows as u64, rows(all), rows(&own), rows(&more))
            || !fit(self.settings.capacity_bytes, all.bytes, own.bytes, more.bytes)
        {
            let overloaded = EngineError::Overloaded { retry_after: self.retry(state) };
            return Err(self.refuse(Refusal::Full, overloaded));
        }
        Ok(())
    }

    fn refuse(&self, refusal: Refusal, error: EngineError) -> EngineError {
        self.metrics.queue_rejected_total.with_label_values(&[refusal.label()]).inc();
        error
    }

    fn add(&self, state: &mut State, call: CallId, more: Usage) {
        state.taken = state.taken.plus(more);
        let client = state.clients.entry(call.client).or_default();
        client.taken = client.taken.plus(more);
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
        state.taken = state.taken.minus(less);
        if let Some(client) = state.clients.get_mut(&call.client) {
            client.taken = client.taken.minus(less);
            if let Some(held) = client.calls.get_mut(&call.number) {
                *held = held.minus(less);
            }
        }
        self.update_gauges(&state);
    }

    /// Ends a call and releases its remaining reservation. Its tasks have ended before.
    fn end_call(&self, call: CallId, rest: Usage) {
        self.give_back(call, rest);
        let mut state = self.state();
        if let Some(client) = state.clients.get_mut(&call.client) {
            client.calls.remove(&call.number);
            if client.calls.is_empty() {
                state.clients.remove(&call.client);
            }
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

    /// Records the tokens that a row of the client ran in all.
    fn record_row(&self, client: ClientId, tokens: f64) {
        let State { clients, estimates, .. } = &mut *self.state();
        if let Some(client) = clients.get_mut(&client) {
            client.profile.record_row(tokens, estimates);
        }
    }

    /// Updates the gauges. Called under the lock, so that the last writer shows the last state.
    fn update_gauges(&self, state: &State) {
        self.metrics.queue_rows.set(state.taken.rows.try_into().unwrap_or(i64::MAX));
        self.metrics.queue_bytes.set(state.taken.bytes.try_into().unwrap_or(i64::MAX));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No instruction that could panic leaves the numbers inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `Retry-After` if the work ahead takes `work`.
fn retry_after(work: Duration) -> Duration {
    let (least, most) = RETRY_AFTER_SECONDS;
    Duration::from_secs_f64(work.as_secs_f64().ceil().clamp(least, most))
}
