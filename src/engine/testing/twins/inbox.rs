//! A bounded channel. On a real thread it is the channel of `std`. On a thread of a schedule that shuttle explores, it
//! is a model of `std`'s channel, built on shuttle's primitives. In a simulation it is the channel of `std` with a
//! notification, for which the simulated worker waits. Shuttle's own channel behaves differently: it keeps
//! its messages when the receiver is dropped, and never times out.
//!
//! Under the checker (shuttle) time does not pass by itself. A short timed wait on an empty channel ends at once, so it
//! can time out at any point that a schedule chooses. A wait of [`PATIENCE`] or longer never times out. So a lost
//! wake-up shows as a deadlock, which the checker reports, and not as an answer that is late by one heartbeat interval.

use std::collections::VecDeque;
use std::sync::mpsc::{RecvTimeoutError, TryRecvError, TrySendError};
use std::sync::{Arc, PoisonError, mpsc};
use std::time::Duration;

use shuttle::sync::{Condvar, Mutex, MutexGuard};

use tokio::sync::Notify;

use super::locks::is_explored;
use crate::platform::simulated;

/// Under the checker, a timed wait of at least this duration never times out.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) enum SyncSender<T> {
    Real(mpsc::SyncSender<T>),
    Explored(Arc<Channel<T>>),
    Simulated(Notifying<mpsc::SyncSender<T>>),
}

pub(crate) enum Receiver<T> {
    Real(mpsc::Receiver<T>),
    Explored(Arc<Channel<T>>),
    Simulated(mpsc::Receiver<T>, Arc<Notify>),
}

/// A sender that notifies the receiver when it is dropped.
#[derive(Clone)]
pub(crate) struct Notifying<S> {
    sender: Option<S>,
    changed: Arc<Notify>,
}

impl<S> Drop for Notifying<S> {
    fn drop(&mut self) {
        // The receiver must find the sender gone.
        drop(self.sender.take());
        self.changed.notify_one();
    }
}

pub(crate) struct Channel<T> {
    state: Mutex<ChannelState<T>>,
    changed: Condvar,
}

struct ChannelState<T> {
    messages: VecDeque<T>,
    bound: usize,
    senders: usize,
    has_receiver: bool,
}

pub(crate) fn sync_channel<T>(bound: usize) -> (SyncSender<T>, Receiver<T>) {
    if simulated::is_active() {
        let (sender, receiver) = mpsc::sync_channel(bound);
        let changed = Arc::new(Notify::new());
        let sender = Notifying { sender: Some(sender), changed: Arc::clone(&changed) };
        return (SyncSender::Simulated(sender), Receiver::Simulated(receiver, changed));
    }
    if !is_explored() {
        let (sender, receiver) = mpsc::sync_channel(bound);
        return (SyncSender::Real(sender), Receiver::Real(receiver));
    }
    let state = ChannelState { messages: VecDeque::new(), bound, senders: 1, has_receiver: true };
    let channel = Arc::new(Channel { state: Mutex::new(state), changed: Condvar::new() });
    (SyncSender::Explored(Arc::clone(&channel)), Receiver::Explored(channel))
}

impl<T> Channel<T> {
    fn state(&self) -> MutexGuard<'_, ChannelState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        let mut state = self.state();
        if !state.has_receiver {
            return Err(TrySendError::Disconnected(message));
        }
        if state.messages.len() >= state.bound {
            return Err(TrySendError::Full(message));
        }
        state.messages.push_back(message);
        self.changed.notify_one();
        Ok(())
    }
}

impl<T> ChannelState<T> {
    fn take(&mut self) -> Result<T, TryRecvError> {
        let empty =
            if self.senders == 0 { TryRecvError::Disconnected } else { TryRecvError::Empty };
        self.messages.pop_front().ok_or(empty)
    }
}

impl<T> SyncSender<T> {
    pub(crate) fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        match self {
            Self::Real(sender) => sender.try_send(message),
            Self::Explored(channel) => channel.try_send(message),
            Self::Simulated(Notifying { sender, changed }) => {
                let sent = sender.as_ref().expect("taken only by drop").try_send(message);
                changed.notify_one();
                sent
            }
        }
    }
}

impl<T> Receiver<T> {
    pub(crate) fn try_recv(&self) -> Result<T, TryRecvError> {
        match self {
            Self::Real(receiver) | Self::Simulated(receiver, _) => receiver.try_recv(),
            Self::Explored(channel) => channel.state().take(),
        }
    }

    pub(crate) fn recv_timeout(&self, wait: Duration) -> Result<T, RecvTimeoutError> {
        let channel = match self {
            Self::Real(receiver) => return receiver.recv_timeout(wait),
            Self::Explored(channel) => channel,
            Self::Simulated(receiver, changed) => return simulated_recv(receiver, changed, wait),
        };
        let mut state = channel.state();
        loop {
            match state.take() {
                Ok(message) => return Ok(message),
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) if wait < PATIENCE => {
                    return Err(RecvTimeoutError::Timeout);
                }
                Err(TryRecvError::Empty) => {
                    state = channel.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

/// Waits for a message as a simulated thread.
fn simulated_recv<T>(
    receiver: &mpsc::Receiver<T>,
    changed: &Arc<Notify>,
    wait: Duration,
) -> Result<T, RecvTimeoutError> {
    let end = tokio::time::Instant::now() + wait;
    loop {
        match receiver.try_recv() {
            Ok(message) => return Ok(message),
            Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
            Err(TryRecvError::Empty) if tokio::time::Instant::now() >= end => {
                return Err(RecvTimeoutError::Timeout);
            }
            Err(TryRecvError::Empty) => {
                let notified = Arc::clone(changed).notified_owned();
                simulated::wait_for(async move {
                    // A timeout is noticed above.
                    let _ = tokio::time::timeout_at(end, notified).await;
                });
            }
        }
    }
}

impl<T> Clone for SyncSender<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Real(sender) => Self::Real(sender.clone()),
            Self::Explored(channel) => {
                channel.state().senders += 1;
                Self::Explored(Arc::clone(channel))
            }
            Self::Simulated(sender) => Self::Simulated(sender.clone()),
        }
    }
}

impl<T> Drop for SyncSender<T> {
    fn drop(&mut self) {
        if let Self::Explored(channel) = self {
            channel.state().senders -= 1;
            channel.changed.notify_one();
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        if let Self::Explored(channel) = self {
            let mut state = channel.state();
            state.has_receiver = false;
            let messages = std::mem::take(&mut state.messages);
            drop(state);
            drop(messages);
        }
    }
}
