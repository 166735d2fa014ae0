//! A queue of log lines, bounded in bytes, and the one thread that writes them to standard error. `logging` uses it.
//!
//! Logging a line never blocks on a slow reader of the log. When the queue is full, lines are dropped and counted; as
//! soon as lines can be written again, a notice in the log says how many were dropped. `tracing-appender` has such a
//! thread too, but its queue has no bound in bytes, it logs no notice, and at the end of the process its guard waits
//! for a reader that may never read.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use prometheus::IntCounter;

/// Maximum size of the queued lines in bytes. The lines that the writer has taken from the queue may occupy the same
/// amount of memory again. The queue can hold about 7,000 access log lines, as many as a busy server writes in one
/// second.
const MAX_BYTES: usize = 2 << 20;
/// Number of bytes that a line needs in addition to its text, for its queue entry and the allocator's overhead.
const LINE_OVERHEAD: usize = 64;
/// If the writer has not finished a line for this long, `flush` assumes that nobody is reading the log, and stops
/// waiting.
const STALL: Duration = Duration::from_secs(1);
/// Longest time that [`LogQueue::flush`] waits for a slow reader.
const MAX_FLUSH: Duration = Duration::from_secs(5);

/// Number of lines dropped since the process started. The counter is a static, because a process has one log but may
/// have several registries.
static DROPPED: LazyLock<IntCounter> = LazyLock::new(|| {
    let help = "Log lines dropped because the log was not read fast enough.";
    IntCounter::new("blip_log_lines_dropped_total", help).expect("a valid name")
});

/// Returns the counter of dropped lines, to be registered in a metrics registry.
pub(super) fn dropped_lines() -> IntCounter {
    DROPPED.clone()
}

/// Handle of the queue; clones share it. The writer thread lives as long as the process.
#[derive(Clone)]
pub(super) struct LogQueue(Arc<LogBuffer>);

struct LogBuffer {
    queued: Mutex<Queued>,
    /// Notified when there is something to write; the writer waits on it.
    filled: Condvar,
    /// Notified when everything is written; `flush` waits on it.
    emptied: Condvar,
    began: Instant,
    /// Time of the last progress, in milliseconds after `began`. Progress is a write, or the first line queued after a
    /// pause.
    last_progress_millis: AtomicU64,
    dropped: IntCounter,
    max_bytes: usize,
    stall: Duration,
}

#[derive(Default)]
struct Queued {
    lines: VecDeque<String>,
    bytes: usize,
    /// Number of dropped lines that no notice in the log has reported yet.
    unreported: u64,
    /// True while the writer is writing lines that it took from the queue.
    writing: bool,
    writer: Option<thread::ThreadId>,
}

