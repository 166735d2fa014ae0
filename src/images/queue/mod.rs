//! What waits for the decoding threads, whose job is next, and how long a newcomer would wait.
//!
//! Clients share the threads by work, not by pictures: whoever has had the least goes next (start-time fair queueing), so
//! that large pictures of one client do not stand before small ones of another. Inside a client calls take turns.

#[cfg(test)]
pub(super) mod tests;

use super::pool::{Done, Job, Lane};
use crate::fairness::{self, CallId, ClientId, Turns};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Weight of the newest job in means over jobs.
const NEWEST: f64 = 0.1;

/// However small a picture is, it costs as much as one of so many pixels: about 100 us.
const LEAST_WORK: f64 = 1e4;

/// What a pixel costs is told by about so many of the last pixels: small pictures can hardly change it.
const REMEMBERED_WORK: f64 = 5e7;

/// Jobs that wait, and those that run.
#[derive(Default)]
pub(super) struct Queue {
    capacity: usize,
    jobs: HashMap<u64, Waiting>,
    next_id: u64,
    hashes: Turns<u64>,
    decodes: Turns<u64>,
    /// Jobs of each client that wait.
    clients: HashMap<ClientId, usize>,
    /// The work that each client has had, on one scale: who comes back or is new begins at `served`.
    had: HashMap<ClientId, f64>,
    /// What the client had that was served last.
    served: f64,
    running: Vec<Running>,
    /// Mean time of hashing of late, in seconds; 0 before the first.
    hash_seconds: f64,
    /// Time and work of decodes of late; their ratio is what a pixel costs.
    decode_seconds: f64,
    decode_work: f64,
    /// Mean work of decodes of late: what a file that is still being hashed is taken for.
    typical_work: f64,
    /// Whose turn it is; without jobs of that kind the other goes on.
    decode_next: bool,
    closed: bool,
}

/// A job that waits.
struct Waiting {
    job: Box<dyn Job>,
    lane: Lane,
    call: CallId,
    work: f64,
}

/// A job on a thread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Running {
    lane: Lane,
    client: ClientId,
    began: Instant,
    work: f64,
}

