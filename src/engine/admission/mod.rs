//! Capacity in rows and bytes, reserved before any work is done. Nothing here waits: a refusal is a result.
//!
//! The [`Ledger`] is one std mutex around a few numbers: it is held for nanoseconds and never across an await.
//! Room is held by values that give it back when they are dropped: a [`Room`] for what a call has reserved and not
//! yet submitted, a [`Claim`] for each submitted task. `handle` hands rooms out, tasks carry claims to the worker.
//!
//! What an image costs is known only when the worker has looked it up: until then it counts as the share of an encoding
//! that images have needed of late; found (cached, or under way for another task) it costs nothing, missed all of it.
//!
//! Estimates are learnt from units that run, so a bad one must not keep units from running: where nothing else is
//! admitted a small call always passes, and so does any call once the estimates are stale.

mod estimate;
mod room;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

pub use self::estimate::Estimates;
use self::estimate::Queue;
pub(crate) use self::room::{Claim, Room};
use super::ids::CallId;
use super::sync::{Mutex, MutexGuard, Notify};
use super::{EngineError, EngineSettings};
use crate::fairness::{self, ClientId};
use crate::telemetry::metrics::Metrics;

/// Rows and images of a call so small that one of it on an idle engine is the way to learn what work costs.
const SMALL: (usize, usize) = (8, 1);

/// How much longer calls wait than the backend's own times say: between its calls the worker plans and answers, beside it
/// HTTP wants the cores, and a call whose turn has come shares the worker until it is done. At ten times the capacity of
/// two cores 1 % of the accepted calls took 4.5 s where 3 s were estimated (2026-11-25).
const SLIPPAGE: f64 = 1.5;

/// `Retry-After` in seconds: at least one, and short enough that a recovered server is found again.
const RETRY_AFTER_SECONDS: (f64, f64) = (1.0, 30.0);

/// What is taken at present.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Taken {
    rows: usize,
    /// Images that still have to be looked up.
    images: usize,
    /// Images that were looked up in vain and still have to be encoded.
    encodings: usize,
    bytes: u64,
}

/// What a client holds, and each of its calls that are alive.
#[derive(Debug, Default)]
struct Client {
    taken: Taken,
    calls: HashMap<u64, Taken>,
}

impl Taken {
    /// True when something of it is for the worker to do; a call whose body is being read holds bytes alone.
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

/// Other calls that hold something, and what of them stands before a call with `own` rows and images. Clients take turns,
/// then the calls of a client: of another call of its client no more than its own items come first, of another client no
/// more than there are turns until then.
fn before(book: &Book, call: CallId, own: (usize, usize)) -> (usize, Queue) {
    let mut queue = Queue::default();
    let (mut calls, mut all) = (0, Taken::default());
    // Turns of the call's own client until its last item.
    let (mut turns_rows, mut turns_images) = own;
    let mut count = |taken: Taken, most: (usize, usize)| {
        let encodings = taken.encodings.min(most.1);
        let unknown = taken.images.min(most.1 - encodings);
        let rows = taken.rows.min(most.0);
        queue.rows += rows;
        queue.images += encodings as f64 + book.estimates.encodings(unknown);
        (rows, encodings + unknown)
    };
    if let Some(client) = book.clients.get(&call.client) {
        for taken in client.calls.iter().filter(|&(&other, _)| other != call.number).map(|it| *it.1)
        {
            let (rows, images) = count(taken, own);
            turns_rows += rows;
            turns_images += images;
            calls += usize::from(taken.is_work());
            all = all.plus(taken);
        }
    }
    for client in book.clients.iter().filter(|&(&other, _)| other != call.client).map(|it| it.1) {
        count(client.taken, (turns_rows, turns_images));
        calls += usize::from(client.taken.is_work());
        all = all.plus(client.taken);
    }
    let images = all.encodings as f64 + book.estimates.encodings(all.images);
    queue.other_rows = all.rows as f64 > images;
    queue.other_images = images > 0.0;
    (calls, queue)
}

#[derive(Debug)]
struct Book {
    taken: Taken,
    /// Who holds what of it; nothing that was admitted remains when it is empty.
    clients: HashMap<ClientId, Client>,
    next_call: u64,
    draining: bool,
    estimates: Estimates,
}

/// Who holds how much. Shared by every handle, every room and the worker.
pub(crate) struct Ledger {
    book: Mutex<Book>,
    settings: EngineSettings,
    metrics: Arc<Metrics>,
    /// Told when the last room is given back.
    emptied: Notify,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("book", &self.book).finish_non_exhaustive()
    }
}

