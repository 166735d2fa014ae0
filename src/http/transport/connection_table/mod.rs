//! The connection limit of a listener. Decides which connections have a place, and which one is closed when all places
//! are taken (load shedding, fair between addresses). `server` asks for a place for each connection that it accepts.
//!
//! While places are free, every connection gets one, even if its address has many: many users may share one address.
//! When no place is free, the first of these rules that applies decides about a new connection (the newcomer):
//!
//! 1. An address loses a connection if it holds more connections than its share (the number of places divided by the
//!    number of addresses, including the newcomer's) and more than the address of the newcomer. Of several such
//!    addresses, the one with the most connections loses one. It loses an idle connection if it has one, otherwise one
//!    whose request head is unfinished, otherwise one whose request body is unfinished, otherwise one whose client does
//!    not read its response (unless that is the address's only connection). Among equals, it loses the one that has
//!    waited longest for its client.
//! 2. The newcomer replaces an idle connection of its own address.
//! 3. The newcomer gets a place in the reserve (additional places for probes and scrapes), where rules 1 and 2 apply
//!    too. There it can send one request for health or metrics; any other request is rejected as overloaded.
//! 4. The newcomer is closed.
//!
//! A request that has arrived completely is never aborted, and neither is a response that its client reads. Rule 1 can
//! abort a request whose body is still arriving, which is answered with a 503, and a response that its client has
//! stopped reading.
//!
//! The table reads the state of a connection from its [`Activity`], so requests do not have to update the table. A
//! newcomer causes a scan of all connections, but only if all places are taken (1,024 connections: a few microseconds).

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::connection::{Activity, Awaited, Waiting};
use crate::http::access::client::Network;
use crate::mutations::{self, Mutation};
use crate::platform;
use crate::telemetry::metrics::Metrics;

/// Minimum time between two log lines that say that the listener is full.
const REMINDER: Duration = Duration::from_secs(60);

/// Returns the number of places in the reserve of a listener with this many regular places. A probe and a scrape at the
/// same time need two. Further places make it harder to fill the reserve on purpose.
pub(crate) fn reserve_of(places: usize) -> usize {
    (places / 64).max(8)
}

/// Returns the number of sockets that a listener with this many regular places may have open: one for each regular
/// place, and two for each place in the reserve. Half of the latter are for connections that were told to close but
/// have not ended yet.
pub(crate) fn sockets_of(places: usize) -> usize {
    places.saturating_add(2 * reserve_of(places))
}

/// The connections of one listener and their places.
pub(crate) struct ConnectionTable {
    places: Mutex<AllPlaces>,
    metrics: Arc<Metrics>,
}

struct AllPlaces {
    next_id: u64,
    regular: Places,
    reserve: Places,
    /// When the log last said that the listener was full.
    reminded: Option<Instant>,
}

/// A bounded number of places, and the connections that hold them.
struct Places {
    most: usize,
    taken: usize,
    /// The connections that hold places, by network and then by connection id.
    holders: HashMap<Network, BTreeMap<u64, Member>>,
}

/// What the table knows about a connection that holds a place.
#[derive(Clone)]
struct Member {
    activity: Activity,
    close_token: CancellationToken,
    /// What the connection waited for when the table chose it to close.
    chosen_while: Arc<OnceLock<Awaited>>,
}

/// The connection that must close, and what it waits for.
struct Chosen {
    network: Network,
    id: u64,
    awaited: Awaited,
}

/// The place of one connection; dropping it frees the place.
pub(crate) struct ConnectionPlace {
    table: Arc<ConnectionTable>,
    network: Network,
    id: u64,
    member: Member,
    in_reserve: AtomicBool,
}

impl ConnectionTable {
    /// Creates a table with this many regular places and an additional reserve.
    pub(crate) fn new(places: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            places: Mutex::new(AllPlaces {
                next_id: 0,
                regular: Places::new(places),
                reserve: Places::new(reserve_of(places)),
                reminded: None,
            }),
            metrics,
        })
    }

    /// Gives a place to a new connection, and tells another connection to close if necessary. Returns `None` if the new
    /// connection must be closed.
    pub(crate) fn place(
        self: &Arc<Self>,
        network: Network,
        activity: &Activity,
    ) -> Option<ConnectionPlace> {
        let mut guard = self.lock();
        let all = &mut *guard;
        if all.regular.is_full() {
            all.remind();
        }
        let (places, in_reserve) = if self.make_room(&mut all.regular, network) {
            (&mut all.regular, false)
        } else if self.make_room(&mut all.reserve, network) {
            (&mut all.reserve, true)
        } else {
            self.count("newcomer");
            return None;
        };
        let id = all.next_id;
        all.next_id += 1;
        let member = Member {
            activity: activity.clone(),
            close_token: CancellationToken::new(),
            chosen_while: Arc::default(),
        };
        places.insert(network, id, member.clone());
        drop(guard);
        let (table, in_reserve) = (Arc::clone(self), AtomicBool::new(in_reserve));
        Some(ConnectionPlace { table, network, id, member, in_reserve })
    }

    /// Makes sure that `places` has a free place: if all are taken, frees the place of a connection and tells that
    /// connection to close. Returns false if no connection may be closed.
    fn make_room(&self, places: &mut Places, newcomer: Network) -> bool {
        if !places.is_full() {
            return true;
        }
        if mutations::is_active(Mutation::ConnectionsWithoutShares) {
            return false;
        }
        let Some(chosen) = places.connection_to_close(newcomer) else { return false };
        if let Some(member) = places.remove(chosen.network, chosen.id) {
            self.count("idle");
            member.chosen_while.get_or_init(|| chosen.awaited);
            member.close_token.cancel();
        }
        true
    }

    fn count(&self, connection: &str) {
        self.metrics.http_connections_shed_total.with_label_values(&[connection]).inc();
    }

    fn lock(&self) -> MutexGuard<'_, AllPlaces> {
        // No code panics while it holds this lock, so a poisoned lock cannot occur.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AllPlaces {
    /// Logs that the listener is full, at most once a minute.
    fn remind(&mut self) {
        let now = platform::now();
        if self.reminded.is_some_and(|last| now.saturating_duration_since(last) < REMINDER) {
            return;
        }
        self.reminded = Some(now);
        let places = &self.regular;
        tracing::warn!(
            connections = places.taken,
            addresses = places.holders.len(),
            most_of_one_address = places.holders.values().map(BTreeMap::len).max(),
            "all connections that server.max_connections allows are open; closing idle ones of the addresses that hold the \
             most to admit new ones"
        );
    }
}

