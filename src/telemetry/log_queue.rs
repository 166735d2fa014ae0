//! Log lines on their way to standard error: a queue bounded in bytes, and one thread that writes.
//!
//! Writing a log line never waits for the reader of the log. When the queue is full, lines are dropped and counted, and
//! the log tells how many as soon as lines can be written again. `tracing-appender` has such a thread too, but neither
//! a bound in bytes nor that notice, and its guard waits at the end of the process for a reader that may never come.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use prometheus::IntCounter;

/// Bytes of lines that wait to be written; as many again may be in the writer's hands. Some 7,000 lines of requests:
/// a second of a busy server.
const MAX_BYTES: usize = 2 << 20;
/// What a line takes beside its text: its place in the queue and the allocation.
const LINE_OVERHEAD: usize = 64;
/// A writer that has finished no line for this long is stalled: nobody reads the log.
const STALL: Duration = Duration::from_secs(1);
/// Longest wait for lines that are being read, but slowly.
const MAX_FLUSH: Duration = Duration::from_secs(5);

/// Lines that were dropped since the process began. There is one log in a process, whatever number of registries.
static DROPPED: LazyLock<IntCounter> = LazyLock::new(|| {
    let help = "Log lines dropped because nobody read the log fast enough.";
    IntCounter::new("blip_log_lines_dropped_total", help).expect("a valid name")
});

/// The counter of dropped lines, for a registry.
pub(super) fn dropped_lines() -> IntCounter {
    DROPPED.clone()
}

/// The queue. Clones share it; its thread lives as long as the process.
#[derive(Clone)]
pub(super) struct LogQueue(Arc<Shared>);

struct Shared {
    queued: Mutex<Queued>,
    /// Signals the writer: there is something to write.
    filled: Condvar,
    /// Signals those that wait for the end of the queue: everything is written.
    emptied: Condvar,
    began: Instant,
    /// Milliseconds from `began` to the end of the last write, or to the first line after a pause.
    moved: AtomicU64,
    dropped: IntCounter,
    max_bytes: usize,
    stall: Duration,
}

#[derive(Default)]
struct Queued {
    lines: VecDeque<String>,
    bytes: usize,
    /// Dropped lines that the log has not told yet.
    untold: u64,
    /// The writer has lines in its hands.
    writing: bool,
    writer: Option<thread::ThreadId>,
}