impl Queue {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, ..Self::default() }
    }

    /// Appends a job; a queue that is full, or has no room for this client, gives it back.
    pub(super) fn push(
        &mut self,
        job: Box<dyn Job>,
        lane: Lane,
        call: CallId,
    ) -> Result<(), Box<dyn Job>> {
        let own = self.clients.get(&call.client).copied().unwrap_or(0);
        let clients = self.clients.len() + usize::from(own == 0);
        let (capacity, waiting) = (self.capacity as u64, self.jobs.len() as u64);
        if !fairness::fits(capacity, waiting, own as u64, clients, 1) {
            return Err(job);
        }
        let id = self.next_id;
        self.next_id += 1;
        self.turns(lane).push(call, id);
        *self.clients.entry(call.client).or_default() += 1;
        let work = (job.work() as f64).max(LEAST_WORK);
        self.jobs.insert(id, Waiting { job, lane, call, work });
        Ok(())
    }

    /// The job whose turn it is; it runs from now on.
    pub(super) fn next(&mut self, now: Instant) -> Option<(Box<dyn Job>, Running)> {
        let decode =
            self.decode_next && self.decodes.front().is_some() || self.hashes.front().is_none();
        let lane = if decode { Lane::Decodes } else { Lane::Hashes };
        let id = match lane {
            Lane::Hashes => self.hashes.pop(),
            Lane::Decodes => self.next_decode(),
        }?;
        let (job, client, work) = self.forget(id)?;
        self.decode_next = !decode;
        let running = Running { lane, client, began: now, work };
        self.running.push(running);
        Some((job, running))
    }

    /// The next decode of the client that has had the least work.
    fn next_decode(&mut self) -> Option<u64> {
        let had = |client: &ClientId| {
            self.had.get(client).map_or(self.served, |had| had.max(self.served))
        };
        let client = self.decodes.clients().min_by(|a, b| had(a).total_cmp(&had(b)))?;
        self.served = had(&client);
        let id = self.decodes.pop_from(client)?;
        let work = self.jobs.get(&id).map_or(0.0, |waiting| waiting.work);
        self.had.insert(client, self.served + work);
        // Who is behind begins anew all the same.
        self.had.retain(|_, had| *had > self.served);
        Some(id)
    }

    /// Takes out the jobs that nobody wants any more.
    pub(super) fn take_unwanted(&mut self) -> Vec<Box<dyn Job>> {
        let unwanted = self
            .jobs
            .iter()
            .filter(|(_, waiting)| !waiting.job.is_wanted() && waiting.job.is_abandoned());
        let unwanted: Vec<(u64, Lane, CallId)> =
            unwanted.map(|(&id, waiting)| (id, waiting.lane, waiting.call)).collect();
        let take = unwanted.into_iter().filter_map(|(id, lane, call)| {
            self.turns(lane).remove(call, id);
            self.forget(id).map(|(job, ..)| job)
        });
        take.collect()
    }

    /// Nothing runs from now on; what waited is given back.
    pub(super) fn close(&mut self) -> impl Sized + use<> {
        self.closed = true;
        (self.hashes, self.decodes) = (Turns::new(), Turns::new());
        self.clients.clear();
        std::mem::take(&mut self.jobs)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// A job has ended: its time tells about the next. One that ended early can only tell that jobs take longer than
    /// thought.
    pub(super) fn ended(&mut self, job: Running, now: Instant, done: Done) {
        if let Some(place) = self.running.iter().position(|running| *running == job) {
            self.running.swap_remove(place);
        }
        let took = now.saturating_duration_since(job.began).as_secs_f64();
        self.charge(job, took);
        let expected = match job.lane {
            Lane::Hashes => self.hash_seconds,
            Lane::Decodes => self.decode_time(job.work),
        };
        if done == Done::Early && (expected == 0.0 || took <= expected) {
            return;
        }
        match job.lane {
            Lane::Hashes => follow(&mut self.hash_seconds, took),
            Lane::Decodes => {
                let kept = (-job.work / REMEMBERED_WORK).exp();
                self.decode_seconds = self.decode_seconds * kept + took;
                self.decode_work = self.decode_work * kept + job.work;
                follow(&mut self.typical_work, job.work);
            }
        }
    }

    /// A decode that took longer than its header said is charged for that: nobody gains by understating.
    fn charge(&mut self, job: Running, took: f64) {
        let expected = self.decode_time(job.work);
        if job.lane == Lane::Decodes && took > expected && expected > 0.0 {
            let more = job.work * (took / expected - 1.0);
            *self.had.entry(job.client).or_insert(self.served) += more;
        }
    }

    /// Seconds that a decode of so much work takes; 0 while nothing is known.
    fn decode_time(&self, work: f64) -> f64 {
        if self.decode_work > 0.0 { work * self.decode_seconds / self.decode_work } else { 0.0 }
    }

    /// Time until one of `threads` threads is free for the last of `files` files of a call that comes now; none while
    /// one has nothing to do.
    ///
    /// Of another call of the same client no more than `files` come first, of another client no more work than that of
    /// this client until then.
    pub(super) fn wait(
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
        let mut others: HashMap<ClientId, Load> = HashMap::new();
        for (other, load) in self.loads() {
            if other.client != call.client {
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

    /// What each call has waiting.
    fn loads(&self) -> HashMap<CallId, Load> {
        let mut loads: HashMap<CallId, Load> = HashMap::new();
        for waiting in self.jobs.values() {
            let seconds = match waiting.lane {
                // What is hashed is decoded next, as far as anybody knows.
                Lane::Hashes => self.hash_seconds + self.decode_time(self.typical_work),
                Lane::Decodes => self.decode_time(waiting.work),
            };
            loads.entry(waiting.call).or_default().add(Load { jobs: 1, seconds });
        }
        loads
    }

    /// What a job still takes by estimate; one that has run longer than that, as long again as it has run.
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

    /// A job has left its turns.
    fn forget(&mut self, id: u64) -> Option<(Box<dyn Job>, ClientId, f64)> {
        let Waiting { job, call, work, .. } = self.jobs.remove(&id)?;
        if let Some(own) = self.clients.get_mut(&call.client) {
            *own -= 1;
            if *own == 0 {
                self.clients.remove(&call.client);
            }
        }
        Some((job, call.client, work))
    }

    #[cfg(test)]
    pub(super) fn knows_decodes(&self) -> bool {
        self.decode_seconds > 0.0
    }
}

/// Takes a value into a mean, the first in full.
fn follow(mean: &mut f64, value: f64) {
    *mean += if *mean == 0.0 { value } else { NEWEST * (value - *mean) };
}

/// Jobs that wait, and the time that they take.
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

    /// The time of as many of them as come first within so many turns.
    fn seconds_of(self, turns: usize) -> f64 {
        self.seconds * self.jobs.min(turns) as f64 / self.jobs.max(1) as f64
    }
}