impl Places {
    fn new(most: usize) -> Self {
        Self { most, taken: 0, holders: HashMap::new() }
    }

    fn is_full(&self) -> bool {
        self.taken >= self.most
    }

    fn insert(&mut self, network: Network, id: u64, member: Member) {
        self.holders.entry(network).or_default().insert(id, member);
        self.taken += 1;
    }

    fn remove(&mut self, network: Network, id: u64) -> Option<Member> {
        let members = self.holders.get_mut(&network)?;
        let member = members.remove(&id)?;
        if members.is_empty() {
            self.holders.remove(&network);
        }
        self.taken -= 1;
        Some(member)
    }

    /// Returns the connection that must close to make room for a new connection from the network `newcomer`, by rules 1
    /// and 2 of this module; `None` if no connection may be closed.
    fn connection_to_close(&self, newcomer: Network) -> Option<Chosen> {
        let own = self.holders.get(&newcomer).map_or(0, BTreeMap::len);
        let addresses = self.holders.len() + usize::from(own == 0);
        let share = self.most / addresses;
        let others = self
            .holders
            .iter()
            .filter(|(network, members)| **network != newcomer && members.len() > share.max(own));
        // Order: the address that holds the most connections comes first. Of its connections, the idle ones come first,
        // then those with an unfinished head, then those with an unfinished body, then those with an unread response.
        // Among equals, the connection that has waited longest comes first.
        let waiting = others.flat_map(|(network, members)| {
            let held = Reverse(members.len());
            let is_only = members.len() == 1;
            members.iter().filter_map(move |(id, member)| {
                let waiting = member.activity.waiting()?;
                // A slow reader with a single connection is probably no attacker.
                let may_close = !(is_only && waiting.awaited == Awaited::Reader);
                may_close.then_some((held, waiting, *id, *network))
            })
        });
        let other = waiting.min_by_key(|(held, waiting, id, _)| (*held, *waiting, *id));
        if let Some((_, Waiting { awaited, .. }, id, network)) = other {
            return Some(Chosen { network, id, awaited });
        }
        let own = self.holders.get(&newcomer)?.iter().filter_map(|(id, member)| {
            let waiting = member.activity.waiting()?;
            (waiting.awaited == Awaited::Request).then_some((waiting, *id))
        });
        let (Waiting { awaited, .. }, id) = own.min()?;
        Some(Chosen { network: newcomer, id, awaited })
    }
}

impl ConnectionPlace {
    /// Resolves when the connection must close to make room. Returns what it waited for when it was chosen.
    pub(crate) async fn close_requested(&self) -> Option<Awaited> {
        self.member.close_token.cancelled().await;
        self.member.chosen_while.get().copied()
    }

    /// Returns a token that is cancelled when the connection must close to make room.
    pub(crate) fn close_token(&self) -> CancellationToken {
        self.member.close_token.clone()
    }

    /// If the connection is in the reserve, moves it to a regular place if the rules allow this now. Returns true if
    /// the connection has a regular place afterwards.
    pub(crate) fn try_promote(&self) -> bool {
        if !self.in_reserve.load(Ordering::Relaxed) {
            return true;
        }
        let mut guard = self.table.lock();
        let all = &mut *guard;
        let Some(member) = all.reserve.remove(self.network, self.id) else {
            // The connection has been told to close.
            return false;
        };
        let has_room = self.table.make_room(&mut all.regular, self.network);
        let places = if has_room { &mut all.regular } else { &mut all.reserve };
        places.insert(self.network, self.id, member);
        self.in_reserve.store(!has_room, Ordering::Relaxed);
        has_room
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        let mut all = self.table.lock();
        // A connection that was told to close is neither in `regular` nor in `reserve`.
        if all.regular.remove(self.network, self.id).is_none() {
            all.reserve.remove(self.network, self.id);
        }
    }
}
