//! The decoding thread pool: a few threads with a lower priority than the inference worker, which hash and decode
//! files.

use super::queue::{Job, JobOutcome, Lane, Queue, Running};
use crate::fairness::CallId;
use crate::platform::{self, Monitor, spawn_background};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// Error: the queue, or the client's share of the queue, is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueFull;

/// The handle of the pool. Dropping it drops the waiting jobs, and ends each thread after the job that it is running.
pub(super) struct Pool {
    shared: Arc<SharedQueue>,
}

/// The state shared by the pool's handle, which pushes jobs, and its threads, which pop them.
struct SharedQueue {
    queue: Monitor<Queue>,
    threads: usize,
}

impl Pool {
    /// Starts `threads` threads. `capacity` is the maximum number of waiting jobs, hashes and decodes together.
    pub(super) fn start(threads: usize, capacity: usize) -> io::Result<Self> {
        let queue = Monitor::new(Queue::new(capacity));
        let pool = Self { shared: Arc::new(SharedQueue { queue, threads }) };
        for index in 0..threads {
            let shared = Arc::clone(&pool.shared);
            spawn_background(format!("decode-{index}"), index == 0, move || shared.work())?;
        }
        Ok(pool)
    }

    /// Estimates how long the last of `files` files would wait in the queue if their call arrived now. The estimate is
    /// based on moving averages of past jobs.
    pub(super) fn estimated_wait(&self, call: CallId, files: usize) -> Duration {
        let SharedQueue { queue, threads, .. } = &*self.shared;
        queue.lock().estimated_wait(call, files, *threads, platform::now())
    }

    /// Queues a job of a call without blocking, and returns its number. A rejected job is dropped.
    pub(super) fn submit(
        &self,
        job: Box<dyn Job>,
        lane: Lane,
        call: CallId,
    ) -> Result<u64, QueueFull> {
        // `push` returns a rejected job instead of dropping it, so that the job is dropped outside the lock: its
        // destructor may run any code.
        let pushed = self.shared.queue.lock().push(job, lane, call);
        let id = pushed.map_err(|_refused| QueueFull)?;
        self.shared.queue.notify_one();
        Ok(id)
    }

    /// Notes that another call waits for this decode.
    pub(super) fn join(&self, id: u64, call: CallId) {
        self.shared.queue.lock().join(id, call);
    }

    /// Returns the number of bytes of the files of waiting jobs.
    #[cfg(test)]
    pub(super) fn held_file_bytes(&self) -> usize {
        self.shared.queue.lock().held_file_bytes()
    }

    /// Removes the jobs without waiters from the queue, which frees their files.
    pub(super) fn sweep(&self) {
        let unwanted = self.shared.queue.lock().take_unwanted();
        drop(unwanted);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let abandoned = self.shared.queue.lock().close();
        drop(abandoned);
        self.shared.queue.notify_all();
    }
}

impl SharedQueue {
    fn work(&self) {
        while let Some((job, running)) = self.pop() {
            // Jobs catch the panics of their decoders. If any other panic escapes from a job, `catch_unwind` keeps the
            // thread alive.
            let done = catch_unwind(AssertUnwindSafe(|| job.run())).unwrap_or_else(|_| {
                tracing::error!("a decoding job panicked");
                JobOutcome::EndedEarly
            });
            self.queue.lock().ended(running, platform::now(), done);
        }
    }

    fn pop(&self) -> Option<(Box<dyn Job>, Running)> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(next) = queue.next(platform::now()) {
                return Some(next);
            }
            if queue.is_closed() {
                return None;
            }
            queue = self.queue.wait(queue);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::queue::tests::{call, lone};
    use std::sync::mpsc;

    impl<F: FnOnce() + Send> Job for F {
        fn run(self: Box<Self>) -> JobOutcome {
            self();
            JobOutcome::Completed
        }
    }

    /// Returns a pool with a single thread, which is blocked until the returned sender is used or dropped.
    fn held(capacity: usize) -> (Pool, mpsc::Sender<()>) {
        let pool = Pool::start(1, capacity).unwrap();
        let (release, wait) = mpsc::channel::<()>();
        let (started, has_started) = mpsc::channel();
        let job = move || {
            started.send(()).unwrap();
            let _ = wait.recv();
        };
        pool.submit(Box::new(job), Lane::Decodes, lone(0)).unwrap();
        has_started.recv().unwrap();
        (pool, release)
    }

