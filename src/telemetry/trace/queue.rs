//! The queue of finished traces that wait for the exporter, bounded in spans. Adding to it never waits: a trace that does
//! not fit is dropped and counted.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{IntCounter, IntCounterVec};

use super::spans::{FinishedSpan, TraceIdentity};

/// Spans of one trace that are queued together: those of a whole request, or one that ended after its request.
#[derive(Debug)]
pub(super) struct FinishedTrace {
    pub(super) identity: Arc<TraceIdentity>,
    pub(super) spans: Vec<FinishedSpan>,
}

/// The queue. The requests add to it, the exporter's thread takes from it, and `Tracer` closes it.
#[derive(Debug)]
pub(super) struct SpanQueue {
    state: Mutex<State>,
    /// Notified when a batch is full, when the queue is closed, and when the exporter has ended.
    changed: Condvar,
    max_spans: usize,
    max_batch: usize,
    /// How long a span waits for others before a batch that is not full is exported.
    delay: Duration,
    dropped: Dropped,
}

/// The counters of spans that are not exported, by reason.
#[derive(Debug)]
struct Dropped {
    queue_full: IntCounter,
    request_limit: IntCounter,
    shutdown: IntCounter,
}

#[derive(Debug, Default)]
struct State {
    traces: VecDeque<FinishedTrace>,
    /// Number of spans in `traces`.
    spans: usize,
    /// Start of the wait for a full batch: when the first trace was added to the empty queue, or when the previous batch
    /// was taken and left some. `None` if the queue is empty.
    since: Option<Instant>,
    /// No span is added any more; the exporter sends the rest and ends.
    is_closed: bool,
    /// The exporter has ended.
    has_ended: bool,
}

impl SpanQueue {
    pub(super) fn new(
        (max_spans, max_batch): (usize, usize),
        delay: Duration,
        dropped: &IntCounterVec,
    ) -> Self {
        let counter = |reason: &str| dropped.with_label_values(&[reason]);
        let dropped = Dropped {
            queue_full: counter("queue_full"),
            request_limit: counter("request_limit"),
            shutdown: counter("shutdown"),
        };
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            max_spans,
            max_batch,
            delay,
            dropped,
        }
    }

    pub(super) fn max_spans(&self) -> usize {
        self.max_spans
    }

    /// Counts a span that its request had too many of.
    pub(super) fn count_above_limit(&self) {
        self.dropped.request_limit.inc();
    }

    /// Adds spans, or drops all of them if they do not fit.
    pub(super) fn push(&self, trace: FinishedTrace) {
        let count = trace.spans.len();
        let mut state = self.lock();
        if state.is_closed {
            drop(state);
            self.dropped.shutdown.inc_by(count as u64);
            return;
        }
        if state.spans + count > self.max_spans {
            drop(state);
            self.dropped.queue_full.inc_by(count as u64);
            return;
        }
        let was_full = state.spans >= self.max_batch;
        if state.traces.is_empty() {
            state.since = Some(Instant::now());
        }
        state.spans += count;
        state.traces.push_back(trace);
        // The exporter waits without a time limit while the queue is empty.
        let must_wake = state.traces.len() == 1 || !was_full && state.spans >= self.max_batch;
        drop(state);
        if must_wake {
            self.changed.notify_all();
        }
    }

    /// Waits until a batch is full, until its oldest span has waited long enough, or until the queue is closed. Returns
    /// the traces of the batch; `None` if the queue is closed and empty. Only a trace that is larger than a batch makes
    /// a larger one.
    pub(super) fn next_batch(&self) -> Option<Vec<FinishedTrace>> {
        let mut state = self.lock();
        loop {
            if state.is_closed && state.traces.is_empty() {
                return None;
            }
            let waited = state.since.map(|since| since.elapsed());
            let left = waited.map(|waited| self.delay.saturating_sub(waited));
            state = match left {
                _ if state.is_closed || state.spans >= self.max_batch => break,
                Some(Duration::ZERO) => break,
                Some(left) => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        let (mut batch, mut count) = (Vec::new(), 0);
        while let Some(next) = state.traces.front()
            && (batch.is_empty() || count + next.spans.len() <= self.max_batch)
        {
            count += next.spans.len();
            batch.extend(state.traces.pop_front());
        }
        state.spans -= count;
        state.since = (!state.traces.is_empty()).then(Instant::now);
        Some(batch)
    }

    /// Records that the exporter's thread has ended. What is left in the queue stays there until it is closed.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.has_ended = true;
        drop(state);
        self.changed.notify_all();
    }

    /// Closes the queue, and waits until the exporter has sent everything, but at most for `patience`. Returns the number
    /// of spans that were still in the queue then.
    pub(super) fn close(&self, patience: Duration) -> usize {
        let end = Instant::now() + patience;
        let mut state = self.lock();
        state.is_closed = true;
        self.changed.notify_all();
        while !state.has_ended {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let left = std::mem::take(&mut state.spans);
        state.traces.clear();
        drop(state);
        self.dropped.shutdown.inc_by(left as u64);
        left
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, so the state is consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
