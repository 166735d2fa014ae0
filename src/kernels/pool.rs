//! The threads of the kernels: one caller, a few helpers that spin a little before they sleep.
//!
//! One thread (the engine's worker) drives the pool. A job is a number of parts; whoever is free takes the next
//! part, so that a core that another process keeps busy delays little. Which thread computes a part never
//! changes a result: parts share nothing.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// How often a helper looks for work before it sleeps: some 50 microseconds, longer than the gap between two
/// products of one layer, shorter than what anyone would notice of an idle server.
const SPINS: usize = 2_000;

/// Threads that share the parts of one job at a time.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Counts jobs.
    epoch: AtomicUsize,
    /// Parts taken of the running job.
    next: AtomicUsize,
    /// Helpers inside the running job, for which `Pool::run` waits; grows under the lock of `job` only.
    busy: AtomicUsize,
    /// What a helper panicked with in the running job.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// The running job; gone when its parts are, so that a helper who wakes late is not waited for.
    job: Mutex<Option<Job>>,
    wake: Condvar,
    /// Helpers asleep.
    sleeping: AtomicUsize,
    ended: AtomicBool,
}

/// What helpers run; valid until `Pool::run` returns, which waits for all of them.
#[derive(Clone, Copy)]
struct Job {
    part: &'static (dyn Fn(usize) + Sync),
    parts: usize,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job of {} parts", self.parts)
    }
}

impl Pool {
    /// A pool of `threads`, the caller's own included.
    ///
    /// # Errors
    /// When the operating system gives no more threads.
    pub fn try_new(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            panic: Mutex::new(None),
            job: Mutex::new(None),
            wake: Condvar::new(),
            sleeping: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        // Dropped on an error, so that the helpers that were started end.
        let mut pool = Self { shared, helpers: Vec::new() };
        for index in 1..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let name = format!("kernels-{index}");
            let helper = std::thread::Builder::new().name(name).spawn(move || shared.help())?;
            pool.helpers.push(helper);
        }
        Ok(pool)
    }

    /// A pool for tests, whose machine has threads.
    #[cfg(test)]
    pub(in crate::kernels) fn new(threads: usize) -> Self {
        Self::try_new(threads).expect("a few threads")
    }

    /// Threads, the caller's included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `part` with every index below `parts`, on any of the threads, and returns when all have returned.
    ///
    /// # Panics
    /// With what a part panicked with; the others have run or have been left out by then.
    pub fn run(&mut self, parts: usize, part: &(dyn Fn(usize) + Sync)) {
        if self.helpers.is_empty() || parts <= 1 {
            (0..parts).for_each(part);
            return;
        }
        let shared = &*self.shared;
        {
            #[expect(unsafe_code, reason = "a borrowed closure for other threads")]
            // SAFETY: only the lifetime changes; below, this call waits until no helper holds it.
            let part = unsafe {
                std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(
                    part,
                )
            };
            shared.next.store(0, Ordering::Relaxed);
            *shared.lock() = Some(Job { part, parts });
        }
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        if shared.sleeping.load(Ordering::SeqCst) > 0 {
            // Under the lock, so that a helper about to sleep is asleep or sees the epoch.
            let _job = shared.lock();
            shared.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| shared.take_parts(part, parts)));
        if own.is_err() {
            shared.next.store(parts, Ordering::Relaxed);
        }
        *shared.lock() = None;
        let mut turns = 0;
        while shared.busy.load(Ordering::Acquire) > 0 {
            turns += 1;
            // A helper that takes so long may have lost its core, to this thread perhaps.
            if turns % SPINS == 0 { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        let others = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = own.err().or(others) {
            resume_unwind(panic);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<Job>> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_parts(&self, part: &(dyn Fn(usize) + Sync), parts: usize) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= parts {
                return;
            }
            part(index);
        }
    }

    fn help(&self) {
        let mut seen = 0;
        loop {
            self.wait(seen);
            if self.ended.load(Ordering::Acquire) {
                return;
            }
            seen = self.epoch.load(Ordering::SeqCst);
            if let Some(job) = self.enter() {
                let parts = AssertUnwindSafe(|| self.take_parts(job.part, job.parts));
                if let Err(panic) = catch_unwind(parts) {
                    self.next.store(job.parts, Ordering::Relaxed);
                    *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                }
                self.busy.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// The running job, which then waits for this helper.
    fn enter(&self) -> Option<Job> {
        let job = self.lock();
        if job.is_some() {
            self.busy.fetch_add(1, Ordering::Relaxed);
        }
        *job
    }

    /// Returns when a job after number `seen` is there, or the end.
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
            // A helper catches the panics of its jobs.
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