    #[test]
    fn a_full_queue_refuses_and_takes_jobs_again_later() {
        let (pool, release) = held(2);
        let (sender, ran) = mpsc::channel();
        let submit = |name: &'static str, lane| {
            let sender = sender.clone();
            pool.submit(Box::new(move || sender.send(name).unwrap()), lane, lone(1))
        };
        assert!(submit("decode", Lane::Decodes).is_ok());
        assert!(submit("hash", Lane::Hashes).is_ok());
        assert_eq!(submit("refused", Lane::Hashes), Err(QueueFull));
        assert_eq!(submit("refused", Lane::Decodes), Err(QueueFull));
        release.send(()).unwrap();
        assert_eq!(ran.iter().take(2).collect::<Vec<_>>(), ["hash", "decode"]);
        assert!(submit("later", Lane::Decodes).is_ok());
        assert_eq!(ran.recv(), Ok("later"));
    }

    #[test]
    fn hashes_and_decodes_take_turns_each_in_the_order_of_arrival() {
        let (pool, release) = held(9);
        let (sender, ran) = mpsc::channel();
        let submit = |name: &'static str, lane| {
            let sender = sender.clone();
            let job = Box::new(move || sender.send(name).unwrap());
            assert!(pool.submit(job, lane, lone(1)).is_ok());
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
    fn one_batch_does_not_delay_the_pictures_of_other_calls() {
        let (pool, release) = held(99);
        let (sender, ran) = mpsc::channel();
        let submit = |name: &'static str, call| {
            let sender = sender.clone();
            let job = Box::new(move || sender.send(name).unwrap());
            assert!(pool.submit(job, Lane::Decodes, call).is_ok());
        };
        (0..64).for_each(|_| submit("batch", call(1, 1)));
        submit("other call", call(1, 2));
        submit("other client", call(2, 3));
        release.send(()).unwrap();
        let order: Vec<_> = ran.iter().take(4).collect();
        assert_eq!(order, ["batch", "other client", "other call", "batch"]);
    }

    #[test]
    fn a_panic_leaves_the_thread_alive() {
        let pool = Pool::start(1, 4).unwrap();
        pool.submit(Box::new(|| panic!("on purpose")), Lane::Decodes, lone(1)).unwrap();
        let (sender, ran) = mpsc::channel();
        pool.submit(Box::new(move || sender.send(()).unwrap()), Lane::Decodes, lone(1)).unwrap();
        assert_eq!(ran.recv(), Ok(()));
    }

    #[test]
    fn dropping_the_pool_drops_what_waits() {
        let (pool, release) = held(4);
        let (sender, ran) = mpsc::channel::<()>();
        pool.submit(Box::new(move || sender.send(()).unwrap()), Lane::Decodes, lone(1)).unwrap();
        drop(pool);
        assert!(ran.recv().is_err());
        drop(release);
    }

    #[test]
    fn a_pool_learns_from_jobs_that_did_their_work_alone() {
        struct Ends(JobOutcome);
        impl Job for Ends {
            fn run(self: Box<Self>) -> JobOutcome {
                self.0
            }
        }
        for (done, learns) in [(JobOutcome::EndedEarly, false), (JobOutcome::Completed, true)] {
            let pool = Pool::start(1, 4).unwrap();
            pool.submit(Box::new(Ends(done)), Lane::Decodes, lone(1)).unwrap();
            // The pool's single thread records the end of a job before it runs the next job.
            let (sender, ran) = mpsc::channel();
            pool.submit(Box::new(move || sender.send(()).unwrap()), Lane::Hashes, lone(1)).unwrap();
            let (sender, ran_last) = mpsc::channel();
            pool.submit(Box::new(move || sender.send(()).unwrap()), Lane::Hashes, lone(1)).unwrap();
            ran.recv().unwrap();
            ran_last.recv().unwrap();
            assert_eq!(pool.shared.queue.lock().knows_decodes(), learns, "{done:?}");
        }
    }
}
