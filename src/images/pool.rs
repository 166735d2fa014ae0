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
/// A job whose client has left ends at once; what ends within this says nothing about the next.
const NOTHING_DONE: Duration = Duration::from_micros(20);

/// Something to run on a pool thread.
pub(super) type Job = Box<dyn FnOnce() + Send>;

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

#[derive(Default)]
struct State {
    hashes: VecDeque<Job>,
    decodes: VecDeque<Job>,
    /// Mean times of late, in seconds; 0 before the first job.
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

    fn next(&mut self) -> Option<(Job, Lane)> {
        let decode = self.decode_next && !self.decodes.is_empty() || self.hashes.is_empty();
        let job = if decode { self.decodes.pop_front() } else { self.hashes.pop_front() }?;
        self.decode_next = !decode;
        Some((job, if decode { Lane::Decodes } else { Lane::Hashes }))
    }

    /// Takes the time of a job that has ended into its lane's mean.
    fn learn(&mut self, lane: Lane, took: Duration) {
        if took < NOTHING_DONE {
            return;
        }
        let mean = match lane {
            Lane::Hashes => &mut self.hash_seconds,
            Lane::Decodes => &mut self.decode_seconds,
        };
        let weight = if *mean == 0.0 { 1.0 } else { NEWEST };
        *mean += weight * (took.as_secs_f64() - *mean);
    }

    /// Time that one thread needs for all that waits. What is hashed is decoded next, as far as anybody knows.
    fn work(&self) -> Duration {
        let (hashes, decodes) = (self.hashes.len() as f64, self.decodes.len() as f64);
        let seconds =
            hashes * (self.hash_seconds + self.decode_seconds) + decodes * self.decode_seconds;
        Duration::from_secs_f64(seconds)
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

    /// How long a file that comes now would wait for its turn, by the mean times of late; what runs does not count.
    pub(super) fn wait(&self) -> Duration {
        lock(&self.queue.state).work() / self.queue.threads as u32
    }

    /// Queues a job; never blocks. A job that is refused is dropped.
    pub(super) fn submit(&self, job: Job, lane: Lane) -> Result<(), QueueFull> {
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
        while let Some((job, lane)) = self.pop() {
            let began = Instant::now();
            // The job reports its own panics; this one keeps the thread alive whatever it forgot.
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("a decoding job panicked");
            }
            lock(&self.state).learn(lane, began.elapsed());
        }
    }

    fn pop(&self) -> Option<(Job, Lane)> {
        let mut state = lock(&self.state);
        loop {
            if let Some(job) = state.next() {
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

    #[test]
    fn the_wait_is_the_mean_time_of_what_stands_before_shared_by_the_threads() {
        let second = Duration::from_secs(1);
        let mut state = State::default();
        state.decodes.push_back(Box::new(|| ()));
        assert_eq!(state.work(), Duration::ZERO, "nothing is known yet");
        state.learn(Lane::Decodes, second * 2);
        state.learn(Lane::Hashes, second);
        // A job whose client had left changes nothing.
        state.learn(Lane::Decodes, Duration::ZERO);
        assert_eq!(state.work(), second * 2);
        state.hashes.push_back(Box::new(|| ()));
        assert_eq!(state.work(), second * 5, "what is hashed is decoded next");
        state.learn(Lane::Decodes, second);
        assert!(state.work() < second * 5, "the mean follows");
    }

    #[test]
    fn a_pool_learns_from_its_jobs_and_has_no_wait_when_nothing_waits() {
        let (pool, release) = held(4);
        pool.submit(Box::new(|| ()), Lane::Decodes).unwrap();
        assert_eq!(pool.wait(), Duration::ZERO);
        // Longer than a job that does nothing.
        let began = Instant::now();
        while began.elapsed() < NOTHING_DONE * 2 {
            thread::yield_now();
        }
        release.send(()).unwrap();
        let (sender, ran) = mpsc::channel();
        let last = sender.clone();
        pool.submit(Box::new(move || sender.send(()).unwrap()), Lane::Decodes).unwrap();
        ran.recv().unwrap();
        assert_eq!(pool.wait(), Duration::ZERO);
        let (release, wait) = mpsc::channel::<()>();
        let (started, has_started) = mpsc::channel();
        let hold = move || {
            started.send(()).unwrap();
            let _ = wait.recv();
        };
        pool.submit(Box::new(hold), Lane::Decodes).unwrap();
        has_started.recv().unwrap();
        pool.submit(Box::new(move || last.send(()).unwrap()), Lane::Decodes).unwrap();
        assert!(pool.wait() >= NOTHING_DONE, "{:?}", pool.wait());
        drop(release);
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