impl LogQueue {
    /// A queue whose thread writes to standard error. `tell` logs how many lines were dropped.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(tell: fn(u64)) -> io::Result<Self> {
        let queue = Self::new(MAX_BYTES, STALL, dropped_lines());
        let shared = Arc::clone(&queue.0);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || shared.write_lines(io::stderr(), tell))?;
        Ok(queue)
    }

    fn new(max_bytes: usize, stall: Duration, dropped: IntCounter) -> Self {
        Self(Arc::new(Shared {
            queued: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            began: Instant::now(),
            moved: AtomicU64::new(0),
            dropped,
            max_bytes,
            stall,
        }))
    }

    /// Queues a line, or drops it. Never waits.
    pub(super) fn push(&self, line: String) {
        let shared = &self.0;
        let mut queued = shared.lock();
        let bytes = line.len() + LINE_OVERHEAD;
        // What the writer itself has to say, how many lines were dropped, always fits.
        if queued.bytes + bytes > shared.max_bytes && queued.writer != Some(thread::current().id())
        {
            queued.untold += 1;
            shared.dropped.inc();
            return;
        }
        if queued.is_done() {
            shared.touch();
        }
        queued.bytes += bytes;
        queued.lines.push_back(line);
        drop(queued);
        shared.filled.notify_one();
    }

    /// Waits until everything is written: while lines are read, up to five seconds; when nobody reads, until a second
    /// has passed since the last line was written.
    pub(super) fn flush(&self) {
        let shared = &self.0;
        let start = Instant::now();
        let mut queued = shared.lock();
        while !queued.is_done() {
            let patience = shared.stall.saturating_sub(shared.since_moved());
            let patience = patience.min(MAX_FLUSH.saturating_sub(start.elapsed()));
            if patience.is_zero() {
                return;
            }
            let waited = shared.emptied.wait_timeout(queued, patience);
            queued = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queued> {
        // Lines and numbers: they mean the same after a panic.
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        self.moved.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn since_moved(&self) -> Duration {
        let moved = Duration::from_millis(self.moved.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(moved)
    }

    /// The writer's thread.
    fn write_lines(&self, mut output: impl Write, tell: impl Fn(u64)) {
        self.lock().writer = Some(thread::current().id());
        loop {
            let (lines, untold) = self.take();
            for line in lines {
                if output.write_all(line.as_bytes()).is_err() {
                    // The reader has gone: there is nobody to tell.
                    self.dropped.inc();
                }
                self.touch();
            }
            // They were dropped after the lines above had been queued.
            if untold > 0 {
                tell(untold);
            }
            let mut queued = self.lock();
            queued.writing = false;
            if queued.is_done() {
                self.emptied.notify_all();
            }
        }
    }

    /// Every line that is queued, once there is any, and how many were dropped behind them.
    fn take(&self) -> (VecDeque<String>, u64) {
        let mut queued = self.lock();
        while queued.is_done() {
            queued = self.filled.wait(queued).unwrap_or_else(PoisonError::into_inner);
        }
        queued.writing = true;
        queued.bytes = 0;
        (std::mem::take(&mut queued.lines), std::mem::take(&mut queued.untold))
    }
}

impl Queued {
    fn is_done(&self) -> bool {
        self.lines.is_empty() && self.untold == 0 && !self.writing
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Tells of each line before it "writes" it, which takes a permit; without a sender of permits all go through.
    struct Reader {
        seen: Sender<String>,
        permits: Receiver<()>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.seen.send(String::from_utf8(bytes.to_vec()).unwrap());
            let _ = self.permits.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A queue of so many lines of one letter, what its reader sees, and what lets it read.
    fn queue(
        lines: usize,
        stall: Duration,
    ) -> (LogQueue, Receiver<String>, Sender<()>, IntCounter) {
        let dropped = IntCounter::new("dropped", "Dropped lines.").unwrap();
        let queue = LogQueue::new(lines * (1 + LINE_OVERHEAD), stall, dropped.clone());
        let (seen, lines) = channel();
        let (permit, permits) = channel();
        let (shared, notices) = (Arc::clone(&queue.0), queue.clone());
        let tell = move |count| notices.push(format!("{count} were dropped"));
        thread::spawn(move || shared.write_lines(Reader { seen, permits }, tell));
        (queue, lines, permit, dropped)
    }

    #[test]
    fn lines_that_do_not_fit_are_dropped_counted_and_told_once_there_is_a_reader() {
        let (queue, lines, permit, dropped) = queue(3, Duration::from_secs(60));
        queue.push("a".to_owned());
        // In the writer's hands, which nobody empties.
        assert_eq!(lines.recv().unwrap(), "a");
        for line in ["b", "c", "d", "e", "f"] {
            queue.push(line.to_owned());
        }
        assert_eq!(dropped.get(), 2);
        drop(permit);
        queue.flush();
        assert_eq!(lines.try_iter().collect::<Vec<_>>(), ["b", "c", "d", "2 were dropped"]);
        queue.push("g".to_owned());
        queue.flush();
        assert_eq!(lines.try_iter().collect::<Vec<_>>(), ["g"]);
        assert_eq!(dropped.get(), 2);
    }

    #[test]
    fn the_end_waits_for_every_line_that_is_read_and_not_for_a_log_that_nobody_reads() {
        let (queue, lines, permit, _) = queue(1000, Duration::from_millis(50));
        for number in 0..100 {
            queue.push(number.to_string());
        }
        // One line is read; then no more.
        assert_eq!(lines.recv().unwrap(), "0");
        permit.send(()).unwrap();
        assert_eq!(lines.recv().unwrap(), "1");
        queue.flush();
        assert_eq!(lines.try_iter().count(), 0);
        // Known to be stalled: nobody waits again.
        let start = Instant::now();
        for _ in 0..100 {
            queue.flush();
        }
        assert!(start.elapsed() < Duration::from_secs(4));
        drop(permit);
        lines.iter().find(|line| line == "99").expect("the last line");
    }

    #[test]
    fn lines_without_a_reader_are_counted_and_nothing_is_told() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let dropped = IntCounter::new("dropped", "Dropped lines.").unwrap();
        let queue = LogQueue::new(MAX_BYTES, STALL, dropped.clone());
        let shared = Arc::clone(&queue.0);
        thread::spawn(move || shared.write_lines(Gone, |_| panic!("nobody to tell")));
        queue.push("a".to_owned());
        queue.push("b".to_owned());
        queue.flush();
        assert_eq!(dropped.get(), 2);
    }
}
