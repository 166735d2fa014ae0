//! What waits for the decoding threads, whose job is next, and how long a newcomer would wait.
//!
//! Clients share the threads by work, not by pictures: whoever has had the least goes next (start-time fair queueing), so
//! that large pictures of one client do not stand before small ones of another. Inside a client calls take turns.

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

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::images) fn call(client: u64, number: u64) -> CallId {
        CallId { client: ClientId(client), number }
    }

    /// A call of a client that has no other.
    pub(in crate::images) fn lone(number: u64) -> CallId {
        call(number, number)
    }

    const SECOND: Duration = Duration::from_secs(1);

    /// Wanted or not, and a million pixels.
    struct Idle(bool);

    const MEGAPIXEL: u64 = 1_000_000;

    impl Job for Idle {
        fn is_wanted(&self) -> bool {
            self.0
        }

        fn work(&self) -> u64 {
            MEGAPIXEL
        }

        fn run(self: Box<Self>) -> Done {
            Done::Work
        }
    }

    fn push(queue: &mut Queue, lane: Lane, call: CallId) -> bool {
        queue.push(Box::new(Idle(true)), lane, call).is_ok()
    }

    /// A job of the lane has run.
    fn learn(queue: &mut Queue, lane: Lane, took: Duration, done: Done) {
        let began = Instant::now();
        let client = ClientId(1);
        queue.ended(Running { lane, client, began, work: MEGAPIXEL as f64 }, began + took, done);
    }

    /// Of the time when hashing takes a second and decoding two seconds a megapixel.
    fn known() -> Queue {
        let work = MEGAPIXEL as f64;
        let means = Queue { hash_seconds: 1.0, decode_seconds: 2.0, ..Queue::new(512) };
        Queue { decode_work: work, typical_work: work, ..means }
    }

    /// The wait of a new call of a client of its own with one file.
    fn wait(queue: &Queue, threads: usize, now: Instant) -> Duration {
        queue.wait(lone(99), 1, threads, now)
    }

    #[test]
    fn the_wait_is_the_mean_time_of_what_stands_before_shared_by_the_threads() {
        let (mut queue, now) = (Queue::new(9), Instant::now());
        push(&mut queue, Lane::Decodes, lone(1));
        assert_eq!(wait(&queue, 1, now), Duration::ZERO, "nothing is known yet");
        learn(&mut queue, Lane::Decodes, SECOND * 2, Done::Work);
        learn(&mut queue, Lane::Hashes, SECOND, Done::Work);
        assert_eq!(wait(&queue, 1, now), SECOND * 2);
        push(&mut queue, Lane::Hashes, lone(2));
        assert_eq!(wait(&queue, 1, now), SECOND * 4, "no more of it than the own work");
        assert_eq!(wait(&queue, 2, now), SECOND * 2);
        learn(&mut queue, Lane::Decodes, SECOND, Done::Work);
        assert!(wait(&queue, 1, now) < SECOND * 4, "the mean follows");
    }

    #[test]
    fn of_others_no_more_stands_before_a_call_than_its_own_work() {
        let (mut queue, now) = (known(), Instant::now());
        for _ in 0..64 {
            push(&mut queue, Lane::Decodes, call(1, 1));
        }
        assert_eq!(wait(&queue, 1, now), SECOND * 2, "one turn of the batch");
        assert_eq!(
            queue.wait(call(1, 2), 1, 1, now),
            SECOND * 2,
            "also for its own client's calls"
        );
        for number in 2..12 {
            push(&mut queue, Lane::Decodes, call(1, number));
        }
        assert_eq!(wait(&queue, 1, now), SECOND * 2, "many calls of one client are one turn");
        assert_eq!(queue.wait(call(1, 99), 1, 1, now), SECOND * 22, "but for their own client");
        assert_eq!(queue.wait(lone(99), 3, 1, now), SECOND * 6, "three files, three turns");
    }

    #[test]
    fn small_pictures_of_one_client_do_not_wait_for_the_large_ones_of_another() {
        struct Sized(u64);
        impl Job for Sized {
            fn work(&self) -> u64 {
                self.0
            }

            fn run(self: Box<Self>) -> Done {
                Done::Work
            }
        }
        let (mut queue, now) = (Queue::new(99), Instant::now());
        let mut push = |megapixels: u64, call| {
            assert!(
                queue.push(Box::new(Sized(megapixels * MEGAPIXEL)), Lane::Decodes, call).is_ok()
            );
        };
        (0..10).for_each(|_| push(50, lone(1)));
        (0..20).for_each(|number| push(1, call(2, number)));
        let order: Vec<u64> =
            std::iter::from_fn(|| queue.next(now)).map(|(job, _)| job.work() / MEGAPIXEL).collect();
        // One large picture is in hand when the others come; all of theirs are less work than that.
        assert_eq!(order[..21], [[50].as_slice(), &[1; 20]].concat());
        assert_eq!(order.len(), 30);
    }

    #[test]
    fn a_decode_that_takes_longer_than_it_said_is_paid_for() {
        let (mut queue, now) = (known(), Instant::now());
        for client in [1, 2, 1, 2, 2] {
            push(&mut queue, Lane::Decodes, lone(client));
        }
        let mut next = |took| {
            let (_, running) = queue.next(now).unwrap();
            queue.ended(running, now + took, Done::Work);
            running.client
        };
        assert_eq!(next(SECOND * 60), ClientId(1));
        let order: Vec<ClientId> = (0..4).map(|_| next(SECOND * 2)).collect();
        assert_eq!(order, [2, 2, 2, 1].map(ClientId));
    }

    #[test]
    fn a_client_that_fills_the_queue_leaves_room_for_others() {
        let mut queue = Queue::new(8);
        let mut fill = |client| {
            (0..99)
                .take_while(|&number| push(&mut queue, Lane::Decodes, call(client, number)))
                .count()
        };
        assert_eq!(fill(1), 8, "alone it may take everything");
        assert_eq!(fill(2), 2, "a quarter more");
        assert_eq!(fill(1), 0);
        queue.close();
        assert!(queue.next(Instant::now()).is_none());
    }

    #[test]
    fn files_that_are_refused_do_not_bring_the_estimate_down() {
        let (mut queue, now) = (Queue::new(9), Instant::now());
        let broken = Duration::from_micros(50);
        learn(&mut queue, Lane::Decodes, broken, Done::Early);
        learn(&mut queue, Lane::Decodes, SECOND, Done::Work);
        push(&mut queue, Lane::Decodes, lone(1));
        assert_eq!(wait(&queue, 1, now), SECOND, "the first that is decoded is believed in full");
        for _ in 0..1000 {
            learn(&mut queue, Lane::Decodes, broken, Done::Early);
        }
        assert_eq!(wait(&queue, 1, now), SECOND);
        // One that fails late has kept a thread like any other.
        learn(&mut queue, Lane::Decodes, SECOND * 11, Done::Early);
        assert!(wait(&queue, 1, now) > SECOND * 5);
    }

    #[test]
    fn a_file_costs_by_its_work_and_small_ones_do_not_change_what_a_pixel_costs() {
        struct Large;
        impl Job for Large {
            fn work(&self) -> u64 {
                50 * MEGAPIXEL
            }

            fn run(self: Box<Self>) -> Done {
                Done::Work
            }
        }
        let (mut queue, now) = (known(), Instant::now());
        assert!(queue.push(Box::new(Large), Lane::Decodes, call(99, 1)).is_ok());
        assert_eq!(wait(&queue, 1, now), SECOND * 100);
        for _ in 0..1000 {
            let began = Instant::now();
            let (lane, client) = (Lane::Decodes, ClientId(1));
            let small = Running { lane, client, began, work: LEAST_WORK };
            queue.ended(small, began + Duration::from_micros(50), Done::Work);
        }
        let seconds = wait(&queue, 1, now).as_secs_f64();
        assert!((5.0..100.0).contains(&seconds), "{seconds}");
    }

    #[test]
    fn what_runs_counts_with_the_rest_of_its_time_where_no_thread_is_free() {
        let (mut queue, now) = (known(), Instant::now());
        assert_eq!(wait(&queue, 1, now), Duration::ZERO, "nothing waits and nothing runs");
        push(&mut queue, Lane::Decodes, lone(1));
        push(&mut queue, Lane::Hashes, lone(1));
        let (_, hash) = queue.next(now).unwrap();
        let (_, decode) = queue.next(now).unwrap();
        assert_eq!((hash.lane, decode.lane), (Lane::Hashes, Lane::Decodes));
        assert_eq!(wait(&queue, 2, now), SECOND * 5 / 2);
        assert_eq!(wait(&queue, 3, now), Duration::ZERO, "a third thread would be free");
        assert_eq!(wait(&queue, 2, now + SECOND), SECOND * 3 / 2);
        queue.ended(hash, now + SECOND, Done::Work);
        assert_eq!(wait(&queue, 1, now + SECOND), SECOND);
        assert_eq!(wait(&queue, 1, now + SECOND * 7), SECOND * 7, "it overruns: as long again");
        queue.ended(decode, now + SECOND * 2, Done::Work);
        assert_eq!(wait(&queue, 1, now), Duration::ZERO, "an idle pool takes whatever comes");
    }

    #[test]
    fn what_nobody_wants_any_more_is_taken_out() {
        let mut queue = Queue::new(2);
        for lane in [Lane::Hashes, Lane::Decodes] {
            assert!(queue.push(Box::new(Idle(false)), lane, lone(1)).is_ok());
        }
        assert!(!push(&mut queue, Lane::Decodes, lone(1)), "full");
        assert_eq!(queue.take_unwanted().len(), 2);
        assert!(push(&mut queue, Lane::Decodes, lone(1)));
        assert_eq!(queue.take_unwanted().len(), 0);
        assert!(queue.next(Instant::now()).is_some());
        assert!(queue.next(Instant::now()).is_none());
    }
}
