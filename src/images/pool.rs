//! A few threads below the worker's priority behind two bounded queues: hashing and decoding.

use super::lock;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Niceness of the decoding threads: a busy worker gets about ten times their share of a core.
const NICENESS: i32 = 10;

/// Weight of the newest job in the mean time of its lane.
const NEWEST: f64 = 0.1;

/// Something to run on a pool thread.
pub(super) trait Job: Send {
    /// False when all who wanted it have left: it will end at once. Cheap, and takes no lock.
    fn is_wanted(&self) -> bool {
        true
    }

    /// Does it.
    fn run(self: Box<Self>) -> Done;
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// With what it was for: its time tells about the next.
    Work,
    /// Early: nobody wanted it any more, or its file was refused. Files that are refused are not what others wait
    /// for, and take microseconds.
    Early,
}

/// In which of the two queues a job waits. They take turns, each first come first served, so neither starves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Short work that comes before a place in the other queue: hashing.
    Hashes,
    /// Long work: decoding.
    Decodes,
}

/// The queue holds as many jobs as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueFull;

/// The way to the threads; they end when it is dropped, after the jobs that they run.
pub(super) struct Pool {
    queue: Arc<Queue>,
}

/// Shared by the pool's handle, which pushes, and its threads, which pop.
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    capacity: usize,
    threads: usize,
}

/// A job on a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Running {
    lane: Lane,
    began: Instant,
}

#[derive(Default)]
struct State {
    hashes: VecDeque<Box<dyn Job>>,
    decodes: VecDeque<Box<dyn Job>>,
    /// What runs now.
    running: Vec<Running>,
    /// Mean times of late, in seconds; 0 before the first job that did its work.
    hash_seconds: f64,
    decode_seconds: f64,
    /// Whose turn it is; without jobs of that kind the other goes on.
    decode_next: bool,
    closed: bool,
}

impl State {
    fn waiting(&self) -> usize {
        self.hashes.len() + self.decodes.len()
    }

    fn next(&mut self, now: Instant) -> Option<(Box<dyn Job>, Running)> {
        let decode = self.decode_next && !self.decodes.is_empty() || self.hashes.is_empty();
        let lane = if decode { Lane::Decodes } else { Lane::Hashes };
        let job = match lane {
            Lane::Hashes => self.hashes.pop_front(),
            Lane::Decodes => self.decodes.pop_front(),
        }?;
        self.decode_next = !decode;
        let running = Running { lane, began: now };
        self.running.push(running);
        Some((job, running))
    }

    /// A job has ended: takes its time into its lane's mean. One that ended early can only tell that jobs take longer
    /// than thought.
    fn ended(&mut self, job: Running, now: Instant, done: Done) {
        if let Some(place) = self.running.iter().position(|running| *running == job) {
            self.running.swap_remove(place);
        }
        let took = now.saturating_duration_since(job.began).as_secs_f64();
        let mean = match job.lane {
            Lane::Hashes => &mut self.hash_seconds,
            Lane::Decodes => &mut self.decode_seconds,
        };
        match done {
            Done::Work if *mean == 0.0 => *mean = took,
            Done::Early if *mean == 0.0 || took <= *mean => {}
            Done::Work | Done::Early => *mean += NEWEST * (took - *mean),
        }
    }

    /// Time until one of `threads` threads is free for a job that comes now; none while one has nothing to do.
    fn wait(&self, threads: usize, now: Instant) -> Duration {
        let wanted =
            |jobs: &VecDeque<Box<dyn Job>>| jobs.iter().filter(|job| job.is_wanted()).count();
        let (hashes, decodes) = (wanted(&self.hashes), wanted(&self.decodes));
        if hashes + decodes + self.running.len() < threads {
            return Duration::ZERO;
        }
        let running: f64 = self.running.iter().map(|job| self.seconds_left(*job, now)).sum();
        let seconds = running
            + hashes as f64 * (self.hash_seconds + self.decode_seconds)
            + decodes as f64 * self.decode_seconds;
        Duration::from_secs_f64(seconds / threads as f64)
    }

    /// What a job still takes by its lane's mean; nothing once it has run longer. What is hashed is decoded next, as
    /// far as anybody knows.
    fn seconds_left(&self, job: Running, now: Instant) -> f64 {
        let ran = now.saturating_duration_since(job.began).as_secs_f64();
        match job.lane {
            Lane::Hashes => (self.hash_seconds - ran).max(0.0) + self.decode_seconds,
            Lane::Decodes => (self.decode_seconds - ran).max(0.0),
        }
    }
}

impl Pool {
    /// Starts `threads` threads and queues of `capacity` jobs together.
    pub(super) fn start(threads: usize, capacity: usize) -> io::Result<Self> {
        let state = Mutex::new(State::default());
        let pool =
            Self { queue: Arc::new(Queue { state, changed: Condvar::new(), capacity, threads }) };
        for index in 0..threads {
            let queue = Arc::clone(&pool.queue);
            thread::Builder::new().name(format!("decode-{index}")).spawn(move || {
                lower_priority(index == 0);
                queue.work();
            })?;
        }
        Ok(pool)
    }

