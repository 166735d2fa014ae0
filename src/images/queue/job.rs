//! The jobs that the queue holds, the lanes in which they wait, and how they end. `jobs` implements the jobs; `pool`
//! runs them.

/// A piece of work for a pool thread.
pub(in crate::images) trait Job: Send {
    /// False if all waiters have left and the job therefore need not run. Implementations must be cheap and take no
    /// lock.
    fn is_wanted(&self) -> bool {
        true
    }

    /// Estimated cost: the number of pixels of a plain JPEG that would take as long to decode; 0 if unknown.
    fn work(&self) -> u64 {
        0
    }

    /// True if the job has no waiters and no further waiters can join.
    fn is_abandoned(&self) -> bool {
        !self.is_wanted()
    }

    /// Number of bytes of the job's file.
    #[cfg(test)]
    fn file_bytes(&self) -> usize {
        0
    }

    fn run(self: Box<Self>) -> JobOutcome;
}

/// How a job ended, which decides whether its duration counts in the estimates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::images) enum JobOutcome {
    /// The job did its work, so its duration counts in the estimates.
    Completed,
    /// The job ended early: its waiters had left, or its file was rejected. A file is often rejected within
    /// microseconds, so the duration of such a job says nothing about other decodes.
    EndedEarly,
}

/// Which of the two queues a job waits in. The queues alternate, so neither starves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::images) enum Lane {
    /// Hashing: short, and needed before a file can enter the other queue.
    Hashes,
    /// Decoding and resizing, which take a long time.
    Decodes,
}
