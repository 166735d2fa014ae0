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

#[cfg(test)]
mod tests {
    use super::*;

    struct TestTable {
        table: Arc<ConnectionTable>,
        metrics: Arc<Metrics>,
    }

    /// A connection that a test holds open.
    struct Client {
        activity: Activity,
        place: ConnectionPlace,
    }

    impl Client {
        fn is_leaving(&self) -> bool {
            self.place.member.close_token.is_cancelled()
        }

        fn is_in_reserve(&self) -> bool {
            self.place.in_reserve.load(Ordering::Relaxed)
        }

        /// Lets the connection become idle after one request.
        fn idle(self) -> Self {
            drop(self.activity.begin_request());
            self
        }
    }

    impl TestTable {
        fn new(places: usize) -> Self {
            let metrics = Arc::new(Metrics::try_new().unwrap());
            Self { table: ConnectionTable::new(places, Arc::clone(&metrics)), metrics }
        }

        fn try_connect(&self, address: &str) -> Option<Client> {
            let activity = Activity::default();
            let network = Network::of(Some(address.parse().unwrap()));
            self.table.place(network, &activity).map(|place| Client { activity, place })
        }

        fn connect(&self, address: &str) -> Client {
            self.try_connect(address).expect("a place")
        }

        fn shed(&self, connection: &str) -> u64 {
            self.metrics.http_connections_shed_total.with_label_values(&[connection]).get()
        }

        fn held(&self) -> (usize, usize) {
            let all = self.table.lock();
            (all.regular.taken, all.reserve.taken)
        }
    }

    fn leaving(clients: &[Client]) -> Vec<bool> {
        clients.iter().map(Client::is_leaving).collect()
    }

    #[test]
    fn the_longest_idle_of_the_address_that_holds_the_most_makes_room() {
        let rig = TestTable::new(4);
        let bystander = rig.connect("10.0.0.9").idle();
        let crowd: Vec<Client> = (0..3).map(|_| rig.connect("10.0.0.1").idle()).collect();
        // The first connection has just finished a request, so it is not the one that has waited longest.
        drop(crowd[0].activity.begin_request());
        let newcomer = rig.connect("10.0.0.2");
        assert_eq!(leaving(&crowd), [false, true, false]);
        assert!(!bystander.is_leaving() && !newcomer.is_in_reserve());
        assert_eq!((rig.shed("idle"), rig.held()), (1, (4, 0)));
        drop((bystander, crowd, newcomer));
        assert_eq!(rig.held(), (0, 0));
    }

    #[test]
    fn addresses_within_one_ipv6_network_are_one() {
        let rig = TestTable::new(3);
        let crowd: Vec<Client> =
            (1..=2).map(|host| rig.connect(&format!("2001:db8::{host}")).idle()).collect();
        let bystander = rig.connect("2001:db8:0:1::1").idle();
        rig.connect("10.0.0.1");
        assert_eq!(leaving(&crowd), [true, false]);
        assert!(!bystander.is_leaving());
    }

    #[test]
    fn no_address_pays_for_one_that_holds_as_much() {
        let rig = TestTable::new(4);
        let a: Vec<Client> = (0..2).map(|_| rig.connect("10.0.0.1").idle()).collect();
        let b: Vec<Client> = (0..2).map(|_| rig.connect("10.0.0.2").idle()).collect();
        rig.connect("10.0.0.2").idle();
        assert_eq!((leaving(&a), leaving(&b)), (vec![false, false], vec![true, false]));
    }

    #[test]
    fn with_as_many_addresses_as_places_the_longest_idle_of_all_makes_room() {
        let rig = TestTable::new(3);
        let clients: Vec<Client> =
            (1..=3).map(|host| rig.connect(&format!("10.0.0.{host}")).idle()).collect();
        let newcomer = rig.connect("10.0.0.4");
        assert_eq!(leaving(&clients), [true, false, false]);
        assert!(!newcomer.is_in_reserve());
    }

    #[test]
    fn an_unfinished_head_makes_room_after_idle_ones_and_not_for_its_own_address() {
        let rig = TestTable::new(2);
        let slow = rig.connect("10.0.0.1");
        slow.activity.begin_head();
        let idle = rig.connect("10.0.0.1").idle();
        let own = rig.connect("10.0.0.1");
        own.activity.begin_head();
        assert!(!slow.is_leaving() && idle.is_leaving() && !own.is_in_reserve());
        let own = rig.connect("10.0.0.1");
        assert!(!slow.is_leaving() && own.is_in_reserve());
        let other = rig.connect("10.0.0.2");
        assert!(slow.is_leaving() && !other.is_in_reserve());
    }

