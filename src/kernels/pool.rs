//! Thread pool of the kernels: the calling thread, and a few helper threads that spin for a short time before they
//! sleep.
//!
//! One thread (the engine's worker) drives the pool. A job is a loop over numbered parts. Each thread starts with a
//! contiguous range of them, because neighbouring parts read neighbouring memory: a core's prefetches at the end of one
//! part then serve the next. A thread that has finished its range takes parts from the ranges of the others, so a core
//! that another process keeps busy causes little delay. The parts share nothing, so the result does not depend on which
//! thread computes a part.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Number of times that a helper checks for work before it sleeps. The checks take about 50 microseconds. This is
/// longer than the gap between two products of one layer, and short enough that an idle server uses no noticeable CPU
/// time.
const SPINS: usize = 2_000;

/// Threads that share the parts of a job. One job runs at a time.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<PoolState>,
    helpers: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct PoolState {
    /// Number of jobs started so far.
    epoch: AtomicUsize,
    /// For each thread, the number of parts of its range that were taken. May exceed the length of the range.
    taken: Box<[Taken]>,
    /// Number of helpers that work on the running job. `Pool::run` waits until this number is 0. The number increases
    /// only while `job` is locked.
    busy: AtomicUsize,
    /// Payload of a panic in a helper, for the running job.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// The running job. It is removed once all parts are taken, so that a helper that wakes up late does not delay the
    /// caller.
    job: Mutex<Option<PoolJob>>,
    wake: Condvar,
    /// Number of helpers that are asleep.
    sleeping: AtomicUsize,
    ended: AtomicBool,
}

/// A counter in memory of its own: 128 bytes, because processors fetch cache lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Taken(AtomicUsize);

/// The running job as the helpers see it. `part` is valid until `Pool::run` returns, which happens only after all
/// helpers have finished.
#[derive(Clone, Copy)]
struct PoolJob {
    part: &'static (dyn Fn(usize) + Sync),
    parts: usize,
}

impl std::fmt::Debug for PoolJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PoolJob of {} parts", self.parts)
    }
}

