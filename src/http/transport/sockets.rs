//! [`Sockets`]: the limit on open sockets of one listener. If all are open, connections that only wait for their client to
//! close are cut, so that new connections need not wait for them.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::mutations::{self, Mutation};

/// The sockets of a listener. `server` acquires a permit for each connection that it accepts.
pub(crate) struct Sockets {
    permits: Arc<Semaphore>,
    /// True while a new connection waits for a permit.
    exhausted: watch::Sender<bool>,
}

/// Sets the flag `exhausted` as long as a new connection waits for a permit. A guard, because the wait is abandoned at
/// shutdown, when closing connections must have their time again.
struct Waiting<'a>(&'a watch::Sender<bool>);

impl<'a> Waiting<'a> {
    fn begin(exhausted: &'a watch::Sender<bool>) -> Self {
        exhausted.send_replace(true);
        Self(exhausted)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

/// Tells a connection that is about to close when the listener runs out of sockets.
pub(crate) struct Exhaustion(watch::Receiver<bool>);

impl Sockets {
    /// Creates the limit. A limit above what a semaphore can hold is lowered to that.
    pub(crate) fn new(most: usize) -> Self {
        let permits = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        Self { permits, exhausted: watch::Sender::new(false) }
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
        let _waiting = Waiting::begin(&self.exhausted);
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        permit.expect("the semaphore is never closed")
    }

    /// Returns what tells a connection that sockets are needed.
    pub(crate) fn exhaustion(&self) -> Exhaustion {
        Exhaustion(self.exhausted.subscribe())
    }
}

impl Exhaustion {
    /// Resolves when a new connection waits for a socket.
    pub(crate) async fn needs_sockets(&self) {
        if mutations::is_active(Mutation::ClosingConnectionsKeepSockets) {
            std::future::pending::<()>().await;
        }
        // Fails only if the listener has ended; then no connection waits.
        if self.0.clone().wait_for(|exhausted| *exhausted).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn closing_connections_are_told_while_a_new_one_waits_and_only_then() {
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
