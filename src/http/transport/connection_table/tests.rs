//! Tests of the connection limit: who gets a place, and who loses one.

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
