//! The turns of bulk requests. Each request with a turn may hold megabytes of lines and answers, so their number is
//! limited. Further requests wait, and hold nothing meanwhile. While any wait, a turn is over after some seconds.
//!
//! A free turn goes to the client with the fewest turns, then to the request that has waited longest. So each client
//! gets its turn, whatever number of requests others send.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::fairness::{self, ClientId};
use crate::platform;
use crate::telemetry::metrics::{GaugeGuard, Metrics};

/// Length of a turn if other requests wait.
const TURN: Duration = Duration::from_secs(10);

/// The bulk requests of all clients. Clones share them.
#[derive(Clone)]
pub(crate) struct BulkRequests(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Maximum number of turns at a time, which the clients share.
    max: u64,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    /// Number of turns that each client has.
    turns: HashMap<ClientId, u64>,
    /// The requests that wait for a turn, in order of arrival.
    waiting: Vec<Waiting>,
}

struct Waiting {
    client: ClientId,
    sender: oneshot::Sender<BulkTurn>,
}

/// The turn of a bulk request. Dropping it ends it.
pub(crate) struct BulkTurn {
    requests: BulkRequests,
    client: ClientId,
    began: Instant,
    /// When the turn is over if other requests wait.
    over: Instant,
    _gauge: GaugeGuard,
}

impl BulkRequests {
    pub(crate) fn new(max: usize, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), max: max as u64, metrics }))
    }

    /// Waits for a turn.
    pub(crate) async fn turn(&self, client: ClientId) -> BulkTurn {
        let (sender, receiver) = oneshot::channel();
        self.state().waiting.push(Waiting { client, sender });
        let _waiting = GaugeGuard::new(&self.0.metrics.bulk_requests_waiting);
        self.grant();
        receiver.await.expect("a request waits until it gets a turn")
    }

    /// Gives free turns to requests that wait.
    fn grant(&self) {
        let mut granted = Vec::new();
        let mut state = self.state();
        state.waiting.retain(|waiting| !waiting.sender.is_closed());
        while let Some(Waiting { client, sender }) = state.next(self.0.max) {
            *state.turns.entry(client).or_default() += 1;
            let began = platform::now();
            let gauge = GaugeGuard::new(&self.0.metrics.bulk_requests);
            let requests = self.clone();
            granted.push((
                sender,
                BulkTurn { requests, client, began, over: began + TURN, _gauge: gauge },
            ));
        }
        drop(state);
        // If a request has ended meanwhile, its turn is dropped here and goes to the next.
        for (sender, turn) in granted {
            drop(sender.send(turn));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds this lock, so a poisoned lock cannot occur.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Removes and returns the request that gets the next turn; `None` if there is no turn for any.
    fn next(&mut self, max: u64) -> Option<Waiting> {
        let taken = self.turns.values().sum();
        let own = |client| self.turns.get(&client).copied().unwrap_or(0);
        let fits = |client: ClientId| {
            let own = own(client);
            let clients = self.turns.len() + usize::from(own == 0);
            fairness::fits(max, taken, own, clients, 1)
        };
        let waiting = self.waiting.iter().enumerate();
        let fitting = waiting.filter(|(_, waiting)| fits(waiting.client));
        // Of equal elements, `min_by_key` returns the first.
        let (place, _) = fitting.min_by_key(|(_, waiting)| own(waiting.client))?;
        Some(self.waiting.remove(place))
    }
}

impl BulkTurn {
    /// True if the turn is over and other requests wait for theirs.
    pub(crate) fn is_over(&self) -> bool {
        let waits =
            || self.requests.state().waiting.iter().any(|waiting| !waiting.sender.is_closed());
        platform::now() >= self.over && waits()
    }

    /// Returns the time since the turn began.
    pub(crate) fn age(&self) -> Duration {
        platform::elapsed(self.began)
    }

    /// Lets the turn last longer.
    pub(crate) fn extend(&mut self) {
        self.over = platform::now() + TURN;
    }
}

impl Drop for BulkTurn {
    fn drop(&mut self) {
        let mut state = self.requests.state();
        if let Some(own) = state.turns.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                state.turns.remove(&self.client);
            }
        }
        drop(state);
        self.requests.grant();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn requests(max: usize) -> (BulkRequests, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::try_new().unwrap());
        (BulkRequests::new(max, Arc::clone(&metrics)), metrics)
    }

    #[tokio::test]
    async fn the_client_with_the_fewest_turns_is_next() {
        let (requests, metrics) = requests(4);
        let turn = |client| requests.turn(ClientId(client));
        let mut first = Vec::new();
        for _ in 0..4 {
            first.push(turn(1).now_or_never().expect("a free turn"));
        }
        // Another client gets its share out of the reserve.
        let other = turn(2).now_or_never().expect("the reserve");
        let mut waiting: Vec<_> = [1, 1, 2, 3].map(|client| Box::pin(turn(client))).into();
        assert!(waiting.iter_mut().all(|turn| turn.now_or_never().is_none()));
        assert_eq!((metrics.bulk_requests.get(), metrics.bulk_requests_waiting.get()), (5, 4));
        // The third waited longer than the fourth, but its client already has a turn.
        drop(first.pop());
        drop(first.pop());
        let ready: Vec<bool> =
            waiting.iter_mut().map(|turn| turn.now_or_never().is_some()).collect();
        assert_eq!(ready, [false, false, false, true]);
        drop((first, other));
        assert_eq!(metrics.bulk_requests.get(), 3, "all that wait have a turn now");
        drop(waiting);
        assert_eq!((metrics.bulk_requests.get(), metrics.bulk_requests_waiting.get()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_over_only_while_others_wait() {
        let (requests, _) = requests(1);
        let mut turn = requests.turn(ClientId(1)).await;
        tokio::time::advance(TURN).await;
        assert!(!turn.is_over(), "nobody waits");
        let mut waiting = Box::pin(requests.turn(ClientId(1)));
        assert!((&mut waiting).now_or_never().is_none());
        assert!(turn.is_over());
        turn.extend();
        assert!(!turn.is_over());
        tokio::time::advance(TURN).await;
        assert!(turn.is_over());
        assert_eq!(turn.age(), TURN * 2);
        drop(waiting);
        assert!(!turn.is_over(), "the other has left");
    }
}