impl LogQueue {
    /// Starts a queue whose thread writes to standard error. The thread calls `report_dropped` to log how many lines
    /// were dropped.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start(report_dropped: fn(u64)) -> io::Result<Self> {
        let queue = Self::new(MAX_BYTES, STALL, dropped_lines());
        let shared = Arc::clone(&queue.0);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || shared.write_lines(io::stderr(), report_dropped))?;
        Ok(queue)
    }

    fn new(max_bytes: usize, stall: Duration, dropped: IntCounter) -> Self {
        Self(Arc::new(LogBuffer {
            queued: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            began: Instant::now(),
            last_progress_millis: AtomicU64::new(0),
            dropped,
            max_bytes,
            stall,
        }))
    }

    /// Queues a line, or drops it if the queue is full. Never blocks.
    pub(super) fn push(&self, line: String) {
        let shared = &self.0;
        let mut queued = shared.lock();
        let bytes = line.len() + LINE_OVERHEAD;
        // The writer's own notice of dropped lines is always accepted.
        if queued.bytes + bytes > shared.max_bytes && queued.writer != Some(thread::current().id())
        {
            queued.unreported += 1;
            shared.dropped.inc();
            return;
        }
        if queued.is_done() {
            shared.record_progress();
        }
        queued.bytes += bytes;
        queued.lines.push_back(line);
        drop(queued);
        shared.filled.notify_one();
    }

    /// Waits until everything is written, for at most five seconds ([`MAX_FLUSH`]). If nobody reads the log, gives up
    /// one second ([`STALL`]) after the last line was written.
    pub(super) fn flush(&self) {
        let shared = &self.0;
        let start = Instant::now();
        let mut queued = shared.lock();
        while !queued.is_done() {
            let patience = shared.stall.saturating_sub(shared.since_progress());
            let patience = patience.min(MAX_FLUSH.saturating_sub(start.elapsed()));
            if patience.is_zero() {
                return;
            }
            let waited = shared.emptied.wait_timeout(queued, patience);
            queued = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl LogBuffer {
    fn lock(&self) -> MutexGuard<'_, Queued> {
        // A panic cannot leave these lines and numbers inconsistent, so a poisoned lock can still be used.
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record_progress(&self) {
        self.last_progress_millis.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn since_progress(&self) -> Duration {
        let last_progress =
            Duration::from_millis(self.last_progress_millis.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(last_progress)
    }

    /// Body of the writer thread; never returns.
    fn write_lines(&self, mut output: impl Write, report_dropped: impl Fn(u64)) {
        self.lock().writer = Some(thread::current().id());
        loop {
            let (lines, unreported) = self.take();
            for line in lines {
                if output.write_all(line.as_bytes()).is_err() {
                    // The reader has closed its end, so no notice could reach it. Only count the line.
                    self.dropped.inc();
                }
                self.record_progress();
            }
            // The notice comes after the lines that were queued before the dropped lines.
            if unreported > 0 {
                report_dropped(unreported);
            }
            let mut queued = self.lock();
            queued.writing = false;
            if queued.is_done() {
                self.emptied.notify_all();
            }
        }
    }

    /// Waits for work, then takes all queued lines and the number of lines dropped after them.
    fn take(&self) -> (VecDeque<String>, u64) {
        let mut queued = self.lock();
        while queued.is_done() {
            queued = self.filled.wait(queued).unwrap_or_else(PoisonError::into_inner);
        }
        queued.writing = true;
        queued.bytes = 0;
        (std::mem::take(&mut queued.lines), std::mem::take(&mut queued.unreported))
    }
}

impl Queued {
    fn is_done(&self) -> bool {
        self.lines.is_empty() && self.unreported == 0 && !self.writing
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// An output whose reader reports each line, then blocks until it gets a permit. Once the permit sender is dropped,
    /// the reader never blocks.
    struct GatedOutput {
        seen: Sender<String>,
        permits: Receiver<()>,
    }

    impl Write for GatedOutput {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.seen.send(String::from_utf8(bytes.to_vec()).unwrap());
            let _ = self.permits.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns a queue with space for `lines` one-letter lines, a receiver of the lines that its reader has seen, the
    /// permit sender, and the counter of dropped lines.
    fn queue(
        lines: usize,
        stall: Duration,
    ) -> (LogQueue, Receiver<String>, Sender<()>, IntCounter) {
        let dropped = IntCounter::new("dropped", "Dropped lines.").unwrap();
        let queue = LogQueue::new(lines * (1 + LINE_OVERHEAD), stall, dropped.clone());
        let (seen, lines) = channel();
        let (permit, permits) = channel();
        let (shared, notices) = (Arc::clone(&queue.0), queue.clone());
        let report_dropped = move |count| notices.push(format!("{count} were dropped"));
        thread::spawn(move || shared.write_lines(GatedOutput { seen, permits }, report_dropped));
        (queue, lines, permit, dropped)
    }

    #[test]
    fn lines_that_do_not_fit_are_dropped_counted_and_reported_once_there_is_a_reader() {
        let (queue, lines, permit, dropped) = queue(3, Duration::from_secs(60));
        queue.push("a".to_owned());
        // The writer takes line "a" and then blocks, because there is no permit.
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
        // The reader reads one line, then stops.
        assert_eq!(lines.recv().unwrap(), "0");
        permit.send(()).unwrap();
        assert_eq!(lines.recv().unwrap(), "1");
        queue.flush();
        assert_eq!(lines.try_iter().count(), 0);
        // The log is known to be stalled, so `flush` returns at once.
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
