//! Who holds the places of a listener, and who makes room when all are taken.
//!
//! While there are places, everybody gets one; many users may stand behind one address. When there are none:
//!
//! 1. The address that holds the most pays, if it holds more than its share (places divided by addresses present) and
//!    more than the newcomer's address: its connection that has waited longest for its client is closed.
//! 2. Otherwise the newcomer's own address replaces one of its own idle connections.
//! 3. Otherwise the newcomer gets a place in the reserve, where the same rules hold: enough for one request to health or
//!    metrics; anything else is refused as overloaded.
//! 4. Otherwise it is closed.
//!
//! A request all of which has arrived, and an answer that is being sent, are never cut. One whose body is still arriving
//! can be by the first rule, after idle connections and unfinished heads: it is answered 503. What a connection is doing is told by its
//! [`Activity`], so a request costs this table nothing; a newcomer looks at every connection, but only when all places are
//! taken (1,024 connections: a few microseconds).

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::access::client::Network;
use super::connection::{Activity, Awaited};
use crate::telemetry::metrics::Metrics;

/// Between two log lines that say that the listener is full.
const REMINDER: Duration = Duration::from_secs(60);

/// Places in the reserve of a listener with so many places: a probe and a scrape at one time, with room for attempts to
/// fill it.
pub(crate) fn reserve_of(places: usize) -> usize {
    (places / 64).max(8)
}

/// Sockets that a listener with so many places may have open: its places, the reserve, and as many connections that
/// have been told to leave and are about to end.
pub(crate) fn sockets_of(places: usize) -> usize {
    places.saturating_add(2 * reserve_of(places))
}

/// The connections of one listener.
pub(crate) struct ConnectionTable {
    places: Mutex<AllPlaces>,
    metrics: Arc<Metrics>,
}

struct AllPlaces {
    next_id: u64,
    regular: Places,
    reserve: Places,
    /// When the log last said that the listener is full.
    reminded: Option<Instant>,
}

/// A bounded number of places and who has them.
struct Places {
    most: usize,
    taken: usize,
    /// By network, then by connection.
    holders: HashMap<Network, BTreeMap<u64, Member>>,
}

/// A connection as the table sees it.
#[derive(Clone)]
struct Member {
    activity: Activity,
    leave: CancellationToken,
}

/// A connection's place; given back when dropped.
pub(crate) struct Place {
    table: Arc<ConnectionTable>,
    network: Network,
    id: u64,
    member: Member,
    in_reserve: AtomicBool,
}

impl ConnectionTable {
    /// A table of so many places, and a reserve beside them.
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

    /// A place for a new connection, whatever has to be closed for it; `None` when it has to be closed itself.
    pub(crate) fn place(self: &Arc<Self>, network: Network, activity: &Activity) -> Option<Place> {
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
        let member = Member { activity: activity.clone(), leave: CancellationToken::new() };
        places.insert(network, id, member.clone());
        drop(guard);
        let (table, in_reserve) = (Arc::clone(self), AtomicBool::new(in_reserve));
        Some(Place { table, network, id, member, in_reserve })
    }

    /// Whether there is a free place now; tells a connection to leave for it, if that helps.
    fn make_room(&self, places: &mut Places, newcomer: Network) -> bool {
        if !places.is_full() {
            return true;
        }
        let Some((network, id)) = places.who_pays(newcomer) else { return false };
        if let Some(member) = places.remove(network, id) {
            self.count("idle");
            member.leave.cancel();
        }
        true
    }

    fn count(&self, connection: &str) {
        self.metrics.http_connections_shed_total.with_label_values(&[connection]).inc();
    }