impl Pool {
    /// Starts a pool of `threads` threads, including the calling thread.
    ///
    /// # Errors
    /// When the operating system cannot start the threads.
    pub fn try_new(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(PoolState {
            epoch: AtomicUsize::new(0),
            taken: (0..threads.max(1)).map(|_| Taken::default()).collect(),
            busy: AtomicUsize::new(0),
            panic: Mutex::new(None),
            job: Mutex::new(None),
            wake: Condvar::new(),
            sleeping: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        // On an error, `pool` is dropped, which ends the helpers that have started.
        let mut pool = Self { shared, helpers: Vec::new() };
        for index in 1..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let name = format!("kernels-{index}");
            let helper =
                std::thread::Builder::new().name(name).spawn(move || shared.help(index))?;
            pool.helpers.push(helper);
        }
        Ok(pool)
    }

    /// Starts a pool for tests. Panics if the threads cannot be started.
    #[cfg(test)]
    pub(in crate::kernels) fn new(threads: usize) -> Self {
        Self::try_new(threads).expect("a few threads")
    }

    /// Returns the number of threads, including the calling thread.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `part` with every index below `parts`, on any of the threads. Returns after all calls have returned.
    ///
    /// # Panics
    /// If a part panics, with the payload of that panic. By then, every other part has either run or been skipped.
    pub fn run(&mut self, parts: usize, part: &(dyn Fn(usize) + Sync)) {
        if self.helpers.is_empty() || parts <= 1 {
            (0..parts).for_each(part);
            return;
        }
        let shared = &*self.shared;
        {
            #[expect(unsafe_code, reason = "lends a borrowed closure to other threads")]
            // SAFETY: this changes only the lifetime. The function does not return before all helpers have stopped
            // using the closure.
            let part = unsafe {
                std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(
                    part,
                )
            };
            shared.taken.iter().for_each(|taken| taken.0.store(0, Ordering::Relaxed));
            *shared.lock() = Some(PoolJob { part, parts });
        }
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        if shared.sleeping.load(Ordering::SeqCst) > 0 {
            // Notify while holding the lock, so that no helper misses the notification. A helper holds the same lock
            // from its last check of the epoch until it sleeps. So it either sleeps already and is woken, or checks the
            // epoch later and sees the new value.
            let _job = shared.lock();
            shared.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| shared.take_parts(0, part, parts)));
        if own.is_err() {
            shared.skip_parts(parts);
        }
        *shared.lock() = None;
        let mut turns = 0;
        while shared.busy.load(Ordering::Acquire) > 0 {
            turns += 1;
            // A helper that takes this long may have lost its core, possibly to this thread, so this thread yields.
            if turns % SPINS == 0 { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        let others = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = own.err().or(others) {
            resume_unwind(panic);
        }
    }
}

impl PoolState {
    fn lock(&self) -> MutexGuard<'_, Option<PoolJob>> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Computes parts as thread `thread`: first those of its own range, then those that are left of the other ranges.
    fn take_parts(&self, thread: usize, part: &(dyn Fn(usize) + Sync), parts: usize) {
        let threads = self.taken.len();
        for offset in 0..threads {
            let range = (thread + offset) % threads;
            let (first, last) = (parts * range / threads, parts * (range + 1) / threads);
            loop {
                let index = first + self.taken[range].0.fetch_add(1, Ordering::Relaxed);
                if index >= last {
                    break;
                }
                part(index);
            }
        }
    }

    /// Lets no thread take another one of the `parts` parts.
    fn skip_parts(&self, parts: usize) {
        self.taken.iter().for_each(|taken| taken.0.store(parts, Ordering::Relaxed));
    }

    /// The loop of helper `thread`.
    fn help(&self, thread: usize) {
        let mut seen = 0;
        loop {
            self.wait(seen);
            if self.ended.load(Ordering::Acquire) {
                return;
            }
            seen = self.epoch.load(Ordering::SeqCst);
            if let Some(job) = self.enter() {
                let parts = AssertUnwindSafe(|| self.take_parts(thread, job.part, job.parts));
                if let Err(panic) = catch_unwind(parts) {
                    self.skip_parts(job.parts);
                    *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                }
                self.busy.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// Joins the running job and returns it; `None` if no job is running. `Pool::run` waits for helpers that have
    /// joined.
    fn enter(&self) -> Option<PoolJob> {
        let job = self.lock();
        if job.is_some() {
            self.busy.fetch_add(1, Ordering::Relaxed);
        }
        *job
    }

    /// Blocks until the number of started jobs differs from `seen`, or the pool ends.
    fn wait(&self, seen: usize) {
        let there =
            || self.epoch.load(Ordering::SeqCst) != seen || self.ended.load(Ordering::Acquire);
        for _ in 0..SPINS {
            if there() {
                return;
            }
            std::hint::spin_loop();
        }
        let mut job = self.lock();
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        while !there() {
            job = self.wake.wait(job).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        {
            let _job = self.shared.lock();
            self.shared.wake.notify_all();
        }
        for helper in self.helpers.drain(..) {
            // `join` returns no panic, because a helper catches the panics of its jobs.
            let _ = helper.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_runs_exactly_once_for_any_number_of_threads_and_parts() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads);
            for parts in [0, 1, 2, 7, 100] {
                let counts: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..20 {
                    pool.run(parts, &|index| {
                        counts[index].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 20));
            }
        }
    }

    #[test]
    fn parts_of_a_busy_thread_are_taken_by_the_others() {
        let mut pool = Pool::new(2);
        let parts = 64;
        let others = AtomicUsize::new(0);
        pool.run(parts, &|index| {
            if index == 0 {
                // The first part of the first thread's range ends only after all other parts have.
                while others.load(Ordering::Acquire) < parts - 1 {
                    std::thread::yield_now();
                }
            } else {
                others.fetch_add(1, Ordering::Release);
            }
        });
        assert_eq!(others.load(Ordering::Relaxed), parts - 1);
    }

    #[test]
    fn a_panic_in_a_part_reaches_the_caller_and_the_pool_works_on() {
        let mut pool = Pool::new(3);
        for _ in 0..50 {
            let panicking = catch_unwind(AssertUnwindSafe(|| {
                pool.run(64, &|index| assert!(index % 16 != 5, "part"));
            }));
            let message = panicking.unwrap_err();
            assert_eq!(message.downcast_ref::<&str>(), Some(&"part"));
            let count = AtomicUsize::new(0);
            pool.run(64, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.load(Ordering::Relaxed), 64);
        }
    }
}