    /// How long a file that comes now would wait for its turn, by the mean times of late.
    pub(super) fn wait(&self) -> Duration {
        lock(&self.queue.state).wait(self.queue.threads, Instant::now())
    }

    /// Queues a job; never blocks. A job that is refused is dropped.
    pub(super) fn submit(&self, job: Box<dyn Job>, lane: Lane) -> Result<(), QueueFull> {
        let mut state = lock(&self.queue.state);
        if state.waiting() >= self.queue.capacity {
            // Dropping a job may run its owner's code: not under the lock.
            drop(state);
            return Err(QueueFull);
        }
        match lane {
            Lane::Hashes => state.hashes.push_back(job),
            Lane::Decodes => state.decodes.push_back(job),
        }
        drop(state);
        self.queue.changed.notify_one();
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = lock(&self.queue.state);
        state.closed = true;
        let abandoned = (std::mem::take(&mut state.hashes), std::mem::take(&mut state.decodes));
        drop(state);
        drop(abandoned);
        self.queue.changed.notify_all();
    }
}

impl Queue {
    fn work(&self) {
        while let Some((job, running)) = self.pop() {
            // The job reports its own panics; this one keeps the thread alive whatever it forgot.
            let done = catch_unwind(AssertUnwindSafe(|| job.run())).unwrap_or_else(|_| {
                tracing::error!("a decoding job panicked");
                Done::Early
            });
            lock(&self.state).ended(running, Instant::now(), done);
        }
    }

