//! A few threads below the worker's priority behind a bounded queue.

use super::lock;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

/// Niceness of the decoding threads: a busy worker gets about ten times their share of a core.
const NICENESS: i32 = 10;

/// Something to run on a pool thread.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// Where a job stands in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Before all others: short work that someone else's place in the queue depends on.
    Next,
    /// Behind all others.
    Last,
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
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Pool {
    /// Starts `threads` threads and a queue of `capacity` jobs.
    pub(super) fn start(threads: usize, capacity: usize) -> io::Result<Self> {
        let state = Mutex::new(State::default());
        let pool = Self { queue: Arc::new(Queue { state, changed: Condvar::new(), capacity }) };
        for index in 0..threads {
            let queue = Arc::clone(&pool.queue);
            thread::Builder::new().name(format!("decode-{index}")).spawn(move || {
                lower_priority(index == 0);
                queue.work();
            })?;
        }
        Ok(pool)
    }

    /// Queues a job; never blocks. A job that is refused is dropped.
    pub(super) fn submit(&self, job: Job, turn: Turn) -> Result<(), QueueFull> {
        let mut state = lock(&self.queue.state);
        if state.jobs.len() >= self.queue.capacity {
            // Dropping a job may run its owner's code: not under the lock.
            drop(state);
            return Err(QueueFull);
        }
        match turn {
            Turn::Next => state.jobs.push_front(job),
            Turn::Last => state.jobs.push_back(job),
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
        let abandoned = std::mem::take(&mut state.jobs);
        drop(state);
        drop(abandoned);
        self.queue.changed.notify_all();
    }
}

impl Queue {
    fn work(&self) {
        while let Some(job) = self.pop() {
            // The job reports its own panics; this one keeps the thread alive whatever it forgot.
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("a decoding job panicked");
            }
        }
    }

    fn pop(&self) -> Option<Job> {
        let mut state = lock(&self.state);
        loop {
            if let Some(job) = state.jobs.pop_front() {
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
        pool.submit(Box::new(job), Turn::Last).unwrap();
        has_started.recv().unwrap();
        (pool, release)
    }

    #[test]
    fn a_full_queue_refuses_and_short_work_goes_first() {
        let (pool, release) = held(3);
        let (sender, ran) = mpsc::channel();
        let job = |name: &'static str| {
            let sender = sender.clone();
            Box::new(move || sender.send(name).unwrap())
        };
        assert_eq!(pool.submit(job("first"), Turn::Last), Ok(()));
        assert_eq!(pool.submit(job("second"), Turn::Last), Ok(()));
        assert_eq!(pool.submit(job("short"), Turn::Next), Ok(()));
        assert_eq!(pool.submit(job("refused"), Turn::Next), Err(QueueFull));
        release.send(()).unwrap();
        let order: Vec<_> = ran.iter().take(3).collect();
        assert_eq!(order, ["short", "first", "second"]);
        assert_eq!(pool.submit(job("later"), Turn::Last), Ok(()));
        assert_eq!(ran.recv(), Ok("later"));
    }

    #[test]
    fn a_panic_leaves_the_thread_alive() {
        let pool = Pool::start(1, 4).unwrap();
        pool.submit(Box::new(|| panic!("on purpose")), Turn::Last).unwrap();
        let (sender, ran) = mpsc::channel();
        pool.submit(Box::new(move || sender.send(()).unwrap()), Turn::Last).unwrap();
        assert_eq!(ran.recv(), Ok(()));
    }

    #[test]
    fn dropping_the_pool_drops_what_waits() {
        let (pool, release) = held(4);
        let (sender, ran) = mpsc::channel::<()>();
        pool.submit(Box::new(move || sender.send(()).unwrap()), Turn::Last).unwrap();
        drop(pool);
        assert!(ran.recv().is_err());
        drop(release);
    }
}
