//! The queue of the decoding threads: decides which jobs are admitted and which job runs next, and estimates how long a
//! new call would wait.
//!
//! Clients share the threads by time, not by number of pictures: the client that has received the least time is served
//! next (start-time fair queueing). Large pictures of one client therefore do not delay small ones of another. Bulk work
//! gets a twentieth of the time while other work waits, and the rest when none does. When a
//! decode starts, its client is charged the expected time; when it ends, the time that it took. The calls of one client
//! take turns (round robin). The queue itself has no lock, threads or clock: `pool` has the lock
//! and the threads, and passes the time as an argument.

mod job;
#[cfg(test)]
pub(super) mod tests;

pub(super) use self::job::{Job, JobOutcome, Lane};
use crate::fairness::{self, CallId, ClientId, Deficit, Turns};
use crate::mutations::{self, Mutation};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Weight of the newest job in the exponential moving averages.
const NEWEST: f64 = 0.1;

/// Minimum work, in pixels, that is charged for a picture. This much work takes about 100 us.
const LEAST_WORK: f64 = 1e4;

/// Window, in pixels, of the moving average of the time per pixel. Each decode counts in proportion to its pixels, so
/// small pictures hardly change the average.
const REMEMBERED_WORK: f64 = 5e7;

/// Work, in pixels, after which the average alone determines the time per pixel of a large decode. Until then, the rest
/// is assumed to take `ASSUMED_SECONDS` per pixel, because the fixed costs of a small picture say nothing about the
/// pixels of a large one.
const ENOUGH_WORK: f64 = 1e6;

/// Time per pixel, in seconds, before enough is decoded. Decoding takes 5 to 20 ns per pixel, depending on the format.
const ASSUMED_SECONDS: f64 = 1e-8;

/// Time of a large decode, in seconds, for which bulk work may delay other work once in a while.
const TYPICAL_SECONDS: f64 = 0.1;

/// The waiting jobs, the running jobs, and moving averages of the durations of jobs.
pub(super) struct Queue {
    capacity: usize,
    jobs: BTreeMap<u64, Waiting>,
    next_id: u64,
    hashes: Turns<u64>,
    decodes: Turns<u64>,
    /// Number of waiting jobs of each client that has any.
    clients: BTreeMap<ClientId, usize>,
    /// Number of waiting jobs of bulk work.
    bulk_jobs: usize,
    /// Finish time, in virtual time, of each client's last decode. It measures the time, in seconds, for which the client
    /// has had a thread. A client without an entry starts at `virtual_time`.
    finish_times: BTreeMap<ClientId, f64>,
    /// Virtual time in seconds, which is the start time of the decode that was taken last.
    virtual_time: f64,
    /// The time that decodes of interactive work and of bulk work have had a thread.
    classes: Deficit,
    running: Vec<Running>,
    /// Moving average of the duration of hashing, in seconds; 0 before the first job.
    hash_seconds: f64,
    /// Decaying sums of the seconds and the work of recent decodes; their ratio is the time per pixel.
    decode_seconds: f64,
    decode_work: f64,
    /// Moving average of the work of a decode: the estimate for a file that is still being hashed.
    typical_work: f64,
    /// True if it is the turn of the decodes. If the lane whose turn it is has no jobs, the other lane is served.
    decode_next: bool,
    closed: bool,
}

struct Waiting {
    job: Box<dyn Job>,
    lane: Lane,
    /// The call that queued the job.
    call: CallId,
    /// Calls of other clients that wait for the same decode. It runs when the turn of any client comes.
    joined: Vec<CallId>,
    work: f64,
}

/// A job that a thread is running.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Running {
    lane: Lane,
    client: ClientId,
    began: Instant,
    work: f64,
    /// Seconds that the client of a decode was charged when it started.
    charged: f64,
}

