//! [`Sockets`]: the limit on open sockets of one listener. If all are open, connections that only wait for their client to
//! close are cut, so that new connections need not wait for them.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::mutations::{self, Mutation};

/// The sockets of a listener. `server` acquires a permit for each connection that it accepts.
pub(crate) struct Sockets {
    permits: Arc<Semaphore>,
    shortage: Arc<Shortage>,
}

/// Whether a new connection waits for a permit. Unlike a `watch` channel, `Notify` wakes the connections in the order in
/// which they began to wait, so that a simulation can be repeated.
#[derive(Default)]
struct Shortage {
    is_now: AtomicBool,
    began: Notify,
}

/// Announces a shortage as long as a new connection waits for a permit. A guard, because the wait is abandoned at
/// shutdown, when closing connections must have their time again.
struct Waiting<'a>(&'a Shortage);

impl<'a> Waiting<'a> {
    fn begin(shortage: &'a Shortage) -> Self {
        shortage.is_now.store(true, Ordering::SeqCst);
        shortage.began.notify_waiters();
        Self(shortage)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.is_now.store(false, Ordering::SeqCst);
    }
}

/// Tells a connection that is about to close when the listener runs out of sockets.
pub(crate) struct Exhaustion(Arc<Shortage>);

impl Sockets {
    /// Creates the limit. A limit above what a semaphore can hold is lowered to that.
    pub(crate) fn new(most: usize) -> Self {
        let permits = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        Self { permits, shortage: Arc::default() }
    }

    /// Acquires a permit for one socket, which counts until the permit is dropped. If there is none, makes closing
    /// connections hurry and waits.
    ///
    /// # Panics
    /// Never: the semaphore is not closed.
    pub(crate) async fn acquire(&self) -> OwnedSemaphorePermit {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return permit;
        }
        let _waiting = Waiting::begin(&self.shortage);
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        permit.expect("the semaphore is never closed")
    }

    /// Returns what tells a connection that sockets are needed.
    pub(crate) fn exhaustion(&self) -> Exhaustion {
        Exhaustion(Arc::clone(&self.shortage))
    }
}

impl Exhaustion {
    /// Resolves when a new connection waits for a socket.
    pub(crate) async fn needs_sockets(&self) {
        if mutations::is_active(Mutation::ClosingConnectionsKeepSockets) {
            std::future::pending::<()>().await;
        }
        loop {
            let mut began = pin!(self.0.began.notified());
            // Listen first and look afterwards, so that no shortage falls between the two.
            began.as_mut().enable();
            if self.0.is_now.load(Ordering::SeqCst) {
                return;
            }
            began.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn closing_connections_are_notified_only_while_a_new_one_waits() {
        let mut context = Context::from_waker(Waker::noop());
        let sockets = Sockets::new(1);
        let exhaustion = sockets.exhaustion();
        let permit = match pin!(sockets.acquire()).poll(&mut context) {
            Poll::Ready(permit) => permit,
            Poll::Pending => panic!("the first socket is free"),
        };
        let mut needed = pin!(exhaustion.needs_sockets());
        assert!(needed.as_mut().poll(&mut context).is_pending());
        let mut second = pin!(sockets.acquire());
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert!(needed.poll(&mut context).is_ready());
        drop(permit);
        assert!(second.poll(&mut context).is_ready());
        assert!(pin!(exhaustion.needs_sockets()).poll(&mut context).is_pending());
    }

    #[test]
    fn a_new_connection_that_waits_no_longer_lets_others_close_in_peace() {
        let mut context = Context::from_waker(Waker::noop());
        let sockets = Sockets::new(0);
        let exhaustion = sockets.exhaustion();
        {
            let mut waiting = pin!(sockets.acquire());
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            assert!(pin!(exhaustion.needs_sockets()).poll(&mut context).is_ready());
        }
        assert!(pin!(exhaustion.needs_sockets()).poll(&mut context).is_pending());
    }
}