    fn lock(&self) -> MutexGuard<'_, AllPlaces> {
        // Nothing panics while it holds this lock.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AllPlaces {
    /// Says that the listener is full, once a minute.
    fn remind(&mut self) {
        let now = Instant::now();
        if self.reminded.is_some_and(|last| now.saturating_duration_since(last) < REMINDER) {
            return;
        }
        self.reminded = Some(now);
        let places = &self.regular;
        tracing::warn!(
            connections = places.taken,
            addresses = places.holders.len(),
            most_of_one_address = places.holders.values().map(BTreeMap::len).max(),
            "every connection that server.max_connections allows is open; idle ones of the addresses that hold the most \
             make room for new ones"
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

    /// The connection that makes room for one of `newcomer`.
    fn who_pays(&self, newcomer: Network) -> Option<(Network, u64)> {
        let own = self.holders.get(&newcomer).map_or(0, BTreeMap::len);
        let addresses = self.holders.len() + usize::from(own == 0);
        let share = self.most / addresses;
        let others = self
            .holders
            .iter()
            .filter(|(network, members)| **network != newcomer && members.len() > share.max(own));
        // The address that holds the most first; of its connections an idle one before an unfinished head, that before
        // an unfinished body, and the one that has waited longest.
        let waiting = others.flat_map(|(network, members)| {
            let held = Reverse(members.len());
            members.iter().filter_map(move |(id, member)| {
                let waiting = member.activity.waiting()?;
                Some((held, waiting, *id, *network))
            })
        });
        let other = waiting.min_by_key(|(held, waiting, id, _)| (*held, *waiting, *id));
        if let Some((_, _, id, network)) = other {
            return Some((network, id));
        }
        let own = self.holders.get(&newcomer)?.iter().filter_map(|(id, member)| {
            let waiting = member.activity.waiting()?;
            (waiting.awaited == Awaited::Request).then_some((waiting, *id))
        });
        own.min().map(|(_, id)| (newcomer, id))
    }
}

impl Place {
    /// Resolves when the connection should end to make room.
    pub(crate) async fn told_to_leave(&self) {
        self.member.leave.cancelled().await;
    }

    /// Cancelled when the connection should end to make room.
    pub(crate) fn leave_token(&self) -> CancellationToken {
        self.member.leave.clone()
    }

    /// False for a connection of the reserve, unless there is a regular place for it by now.
    pub(crate) fn is_regular(&self) -> bool {
        if !self.in_reserve.load(Ordering::Relaxed) {
            return true;
        }
        let mut guard = self.table.lock();
        let all = &mut *guard;
        let Some(member) = all.reserve.remove(self.network, self.id) else {
            // It has been told to leave.
            return false;
        };
        let has_room = self.table.make_room(&mut all.regular, self.network);
        let places = if has_room { &mut all.regular } else { &mut all.reserve };
        places.insert(self.network, self.id, member);
        self.in_reserve.store(!has_room, Ordering::Relaxed);
        has_room
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.table.lock();
        // A connection that was told to leave is in neither.
        if all.regular.remove(self.network, self.id).is_none() {
            all.reserve.remove(self.network, self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Rig {
        table: Arc<ConnectionTable>,
        metrics: Arc<Metrics>,
    }

    /// A connection and what it does.
    struct Client {
        activity: Activity,
        place: Place,
    }

    impl Client {
        fn is_leaving(&self) -> bool {
            self.place.member.leave.is_cancelled()
        }

        fn is_in_reserve(&self) -> bool {
            self.place.in_reserve.load(Ordering::Relaxed)
        }

        /// Has asked, was answered, and waits.
        fn idle(self) -> Self {
            drop(self.activity.begin_request());
            self
        }
    }

    impl Rig {
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
        let rig = Rig::new(4);
        let bystander = rig.connect("10.0.0.9").idle();
        let crowd: Vec<Client> = (0..3).map(|_| rig.connect("10.0.0.1").idle()).collect();
        // The first is not the one that has waited longest.
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
        let rig = Rig::new(3);
        let crowd: Vec<Client> =
            (1..=2).map(|host| rig.connect(&format!("2001:db8::{host}")).idle()).collect();
        let bystander = rig.connect("2001:db8:0:1::1").idle();
        rig.connect("10.0.0.1");
        assert_eq!(leaving(&crowd), [true, false]);
        assert!(!bystander.is_leaving());
    }

    #[test]
    fn no_address_pays_for_one_that_holds_as_much() {
        let rig = Rig::new(4);
        let a: Vec<Client> = (0..2).map(|_| rig.connect("10.0.0.1").idle()).collect();
        let b: Vec<Client> = (0..2).map(|_| rig.connect("10.0.0.2").idle()).collect();
        rig.connect("10.0.0.2").idle();
        assert_eq!((leaving(&a), leaving(&b)), (vec![false, false], vec![true, false]));
    }

    #[test]
    fn with_as_many_addresses_as_places_the_longest_idle_of_all_makes_room() {
        let rig = Rig::new(3);
        let clients: Vec<Client> =
            (1..=3).map(|host| rig.connect(&format!("10.0.0.{host}")).idle()).collect();
        let newcomer = rig.connect("10.0.0.4");
        assert_eq!(leaving(&clients), [true, false, false]);
        assert!(!newcomer.is_in_reserve());
    }

    #[test]
    fn an_unfinished_head_makes_room_after_idle_ones_and_not_for_its_own_address() {
        let rig = Rig::new(2);
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
        let rig = Rig::new(2);
        let slow = rig.connect("10.0.0.1");
        let _request = slow.activity.begin_request();
        slow.activity.begin_body();
        let head = rig.connect("10.0.0.1");
        head.activity.begin_head();
        let own = rig.connect("10.0.0.1");
        assert!(own.is_in_reserve() && !slow.is_leaving() && !head.is_leaving());
        let first = rig.connect("10.0.0.2");
        assert!(head.is_leaving() && !slow.is_leaving() && !first.is_in_reserve());
        // Neither address holds more than its share now; a third one finds the slow body of the one that does.
        let _more = rig.connect("10.0.0.1");
        drop(first);
        let more = rig.connect("10.0.0.1");
        let _busy = more.activity.begin_request();
        let other = rig.connect("10.0.0.3");
        assert!(slow.is_leaving() && !more.is_leaving() && !other.is_in_reserve());
    }

    #[test]
    fn requests_in_progress_and_answers_being_sent_stay_and_the_reserve_is_contested_by_the_same_rules()
     {
        let rig = Rig::new(2);
        let busy: Vec<Client> = (0..2).map(|_| rig.connect("10.0.0.1")).collect();
        let request = busy[0].activity.begin_request();
        drop(busy[1].activity.begin_request());
        busy[1].activity.set_stalled(true);
        let crowd: Vec<Client> = (0..8).map(|_| rig.connect("10.0.0.1")).collect();
        assert!(crowd.iter().all(Client::is_in_reserve));
        // One more of the crowd replaces one of the crowd, and so does a probe, as long as the crowd has more.
        let more = rig.connect("10.0.0.1");
        let probe = rig.connect("10.0.0.2");
        assert!(more.is_in_reserve() && probe.is_in_reserve() && !probe.place.is_regular());
        assert_eq!(leaving(&crowd).iter().filter(|leaving| **leaving).count(), 2);
        assert_eq!(leaving(&busy), [false, false]);
        assert_eq!(rig.held(), (2, 8));
        // Nobody in the reserve waits any more: there is nothing left to give.
        let requests: Vec<_> = crowd[2..]
            .iter()
            .chain([&more, &probe])
            .map(|client| client.activity.begin_request())
            .collect();
        assert!(rig.try_connect("10.0.0.3").is_none());
        assert_eq!(rig.shed("newcomer"), 1);
        drop((request, requests));
    }

    #[test]
    fn a_connection_of_the_reserve_takes_a_regular_place_once_there_is_one() {
        let rig = Rig::new(1);
        let busy = rig.connect("10.0.0.1");
        let request = busy.activity.begin_request();
        let waiting = rig.connect("10.0.0.2");
        assert!(waiting.is_in_reserve() && !waiting.place.is_regular());
        drop(request);
        // Idle now: it may be closed, as its address holds more than its share without the newcomer.
        drop(busy);
        assert!(waiting.place.is_regular() && !waiting.is_in_reserve());
        assert_eq!(rig.held(), (1, 0));
    }
}
