//! The answers of a bulk request that wait to be sent. Clients may send everything before they read, so the queue accepts
//! every answer; the number of bytes that it holds decides whether further lines are read.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The sending end of the queue; clones share it.
#[derive(Clone)]
pub(super) struct AnswerSender(Arc<Queue>);

/// The end of the queue from which the response is read. Dropping it closes the queue.
pub(super) struct AnswerReceiver(Arc<Queue>);

struct Queue {
    state: Mutex<State>,
    /// Notified when an answer arrives, or when the last has been sent.
    filled: Notify,
    /// Notified when an answer is taken out.
    taken: Notify,
    closed: CancellationToken,
    /// Shows the bytes of all queues.
    held_bytes: IntGauge,
}

#[derive(Default)]
struct State {
    answers: VecDeque<Bytes>,
    bytes: usize,
    /// True once the last answer has been sent.
    ended: bool,
    /// True once the client has left.
    left: bool,
    /// True if the client did not read for too long.
    cut_off: bool,
}

/// Memory that each answer takes besides its bytes.
const OVERHEAD: usize = 128;

fn size(answer: &Bytes) -> usize {
    answer.len() + OVERHEAD
}

/// Creates a queue.
pub(super) fn queue(held_bytes: &IntGauge) -> (AnswerSender, AnswerReceiver) {
    let queue = Arc::new(Queue {
        state: Mutex::default(),
        filled: Notify::new(),
        taken: Notify::new(),
        closed: CancellationToken::new(),
        held_bytes: held_bytes.clone(),
    });
    (AnswerSender(Arc::clone(&queue)), AnswerReceiver(queue))
}

impl AnswerSender {
    /// Appends an answer. It is dropped if the client has left.
    pub(super) fn push(&self, answer: Bytes) {
        let mut state = self.0.state();
        if state.left || state.cut_off {
            return;
        }
        self.0.held_bytes.add(count(size(&answer)));
        state.bytes += size(&answer);
        state.answers.push_back(answer);
        drop(state);
        self.0.filled.notify_one();
    }

    /// Ends the queue behind the answers that it holds.
    pub(super) fn end(&self) {
        self.0.state().ended = true;
        self.0.filled.notify_one();
    }

    /// Drops all answers and ends the response with an error.
    pub(super) fn cut_off(&self) {
        self.0.state().cut_off = true;
        self.0.clear();
        self.0.filled.notify_one();
    }

    /// True if the queue holds less than `most` bytes.
    pub(super) fn has_room(&self, most: usize) -> bool {
        self.0.state().bytes < most
    }

    /// Waits until the queue holds less than `most` bytes.
    pub(super) async fn room(&self, most: usize) {
        loop {
            // Registered before the check, so that no notification is lost.
            let taken = self.0.taken.notified();
            if self.has_room(most) {
                return;
            }
            taken.await;
        }
    }

    /// Resolves when the client has left.
    pub(super) async fn closed(&self) {
        self.0.closed.cancelled().await;
    }
}

impl AnswerReceiver {
    /// Takes the next answer out; `None` after the last.
    ///
    /// # Errors
    /// The queue was cut off.
    pub(super) async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            {
                let mut state = self.0.state();
                if let Some(answer) = state.answers.pop_front() {
                    state.bytes -= size(&answer);
                    drop(state);
                    self.0.held_bytes.sub(count(size(&answer)));
                    self.0.taken.notify_waiters();
                    return Some(Ok(answer));
                }
                if state.cut_off {
                    return Some(Err(io::Error::other("the client does not read its answers")));
                }
                if state.ended {
                    return None;
                }
            }
            // `notify_one` stores a permit, so a notification between the check and this wait is not lost.
            self.0.filled.notified().await;
        }
    }
}

impl Drop for AnswerReceiver {
    fn drop(&mut self) {
        self.0.closed.cancel();
        self.0.state().left = true;
        self.0.clear();
    }
}

impl Queue {
    /// Drops all answers.
    fn clear(&self) {
        let mut state = self.state();
        let (answers, bytes) =
            (std::mem::take(&mut state.answers), std::mem::take(&mut state.bytes));
        drop(state);
        drop(answers);
        self.held_bytes.sub(count(bytes));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds this lock, so a poisoned lock cannot occur.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn answers_come_in_order_and_end() {
        let held = IntGauge::new("held", "held").unwrap();
        let (sender, mut receiver) = queue(&held);
        sender.push(Bytes::from_static(b"one"));
        sender.push(Bytes::from_static(b"two"));
        assert_eq!(held.get(), 262);
        assert!(sender.room(262).now_or_never().is_none());
        assert_eq!(receiver.next().await.unwrap().unwrap(), "one");
        sender.room(262).await;
        sender.end();
        assert_eq!(receiver.next().await.unwrap().unwrap(), "two");
        assert!(receiver.next().await.is_none());
        assert_eq!(held.get(), 0);
    }

    #[tokio::test]
    async fn a_queue_that_is_cut_off_does_not_look_complete() {
        let held = IntGauge::new("held", "held").unwrap();
        let (sender, mut receiver) = queue(&held);
        sender.push(Bytes::from_static(b"one"));
        sender.end();
        sender.cut_off();
        assert_eq!(held.get(), 0);
        assert!(receiver.next().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_client_that_leaves_frees_what_is_held() {
        let held = IntGauge::new("held", "held").unwrap();
        let (sender, receiver) = queue(&held);
        sender.push(Bytes::from_static(b"one"));
        drop(receiver);
        sender.closed().await;
        sender.push(Bytes::from_static(b"two"));
        assert_eq!(held.get(), 0);
    }
}