    #[test]
    fn an_unfinished_body_makes_room_after_heads_and_not_for_its_own_address() {
        let rig = TestTable::new(2);
        let slow = rig.connect("10.0.0.1");
        let _request = slow.activity.begin_request();
        slow.activity.begin_body();
        let head = rig.connect("10.0.0.1");
        head.activity.begin_head();
        let own = rig.connect("10.0.0.1");
        assert!(own.is_in_reserve() && !slow.is_leaving() && !head.is_leaving());
        let first = rig.connect("10.0.0.2");
        assert!(head.is_leaving() && !slow.is_leaving() && !first.is_in_reserve());
        // Now each address holds one place, which is its share. Once 10.0.0.1 holds two places again, a connection from
        // a third address closes the connection with the slow body.
        let _more = rig.connect("10.0.0.1");
        drop(first);
        let more = rig.connect("10.0.0.1");
        let _busy = more.activity.begin_request();
        let other = rig.connect("10.0.0.3");
        assert!(slow.is_leaving() && !more.is_leaving() && !other.is_in_reserve());
    }

    #[test]
    fn requests_in_progress_stay_and_the_reserve_is_contested_by_the_same_rules() {
        let rig = TestTable::new(2);
        let busy: Vec<Client> = (0..2).map(|_| rig.connect("10.0.0.1")).collect();
        let busy_requests = [0, 1].map(|place: usize| busy[place].activity.begin_request());
        let crowd: Vec<Client> = (0..8).map(|_| rig.connect("10.0.0.1")).collect();
        assert!(crowd.iter().all(Client::is_in_reserve));
        // A further connection of the crowd replaces one of the crowd. A probe also replaces one of the crowd, as long
        // as the crowd holds more than its share.
        let more = rig.connect("10.0.0.1");
        let probe = rig.connect("10.0.0.2");
        assert!(more.is_in_reserve() && probe.is_in_reserve() && !probe.place.try_promote());
        assert_eq!(leaving(&crowd).iter().filter(|leaving| **leaving).count(), 2);
        assert_eq!(leaving(&busy), [false, false]);
        assert_eq!(rig.held(), (2, 8));
        // No connection in the reserve waits for its client any more, so a newcomer gets no place.
        let requests: Vec<_> = crowd[2..]
            .iter()
            .chain([&more, &probe])
            .map(|client| client.activity.begin_request())
            .collect();
        assert!(rig.try_connect("10.0.0.3").is_none());
        assert_eq!(rig.shed("newcomer"), 1);
        drop((busy_requests, requests));
    }

    #[test]
    fn an_unread_answer_makes_room_last_and_not_for_its_own_address() {
        let rig = TestTable::new(2);
        let unread = rig.connect("10.0.0.1");
        let _request = unread.activity.begin_request();
        unread.activity.set_stalled(true);
        let slow = rig.connect("10.0.0.1");
        let _body = slow.activity.begin_request();
        slow.activity.begin_body();
        assert!(rig.connect("10.0.0.1").is_in_reserve() && !unread.is_leaving());
        let first = rig.connect("10.0.0.2");
        assert!(slow.is_leaving() && !unread.is_leaving() && !first.is_in_reserve());
        drop(first);
        let more = rig.connect("10.0.0.1");
        let _busy = more.activity.begin_request();
        let other = rig.connect("10.0.0.3");
        assert!(unread.is_leaving() && !more.is_leaving() && !other.is_in_reserve());
    }

    #[test]
    fn the_reason_is_that_of_the_choice_even_if_the_client_stops_reading_afterwards() {
        let rig = TestTable::new(1);
        let idle = rig.connect("10.0.0.1").idle();
        let _newcomer = rig.connect("10.0.0.2");
        idle.activity.set_stalled(true);
        let reason = futures_util::FutureExt::now_or_never(idle.place.close_requested());
        assert_eq!(reason, Some(Some(Awaited::Request)));
    }

    #[test]
    fn a_connection_of_the_reserve_takes_a_regular_place_once_there_is_one() {
        let rig = TestTable::new(1);
        let busy = rig.connect("10.0.0.1");
        let request = busy.activity.begin_request();
        let waiting = rig.connect("10.0.0.2");
        assert!(waiting.is_in_reserve() && !waiting.place.try_promote());
        drop(request);
        // The busy connection ends, which frees a regular place.
        drop(busy);
        assert!(waiting.place.try_promote() && !waiting.is_in_reserve());
        assert_eq!(rig.held(), (1, 0));
    }
}