    fn pop(&self) -> Option<(Box<dyn Job>, Running)> {
        let mut state = lock(&self.state);
        loop {
            if let Some(job) = state.next(Instant::now()) {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Best effort: some sandboxes forbid it. Linux keeps the priority per thread, so the process's own stays.
fn lower_priority(report: bool) {
    let result = rustix::process::setpriority_process(None, NICENESS);
    if let Err(error) = result
        && report
    {
        tracing::warn!(%error, "decoding threads run at normal priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    impl<F: FnOnce() + Send> Job for F {
        fn run(self: Box<Self>) -> Done {
            self();
            Done::Work
        }
    }

    /// Ends as told; wanted by nobody.
    struct Unwanted(Done);

    impl Job for Unwanted {
        fn is_wanted(&self) -> bool {
            false
        }

        fn run(self: Box<Self>) -> Done {
            self.0
        }
    }

    /// A pool of one thread that is held until the sender is used or dropped.
    fn held(capacity: usize) -> (Pool, mpsc::Sender<()>) {
        let pool = Pool::start(1, capacity).unwrap();
        let (release, wait) = mpsc::channel::<()>();
        let (started, has_started) = mpsc::channel();
        let job = move || {
            started.send(()).unwrap();
            let _ = wait.recv();
        };
        pool.submit(Box::new(job), Lane::Decodes).unwrap();
        has_started.recv().unwrap();
        (pool, release)
    }

    #[test]
    fn a_full_queue_refuses_and_takes_jobs_again_later() {
        let (pool, release) = held(2);
        let (sender, ran) = mpsc::channel();
        let job = |name: &'static str| {
            let sender = sender.clone();
            Box::new(move || sender.send(name).unwrap())
        };
        assert_eq!(pool.submit(job("decode"), Lane::Decodes), Ok(()));
        assert_eq!(pool.submit(job("hash"), Lane::Hashes), Ok(()));
        assert_eq!(pool.submit(job("refused"), Lane::Hashes), Err(QueueFull));
        assert_eq!(pool.submit(job("refused"), Lane::Decodes), Err(QueueFull));
        release.send(()).unwrap();
        assert_eq!(ran.iter().take(2).collect::<Vec<_>>(), ["hash", "decode"]);
        assert_eq!(pool.submit(job("later"), Lane::Decodes), Ok(()));
        assert_eq!(ran.recv(), Ok("later"));
    }

    #[test]
    fn hashes_and_decodes_take_turns_each_in_the_order_of_arrival() {
        let (pool, release) = held(9);
        let (sender, ran) = mpsc::channel();
        let submit = |name: &'static str, lane| {
            let sender = sender.clone();
            let job = Box::new(move || sender.send(name).unwrap());
            assert_eq!(pool.submit(job, lane), Ok(()));
        };
        submit("decode 1", Lane::Decodes);
        submit("decode 2", Lane::Decodes);
        for name in ["hash 1", "hash 2", "hash 3", "hash 4"] {
            submit(name, Lane::Hashes);
        }
        release.send(()).unwrap();
        let order: Vec<_> = ran.iter().take(6).collect();
        assert_eq!(order, ["hash 1", "decode 1", "hash 2", "decode 2", "hash 3", "hash 4"]);
    }

    const SECOND: Duration = Duration::from_secs(1);

    /// A job of the lane has run.
    fn learn(state: &mut State, lane: Lane, took: Duration, done: Done) {
        let began = Instant::now();
        state.ended(Running { lane, began }, began + took, done);
    }

    /// Of the time when a job of each lane takes this long.
    fn known() -> State {
        State { hash_seconds: 1.0, decode_seconds: 2.0, ..State::default() }
    }

    #[test]
    fn the_wait_is_the_mean_time_of_what_stands_before_shared_by_the_threads() {
        let (mut state, now) = (State::default(), Instant::now());
        state.decodes.push_back(Box::new(|| ()));
        assert_eq!(state.wait(1, now), Duration::ZERO, "nothing is known yet");
        learn(&mut state, Lane::Decodes, SECOND * 2, Done::Work);
        learn(&mut state, Lane::Hashes, SECOND, Done::Work);
        assert_eq!(state.wait(1, now), SECOND * 2);
        state.hashes.push_back(Box::new(|| ()));
        assert_eq!(state.wait(1, now), SECOND * 5, "what is hashed is decoded next");
        assert_eq!(state.wait(2, now), SECOND * 5 / 2);
        learn(&mut state, Lane::Decodes, SECOND, Done::Work);
        assert!(state.wait(1, now) < SECOND * 5, "the mean follows");
    }

    #[test]
    fn files_that_are_refused_do_not_bring_the_estimate_down() {
        let (mut state, now) = (State::default(), Instant::now());
        let broken = Duration::from_micros(50);
        learn(&mut state, Lane::Decodes, broken, Done::Early);
        learn(&mut state, Lane::Decodes, SECOND, Done::Work);
        state.decodes.push_back(Box::new(|| ()));
        assert_eq!(state.wait(1, now), SECOND, "the first that is decoded is believed in full");
        for _ in 0..1000 {
            learn(&mut state, Lane::Decodes, broken, Done::Early);
        }
        assert_eq!(state.wait(1, now), SECOND);
        // One that fails late has kept a thread like any other.
        learn(&mut state, Lane::Decodes, SECOND * 11, Done::Early);
        assert_eq!(state.wait(1, now), SECOND * 2);
    }

    #[test]
    fn what_runs_counts_with_the_rest_of_its_time_where_no_thread_is_free() {
        let (mut state, now) = (known(), Instant::now());
        assert_eq!(state.wait(1, now), Duration::ZERO, "nothing waits and nothing runs");
        state.decodes.push_back(Box::new(|| ()));
        state.hashes.push_back(Box::new(|| ()));
        let (_, hash) = state.next(now).unwrap();
        let (_, decode) = state.next(now).unwrap();
        assert_eq!((hash.lane, decode.lane), (Lane::Hashes, Lane::Decodes));
        assert_eq!(state.wait(2, now), SECOND * 5 / 2);
        assert_eq!(state.wait(3, now), Duration::ZERO, "a third thread would be free");
        assert_eq!(state.wait(2, now + SECOND), SECOND * 3 / 2);
        assert_eq!(state.wait(2, now + SECOND * 60), SECOND, "the decoding that follows");
        state.ended(hash, now + SECOND, Done::Work);
        assert_eq!(state.wait(1, now + SECOND), SECOND);
        state.ended(decode, now + SECOND * 2, Done::Work);
        assert_eq!(state.wait(1, now), Duration::ZERO, "an idle pool takes whatever comes");
    }

    #[test]
    fn jobs_that_nobody_wants_any_more_are_not_waited_for() {
        let (mut state, now) = (known(), Instant::now());
        state.decodes.push_back(Box::new(Unwanted(Done::Early)));
        state.hashes.push_back(Box::new(Unwanted(Done::Early)));
        assert_eq!(state.wait(1, now), Duration::ZERO);
        state.decodes.push_back(Box::new(|| ()));
        assert_eq!(state.wait(1, now), SECOND * 2);
    }

    #[test]
    fn a_pool_learns_from_jobs_that_did_their_work_alone() {
        for (done, learns) in [(Done::Early, false), (Done::Work, true)] {
            let pool = Pool::start(1, 4).unwrap();
            pool.submit(Box::new(Unwanted(done)), Lane::Decodes).unwrap();
            // The one thread has ended the first job when it runs the second.
            let (sender, ran) = mpsc::channel();
            pool.submit(Box::new(move || sender.send(()).unwrap()), Lane::Hashes).unwrap();
            let (sender, ran_last) = mpsc::channel();
            pool.submit(Box::new(move || sender.send(()).unwrap()), Lane::Hashes).unwrap();
            ran.recv().unwrap();
            ran_last.recv().unwrap();
            assert_eq!(lock(&pool.queue.state).decode_seconds > 0.0, learns, "{done:?}");
        }
    }

    #[test]
    fn a_panic_leaves_the_thread_alive() {
        let pool = Pool::start(1, 4).unwrap();
        pool.submit(Box::new(|| panic!("on purpose")), Lane::Decodes).unwrap();
        let (sender, ran) = mpsc::channel();
        pool.submit(Box::new(move || sender.send(()).unwrap()), Lane::Decodes).unwrap();
        assert_eq!(ran.recv(), Ok(()));
    }

    #[test]
    fn dropping_the_pool_drops_what_waits() {
        let (pool, release) = held(4);
        let (sender, ran) = mpsc::channel::<()>();
        pool.submit(Box::new(move || sender.send(()).unwrap()), Lane::Decodes).unwrap();
        drop(pool);
        assert!(ran.recv().is_err());
        drop(release);
    }
}
