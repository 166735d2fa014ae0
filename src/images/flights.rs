//! Single flight: identical images in progress are one piece of work that anyone may join.
//!
//! A flight is opened by whoever asks first and lives in the job that does the work, not in its opener: if that one
//! leaves, the others still get the result. If all have left before the work starts, it is dropped.

use super::{ImagesError, Key, Prepared, lock};
use crate::task::PreparedImage;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// What everyone who waits for a flight sees.
#[derive(Debug)]
enum Progress {
    Pending,
    Done(Result<Prepared, ImagesError>),
}

/// The flights in progress.
#[derive(Debug, Default)]
pub(super) struct Flights {
    open: Mutex<HashMap<Key, Arc<watch::Sender<Progress>>>>,
}

/// The end of a flight that does the work; dropping it without a result tells all who wait that there is none.
#[derive(Debug)]
pub(super) struct Flight {
    flights: Arc<Flights>,
    key: Key,
    sender: Arc<watch::Sender<Progress>>,
}

/// The end of a flight that waits; dropping it means having left.
#[derive(Debug)]
pub(super) struct Passenger(watch::Receiver<Progress>);

/// What asking for an image led to.
#[derive(Debug)]
pub(super) enum Boarding {
    /// Its pixels are there already.
    Cached(PreparedImage),
    /// Someone is at it.
    Joined(Passenger),
    /// Nobody was: the flight must be put to work.
    Opened(Passenger, Flight),
}

impl Flights {
    /// Looks into the cache, joins a flight, or opens one, in one step, so that nothing is done twice.
    pub(super) fn board(
        self: &Arc<Self>,
        key: Key,
        cached: impl FnOnce() -> Option<PreparedImage>,
    ) -> Boarding {
        let mut open = lock(&self.open);
        if let Some(image) = cached() {
            return Boarding::Cached(image);
        }
        if let Some(sender) = open.get(&key) {
            return Boarding::Joined(Passenger(sender.subscribe()));
        }
        let (sender, receiver) = watch::channel(Progress::Pending);
        let sender = Arc::new(sender);
        open.insert(key, Arc::clone(&sender));
        Boarding::Opened(Passenger(receiver), Flight { flights: Arc::clone(self), key, sender })
    }

    /// As [`board`](Self::board) for someone who cannot open a flight: `None` where nothing is there to join.
    pub(super) fn join(
        &self,
        key: &Key,
        cached: impl FnOnce() -> Option<PreparedImage>,
    ) -> Option<Boarding> {
        let open = lock(&self.open);
        if let Some(image) = cached() {
            return Some(Boarding::Cached(image));
        }
        open.get(key).map(|sender| Boarding::Joined(Passenger(sender.subscribe())))
    }
}

impl Flight {
    /// True while someone waits; unlike [`is_wanted`](Self::is_wanted) it changes nothing and takes no lock.
    pub(super) fn has_passengers(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// True while someone waits. False closes the flight: nobody can join it any more.
    pub(super) fn is_wanted(&self) -> bool {
        let mut open = lock(&self.flights.open);
        let wanted = self.has_passengers();
        if !wanted {
            self.close(&mut open);
        }
        wanted
    }

    /// The work has ended. A result must be in the cache before, so that nobody finds neither.
    pub(super) fn land(self, result: Result<Prepared, ImagesError>) {
        self.close(&mut lock(&self.flights.open));
        self.sender.send_replace(Progress::Done(result));
    }

    fn close(&self, open: &mut HashMap<Key, Arc<watch::Sender<Progress>>>) {
        if open.get(&self.key).is_some_and(|sender| Arc::ptr_eq(sender, &self.sender)) {
            open.remove(&self.key);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.close(&mut lock(&self.flights.open));
    }
}

impl Passenger {
    /// The flight's result; `Overloaded` when it never ran.
    pub(super) async fn arrival(mut self) -> Result<Prepared, ImagesError> {
        loop {
            if let Progress::Done(result) = &*self.0.borrow_and_update() {
                return result.clone();
            }
            self.0.changed().await.map_err(|_| ImagesError::Overloaded)?;
        }
    }
}