/// Why a request was refused, as `queue_rejected_total` names it.
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

impl Ledger {
    pub(crate) fn new(settings: &EngineSettings, metrics: Arc<Metrics>) -> Arc<Self> {
        metrics.queue_capacity.set(settings.capacity_rows.try_into().unwrap_or(i64::MAX));
        for refusal in Refusal::ALL {
            metrics.queue_rejected_total.with_label_values(&[refusal.label()]).inc_by(0);
        }
        let book = Book {
            taken: Taken::default(),
            clients: HashMap::new(),
            next_call: 0,
            draining: false,
            estimates: Estimates::default(),
        };
        Arc::new(Self {
            book: Mutex::new(book),
            settings: settings.clone(),
            metrics,
            emptied: Notify::new(),
        })
    }

    /// Lets a call of `client` in, if a row more could be served in time and `bytes` would find room now. It holds nothing
    /// yet: bytes are reserved as they arrive, rows once they are known, so that a call of which nothing more comes keeps
    /// nobody out.
    pub(crate) fn admit(
        self: &Arc<Self>,
        client: ClientId,
        bytes: u64,
        deadline: Instant,
        now: Instant,
    ) -> Result<Room, EngineError> {
        let mut book = self.book();
        if book.draining {
            return Err(self.refuse(Refusal::Draining, EngineError::ShuttingDown));
        }
        let call = CallId { client, number: book.next_call };
        // What it brings is known later; the least is one row.
        self.check_wait(&book, call, (1, 0), deadline.saturating_duration_since(now))?;
        self.check_room(&book, client, Taken { rows: 1, bytes, ..Taken::default() })?;
        book.next_call += 1;
        self.add(&mut book, call, Taken::default());
        drop(book);
        Ok(Room::new(Arc::clone(self), call))
    }

    /// Raises what a call holds from `held` to `rows` and `images`.
    fn raise(
        &self,
        (call, held): (CallId, Taken),
        rows: usize,
        images: usize,
        left: Duration,
    ) -> Result<Taken, EngineError> {
        let capacity = self.settings.capacity_rows;
        if rows > capacity {
            let error = EngineError::TooManyRows { rows, capacity };
            return Err(self.refuse(Refusal::Full, error));
        }
        let mut book = self.book();
        self.check_wait(&book, call, (rows, images), left)?;
        let more = Taken {
            rows: rows.saturating_sub(held.rows),
            images: images.saturating_sub(held.images),
            ..Taken::default()
        };
        self.check_room(&book, call.client, more)?;
        self.add(&mut book, call, more);
        Ok(more)
    }

    /// Takes `bytes` more.
    fn raise_bytes(&self, call: CallId, bytes: u64) -> Result<(), EngineError> {
        let mut book = self.book();
        let more = Taken { bytes, ..Taken::default() };
        self.check_room(&book, call.client, more)?;
        self.add(&mut book, call, more);
        Ok(())
    }

    /// Publishes what the worker has measured.
    pub(crate) fn publish(&self, estimates: Estimates) {
        self.book().estimates = estimates;
    }

    /// What the worker has measured.
    pub(crate) fn estimates(&self) -> Estimates {
        self.book().estimates
    }

    /// From now on nothing is admitted.
    pub(crate) fn drain(&self) {
        self.book().draining = true;
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.book().draining
    }

    /// Rows taken.
    pub(crate) fn rows(&self) -> usize {
        self.book().taken.rows
    }