impl Queue {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            jobs: BTreeMap::new(),
            next_id: 0,
            hashes: Turns::new(),
            decodes: Turns::new(),
            clients: BTreeMap::new(),
            bulk_jobs: 0,
            finish_times: BTreeMap::new(),
            virtual_time: 0.0,
            classes: Deficit::for_bulk_work(TYPICAL_SECONDS),
            running: Vec::new(),
            hash_seconds: 0.0,
            decode_seconds: 0.0,
            decode_work: 0.0,
            typical_work: 0.0,
            decode_next: false,
            closed: false,
        }
    }

    /// Appends a job and returns its number. If the queue, or the client's share of the queue, is full, the job is returned
    /// as the error. Jobs of bulk work do not count: admission control limits their number, and they wait behind all others.
    pub(super) fn push(
        &mut self,
        job: Box<dyn Job>,
        lane: Lane,
        call: CallId,
    ) -> Result<u64, Box<dyn Job>> {
        let mutated = mutations::is_active(Mutation::DecodesInOrderOfArrival);
        let call = if mutated { CallId { client: ClientId(0), number: 0 } } else { call };
        let own = self.clients.get(&call.client).copied().unwrap_or(0);
        let interactive = |client: &&ClientId| !client.is_bulk();
        let clients = self.clients.keys().filter(interactive).count() + usize::from(own == 0);
        let (capacity, waiting) = (self.capacity as u64, (self.jobs.len() - self.bulk_jobs) as u64);
        if call.client.is_bulk() {
            self.bulk_jobs += 1;
        } else if !fairness::fits(capacity, waiting, own as u64, clients, 1) {
            return Err(job);
        }
        let id = self.next_id;
        self.next_id += 1;
        self.turns(lane).push(call, id);
        *self.clients.entry(call.client).or_default() += 1;
        let work = (job.work() as f64).max(LEAST_WORK);
        self.jobs.insert(id, Waiting { job, lane, call, joined: Vec::new(), work });
        Ok(id)
    }

    /// Notes that a call of another client waits for this decode, so that it runs at that client's turn as well. Without
    /// this, the call would wait for its picture behind all work of a client that happened to send the same picture
    /// earlier, or behind all interactive work if it came in bulk work. Calls of one client keep the turn of the first.
    pub(super) fn join(&mut self, id: u64, call: CallId) {
        let mutated = [Mutation::JoinedDecodesKeepTheirTurn, Mutation::DecodesInOrderOfArrival];
        if mutated.into_iter().any(mutations::is_active) {
            return;
        }
        let Some(waiting) = self.jobs.get_mut(&id) else { return };
        let is_other = |known: &CallId| known.client != call.client;
        let is_new = is_other(&waiting.call) && waiting.joined.iter().all(is_other);
        if waiting.lane == Lane::Decodes && is_new {
            waiting.joined.push(call);
            self.decodes.push(call, id);
        }
    }

    /// Takes the next job, which counts as running from `now`.
    pub(super) fn next(&mut self, now: Instant) -> Option<(Box<dyn Job>, Running)> {
        let decode =
            self.decode_next && self.decodes.front().is_some() || self.hashes.front().is_none();
        let lane = if decode { Lane::Decodes } else { Lane::Hashes };
        let (client, id, charged) = match lane {
            Lane::Hashes => self.next_hash()?,
            Lane::Decodes => self.next_decode()?,
        };
        let (job, work) = self.forget(id)?;
        self.decode_next = !decode;
        let running = Running { lane, client, began: now, work, charged };
        self.running.push(running);
        Some((job, running))
    }

    /// Takes the next hash of the class that has received the least time for decodes. Hashes are not charged.
    fn next_hash(&mut self) -> Option<(ClientId, u64, f64)> {
        let class = choose_class(&mut self.classes, &self.hashes)?;
        let client = self.hashes.clients().find(|client| class_of(*client) == class)?;
        Some((client, self.hashes.pop_from(client)?, 0.0))
    }

    /// Takes the next decode of the client that has received the least time. Returns the client, the decode's number, and
    /// the seconds that the client is charged for it.
    fn next_decode(&mut self) -> Option<(ClientId, u64, f64)> {
        let start_time = |client: &ClientId| {
            let finish_time = self.finish_times.get(client);
            finish_time.map_or(self.virtual_time, |finish_time| finish_time.max(self.virtual_time))
        };
        let class = choose_class(&mut self.classes, &self.decodes)?;
        let of_class = self.decodes.clients().filter(|client| class_of(*client) == class);
        let client = of_class.min_by(|a, b| start_time(a).total_cmp(&start_time(b)))?;
        self.virtual_time = start_time(&client);
        let id = self.decodes.pop_from(client)?;
        let work = self.jobs.get(&id).map_or(0.0, |waiting| waiting.work);
        let charged = self.expected_time(work);
        self.classes.charge(class, charged);
        self.finish_times.insert(client, self.virtual_time + charged);
        // A client without an entry starts at the virtual time, so an entry is needed only while its finish time is
        // later than the virtual time.
        self.finish_times.retain(|_, finish_time| *finish_time > self.virtual_time);
        Some((client, id, charged))
    }

    /// Removes the jobs without waiters and returns them, so that the caller can drop them outside the lock.
    pub(super) fn take_unwanted(&mut self) -> Vec<Box<dyn Job>> {
        if mutations::is_active(Mutation::AbandonedDecodesStay) {
            return Vec::new();
        }
        let unwanted = self
            .jobs
            .iter()
            .filter(|(_, waiting)| !waiting.job.is_wanted() && waiting.job.is_abandoned());
        let unwanted: Vec<u64> = unwanted.map(|(&id, _)| id).collect();
        unwanted.into_iter().filter_map(|id| Some(self.forget(id)?.0)).collect()
    }

    /// Closes the queue, so that no further job runs. Returns the waiting jobs, to be dropped outside the lock.
    pub(super) fn close(&mut self) -> impl Sized + use<> {
        self.closed = true;
        (self.hashes, self.decodes) = (Turns::new(), Turns::new());
        self.clients.clear();
        self.bulk_jobs = 0;
        std::mem::take(&mut self.jobs)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Records the end of a job and updates the estimates with its duration. A job that ended early can only raise an
    /// estimate.
    pub(super) fn ended(&mut self, job: Running, now: Instant, done: JobOutcome) {
        if let Some(place) = self.running.iter().position(|running| *running == job) {
            self.running.swap_remove(place);
        }
        let took = now.saturating_duration_since(job.began).as_secs_f64();
        self.settle(job, took);
        let expected = match job.lane {
            Lane::Hashes => self.hash_seconds,
            Lane::Decodes => self.decode_time(job.work),
        };
        if done == JobOutcome::EndedEarly && (expected == 0.0 || took <= expected) {
            return;
        }
        match job.lane {
            Lane::Hashes => update_average(&mut self.hash_seconds, took),
            Lane::Decodes => {
                let kept = (-job.work / REMEMBERED_WORK).exp();
                self.decode_seconds = self.decode_seconds * kept + took;
                self.decode_work = self.decode_work * kept + job.work;
                update_average(&mut self.typical_work, job.work);
            }
        }
    }

    /// Charges the client of a decode the time that it took, in place of the time that was expected. So neither a file
    /// whose header understates the work nor a wrong expectation changes the client's share.
    fn settle(&mut self, job: Running, took: f64) {
        if job.lane == Lane::Decodes {
            let more = took.max(LEAST_WORK * ASSUMED_SECONDS) - job.charged;
            self.classes.charge(class_of(job.client), more);
            let finish_time = self.finish_times.entry(job.client).or_insert(self.virtual_time);
            *finish_time = (*finish_time + more).max(self.virtual_time);
        }
    }

    /// Estimates the duration in seconds of a decode with this work; 0 before the first decode.
    fn decode_time(&self, work: f64) -> f64 {
        if self.decode_work > 0.0 { self.expected_time(work) } else { 0.0 }
    }

    /// Like [`decode_time`](Self::decode_time), but assumes a time before the first decode.
    fn expected_time(&self, work: f64) -> f64 {
        let missing = (work.min(ENOUGH_WORK) - self.decode_work).max(0.0);
        let seconds = self.decode_seconds + missing * ASSUMED_SECONDS;
        work * seconds / (self.decode_work + missing)
    }

    /// Estimates the time until a thread is free for the last of `files` files, if their call arrived now. Returns zero
    /// if one of the `threads` threads is idle.
    ///
    /// Fair queueing bounds the work that runs before the last file. Each other call of the same client contributes at
    /// most `files` jobs. Each other client contributes at most as much work as the call's own client receives until
    /// then.
    pub(super) fn estimated_wait(
        &self,
        call: CallId,
        files: usize,
        threads: usize,
        now: Instant,
    ) -> Duration {
        if self.jobs.len() + self.running.len() < threads {
            return Duration::ZERO;
        }
        let mut before = 0.0;
        let mut others: BTreeMap<ClientId, Load> = BTreeMap::new();
        for (other, load) in self.loads() {
            if other.client.is_bulk() && !call.client.is_bulk() {
                // It runs behind this call.
            } else if other.client != call.client {
                others.entry(other.client).or_default().add(load);
            } else if other != call {
                before += load.seconds_of(files);
            }
        }
        let own = before + files as f64 * self.decode_time(self.typical_work);
        before += others.values().map(|load| load.seconds.min(own)).sum::<f64>();
        let running: f64 = self.running.iter().map(|job| self.seconds_left(*job, now)).sum();
        Duration::from_secs_f64((running + before) / threads as f64)
    }

    /// Returns the number of waiting jobs of each call, with their estimated duration.
    fn loads(&self) -> BTreeMap<CallId, Load> {
        let mut loads: BTreeMap<CallId, Load> = BTreeMap::new();
        for waiting in self.jobs.values() {
            let seconds = match waiting.lane {
                // Assume that a decode follows every hash.
                Lane::Hashes => self.hash_seconds + self.decode_time(self.typical_work),
                Lane::Decodes => self.decode_time(waiting.work),
            };
            loads.entry(waiting.call).or_default().add(Load { jobs: 1, seconds });
        }
        loads
    }

    /// Estimates the seconds until a running job ends. For a hash job, the decode that follows it is included. A job
    /// that has exceeded its estimate is expected to need as long again as it has already run.
    fn seconds_left(&self, job: Running, now: Instant) -> f64 {
        let ran = now.saturating_duration_since(job.began).as_secs_f64();
        let left = |all: f64| if ran > all && all > 0.0 { ran } else { all - ran.min(all) };
        match job.lane {
            Lane::Hashes => left(self.hash_seconds) + self.decode_time(self.typical_work),
            Lane::Decodes => left(self.decode_time(job.work)),
        }
    }

    fn turns(&mut self, lane: Lane) -> &mut Turns<u64> {
        match lane {
            Lane::Hashes => &mut self.hashes,
            Lane::Decodes => &mut self.decodes,
        }
    }

    /// Removes a job, which one of its calls may already have taken out of `hashes` or `decodes`.
    fn forget(&mut self, id: u64) -> Option<(Box<dyn Job>, f64)> {
        let Waiting { job, lane, call, joined, work } = self.jobs.remove(&id)?;
        for waiting in joined.into_iter().chain([call]) {
            self.turns(lane).remove(waiting, id);
        }
        self.bulk_jobs -= usize::from(call.client.is_bulk());
        if let Some(own) = self.clients.get_mut(&call.client) {
            *own -= 1;
            if *own == 0 {
                self.clients.remove(&call.client);
            }
        }
        Some((job, work))
    }

    #[cfg(test)]
    pub(super) fn held_file_bytes(&self) -> usize {
        self.jobs.values().map(|waiting| waiting.job.file_bytes()).sum()
    }

    #[cfg(test)]
    pub(super) fn knows_decodes(&self) -> bool {
        self.decode_seconds > 0.0
    }
}

/// Returns the class whose turn it is among those that have jobs.
fn choose_class(classes: &mut Deficit, jobs: &Turns<u64>) -> Option<usize> {
    classes.choose([jobs.front_of(false).is_some(), jobs.front_of(true).is_some()])
}

/// Returns the index of a client's class: 0 for interactive work, 1 for bulk work.
fn class_of(client: ClientId) -> usize {
    usize::from(client.is_bulk())
}

/// Updates an exponential moving average; the first value counts in full.
fn update_average(mean: &mut f64, value: f64) {
    *mean += if *mean == 0.0 { value } else { NEWEST * (value - *mean) };
}

/// The number of waiting jobs and their estimated total duration in seconds.
#[derive(Debug, Default, Clone, Copy)]
struct Load {
    jobs: usize,
    seconds: f64,
}

impl Load {
    fn add(&mut self, other: Self) {
        self.jobs += other.jobs;
        self.seconds += other.seconds;
    }

    /// Estimates the duration in seconds of the jobs that are served within `turns` turns.
    fn seconds_of(self, turns: usize) -> f64 {
        self.seconds * self.jobs.min(turns) as f64 / self.jobs.max(1) as f64
    }
}
