//! What the queue holds: a job for a pool thread, its lane, and how it ended. `jobs` implements the jobs; `pool` runs
//! them.

/// A piece of work for a pool thread.
pub(in crate::images) trait Job: Send {
    /// False if all waiters have left, so that the job need not be run. Must be cheap and take no lock.
    fn is_wanted(&self) -> bool {
        true
    }

    /// Estimated cost: the number of pixels of a plain JPEG that would take as long to decode; 0 if unknown.
    fn work(&self) -> u64 {
        0
    }

    /// True if there are no waiters and no new ones can join.
    fn is_abandoned(&self) -> bool {
        !self.is_wanted()
    }

    fn run(self: Box<Self>) -> JobOutcome;
}

/// How a job ended, which decides whether its duration counts in the estimates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::images) enum JobOutcome {
    /// The job did its work, so its duration counts in the estimates.
    Completed,
    /// The job ended early: its waiters had left, or its file was rejected. A file is often rejected within
    /// microseconds, so its duration says nothing about the decodes that others wait for.
    EndedEarly,
}

/// Which of the two queues a job waits in. The queues alternate, so neither starves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::images) enum Lane {
    /// Hashing: short, and needed before a file can enter the other queue.
    Hashes,
    /// Decoding and resizing, which take long.
    Decodes,
}