    /// Resolves when no room is left out.
    pub(crate) async fn emptied(&self) {
        loop {
            // Registered before the look, so that no notification falls between.
            let emptied = self.emptied.notified();
            if self.book().clients.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// The answer to "when should I come again": when what is taken now is done.
    pub(crate) fn retry_after(&self) -> Duration {
        let book = self.book();
        self.retry(&book)
    }

    fn retry(&self, book: &Book) -> Duration {
        let Taken { rows, images, encodings, .. } = book.taken;
        let images = book.estimates.encodings(images) + encodings as f64;
        retry_after(book.estimates.work(rows, images, &self.settings))
    }

    /// Would `own` rows and images of `call` take or wait too long? Clients and calls take turns: a large call delays a
    /// single one by one turn, and so does a client with many calls.
    fn check_wait(
        &self,
        book: &Book,
        call: CallId,
        own: (usize, usize),
        left: Duration,
    ) -> Result<(), EngineError> {
        if left.is_zero() {
            return Err(self.refuse(Refusal::Deadline, EngineError::DeadlineExceeded));
        }
        let (calls, queue) = before(book, call, own);
        let small = own.0 <= SMALL.0 && own.1 <= SMALL.1;
        if calls == 0 && (small || book.estimates.stale) {
            return Ok(());
        }
        // No image is on its way, so this one is what tells anew what an image costs.
        let probe = small && queue.images == 0.0;
        let images = if probe { 0.0 } else { book.estimates.encodings(own.1) };
        let estimate = book.estimates.least_service(own.0, images, &self.settings);
        if estimate > left {
            // A small call cannot be split, and after a stall the estimate is too high for a while: asking again helps.
            let error = if small {
                EngineError::Overloaded { retry_after: retry_after(estimate) }
            } else {
                EngineError::TooLargeForDeadline { estimate, deadline: left }
            };
            return Err(self.refuse(Refusal::Deadline, error));
        }
        let wait = book.estimates.wait(&queue, &self.settings).mul_f64(SLIPPAGE);
        self.check_time(wait, estimate, left)
    }

    /// Refuses a wait longer than any call may have, or one after which `work` would end behind the deadline.
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

    fn check_room(&self, book: &Book, client: ClientId, more: Taken) -> Result<(), EngineError> {
        let holder = book.clients.get(&client);
        let own = holder.map(|client| client.taken).unwrap_or_default();
        let clients = book.clients.len() + usize::from(holder.is_none());
        let fit = |capacity, taken, own, more| fairness::fits(capacity, taken, own, clients, more);
        let (all, rows) = (&book.taken, |taken: &Taken| taken.rows as u64);
        if !fit(self.settings.capacity_rows as u64, rows(all), rows(&own), rows(&more))
            || !fit(self.settings.capacity_bytes, all.bytes, own.bytes, more.bytes)
        {
            let overloaded = EngineError::Overloaded { retry_after: self.retry(book) };
            return Err(self.refuse(Refusal::Full, overloaded));
        }
        Ok(())
    }

    fn refuse(&self, refusal: Refusal, error: EngineError) -> EngineError {
        self.metrics.queue_rejected_total.with_label_values(&[refusal.label()]).inc();
        error
    }

    fn add(&self, book: &mut Book, call: CallId, more: Taken) {
        book.taken = book.taken.plus(more);
        let client = book.clients.entry(call.client).or_default();
        client.taken = client.taken.plus(more);
        let held = client.calls.entry(call.number).or_default();
        *held = held.plus(more);
        self.show(book);
    }

    /// Takes more for a call that has been admitted; nothing is tested.
    fn take(&self, call: CallId, more: Taken) {
        let mut book = self.book();
        self.add(&mut book, call, more);
    }

    fn give_back(&self, call: CallId, less: Taken) {
        let mut book = self.book();
        book.taken = book.taken.minus(less);
        if let Some(client) = book.clients.get_mut(&call.client) {
            client.taken = client.taken.minus(less);
            if let Some(held) = client.calls.get_mut(&call.number) {
                *held = held.minus(less);
            }
        }
        self.show(&book);
    }

    /// A call's room is given back; its tasks have ended before.
    fn end_call(&self, call: CallId, rest: Taken) {
        self.give_back(call, rest);
        let mut book = self.book();
        if let Some(client) = book.clients.get_mut(&call.client) {
            client.calls.remove(&call.number);
            if client.calls.is_empty() {
                book.clients.remove(&call.client);
            }
        }
        if book.clients.is_empty() {
            self.emptied.notify_waiters();
        }
    }

    /// Under the lock, so that the last writer shows the last state.
    fn show(&self, book: &Book) {
        self.metrics.queue_rows.set(book.taken.rows.try_into().unwrap_or(i64::MAX));
        self.metrics.queue_bytes.set(book.taken.bytes.try_into().unwrap_or(i64::MAX));
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // The numbers are consistent at every instruction that could panic.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When to come again if what stands before takes so long.
fn retry_after(work: Duration) -> Duration {
    let (least, most) = RETRY_AFTER_SECONDS;
    Duration::from_secs_f64(work.as_secs_f64().ceil().clamp(least, most))
}
