//! Image URLs that want the server to look where it must not, through the real router with fetching on. Canaries
//! listen on addresses outside the public internet; not one connection may reach them. With the guard switched off
//! they are reached: the test can fail.
//!
//! `namespace.sh` runs the same where the metadata address, private and other special ones belong to the machine.

mod canary;
mod vectors;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blip_server::fetch::is_public;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::origin::{fetching, redirect};
use crate::support::{Answer, Names, Origin, TestApp};
use canary::Canaries;
use vectors::{Expected, Vector};

/// Where tests keep the host that the guard lets through, besides public ones.
const FRIEND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);

fn public_or_friend(address: IpAddr) -> bool {
    address == IpAddr::V4(FRIEND) || is_public(address)
}

fn everything(_: IpAddr) -> bool {
    true
}

/// Every name is loopback, in both families.
fn hostile_names() -> Arc<Names> {
    Names::all(&[[127, 0, 0, 1].into(), [0, 0, 0, 0, 0, 0, 0, 1].into()])
}

fn service(names: &Arc<Names>, port: u16, permits: fn(IpAddr) -> bool) -> TestApp {
    TestApp::with(|config| {
        fetching(config, names, port, permits);
        // A connection that is tried at all fails soon.
        let (settings, _) = config.fetch.as_mut().unwrap();
        settings.total_timeout = Duration::from_millis(500);
    })
}

async fn send(app: &TestApp, url: &str) -> Answer {
    app.json("/caption", &json!({"image": url})).await
}

async fn expect(app: &TestApp, vector: &Vector) {
    let answer = send(app, &vector.text).await;
    let (status, code) = match vector.expected {
        Expected::NotAllowed => (422, "url_not_allowed"),
        Expected::Unreachable => (422, "url_unreachable"),
        Expected::Invalid => (400, "invalid_request"),
    };
    assert_eq!(answer.status.as_u16(), status, "{vector:?}: {}", answer.text());
    answer.refused(status, code);
}

/// Every vector that needs no help from outside; how many there were.
async fn run_direct(canaries: &Canaries) -> usize {
    let app = service(&hostile_names(), canaries.port, is_public);
    let mut vectors = vectors::literals(canaries.port);
    vectors.extend(vectors::schemes(canaries.port));
    vectors.extend(vectors::no_urls(canaries.port));
    vectors.extend(vectors::ports());
    vectors.extend(vectors::names(canaries.port));
    for vector in &vectors {
        expect(&app, vector).await;
    }
    assert_eq!(canaries.hits(), 0);
    vectors.len()
}

/// Names whose answers hold an address that is not public, alone or among public ones.
async fn run_answers(canaries: &Canaries) -> usize {
    let names = hostile_names();
    let app = service(&names, canaries.port, is_public);
    let answers = vectors::answers();
    for (index, addresses) in answers.iter().enumerate() {
        let name = format!("v{index}.example");
        names.set(&name, vec![addresses.clone()]);
        let url = format!("http://{name}:{}/a.png", canaries.port);
        let answer = send(&app, &url).await;
        assert_eq!(answer.status, 422, "{addresses:?}: {}", answer.text());
        answer.refused(422, "url_unreachable");
    }
    let blocked = app.metrics.fetch_total.with_label_values(&["blocked"]).get();
    assert_eq!(blocked, answers.len() as u64, "none of them was connected to");
    assert_eq!(canaries.hits(), 0);
    answers.len()
}

/// A host that the guard lets through redirects to each vector.
async fn run_redirects(canaries: &Canaries) -> usize {
    let mut vectors = vectors::literals(canaries.port);
    vectors.extend(vectors::schemes(canaries.port));
    vectors.extend(vectors::ports());
    vectors.extend(vectors::names(canaries.port));
    // A header holds no line break.
    vectors.retain(|vector| !vector.text.contains(char::is_whitespace));
    vectors.push(Vector {
        text: format!("//127.0.0.1:{}/a.png", canaries.port),
        expected: Expected::Unreachable,
        leads_to: None,
    });
    let locations: Vec<Vec<u8>> = vectors.iter().map(|vector| redirect(&vector.text)).collect();
    let answer = move |head: String, mut stream: TcpStream| {
        let index: usize = head.split(['/', ' ']).nth(2).unwrap().parse().unwrap();
        let answer = locations[index].clone();
        async move { drop(stream.write_all(&answer).await) }
    };
    let friend = Origin::start((FRIEND, canaries.port).into(), answer).await.unwrap();
    let app = service(&hostile_names(), canaries.port, public_or_friend);
    for (index, vector) in vectors.iter().enumerate() {
        let answer = send(&app, &friend.url(&format!("/{index}"))).await;
        assert_eq!(answer.status, 422, "{vector:?}: {}", answer.text());
        answer.refused(422, "url_unreachable");
    }
    assert_eq!(friend.connections(), vectors.len());
    assert_eq!(canaries.hits(), 0);
    vectors.len()
}

/// Names that change their answer between one question and the next: the guard's friend first, then a canary. Half of
/// them by asking again, half by a redirect to the same name.
async fn run_rebinding(canaries: &Canaries, flips: usize) {
    let port = canaries.port;
    let answer = move |head: String, mut stream: TcpStream| async move {
        let name = head.split("/again/").nth(1).and_then(|rest| rest.split(' ').next());
        let location = format!("http://{}:{port}/a.png", name.unwrap_or("nobody.example"));
        drop(stream.write_all(&redirect(&location)).await);
    };
    let friend = Origin::start((FRIEND, port).into(), answer).await.unwrap();
    let names = hostile_names();
    let app = service(&names, port, public_or_friend);
    for flip in 0..flips {
        let name = format!("flip{flip}.example");
        names.set(&name, vec![vec![FRIEND.into()], vec![[127, 0, 0, 1].into()]]);
        let before = (friend.connections(), names.questions());
        let answer = send(&app, &format!("http://{name}:{port}/again/{name}")).await;
        answer.refused(422, "url_unreachable");
        // The first hop reached the friend on the only question asked for it, the second asked anew and was blocked.
        assert_eq!((friend.connections(), names.questions()), (before.0 + 1, before.1 + 2));
    }
    let blocked = app.metrics.fetch_total.with_label_values(&["blocked"]).get();
    assert_eq!((blocked, canaries.hits()), (flips as u64, 0));
}

/// With the guard switched off every vector that leads to a canary reaches it, and is answered with its picture.
async fn run_unguarded(canaries: &Canaries) -> usize {
    let app = service(&hostile_names(), canaries.port, everything);
    let mut vectors = vectors::literals(canaries.port);
    vectors.extend(vectors::names(canaries.port));
    let is_seen =
        |vector: &Vector| vector.leads_to.is_some_and(|address| canaries.listens_on(address));
    vectors.retain(is_seen);
    for vector in &vectors {
        let before = canaries.hits();
        let answer = send(&app, &vector.text).await;
        assert_eq!(answer.status, 200, "{vector:?}: {}", answer.text());
        assert_eq!(canaries.hits(), before + 1, "{vector:?}");
    }
    vectors.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_an_inner_address_is_connected_to() {
    let canaries = Canaries::on_loopback().await;
    let direct = run_direct(&canaries).await;
    assert!(direct >= 1000, "{direct}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_with_one_inner_address_among_public_ones_is_not_connected_to() {
    let canaries = Canaries::on_loopback().await;
    let answers = run_answers(&canaries).await;
    assert!(answers >= 500, "{answers}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_redirect_leads_inside() {
    let canaries = Canaries::on_loopback().await;
    let redirects = run_redirects(&canaries).await;
    assert!(redirects >= 1000, "{redirects}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_changes_its_address_is_asked_once_a_connection_and_checked_each_time() {
    run_rebinding(&Canaries::on_loopback().await, 100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_guard_the_canaries_are_reached() {
    let canaries = Canaries::on_loopback().await;
    let reached = run_unguarded(&canaries).await;
    assert!(reached >= 100, "{reached}");
}

async fn run_long(canaries: &Canaries) {
    let began = Instant::now();
    let (mut direct, mut answers, mut redirects) = (0, 0, 0);
    for _ in 0..10 {
        direct += run_direct(canaries).await;
        answers += run_answers(canaries).await;
        redirects += run_redirects(canaries).await;
    }
    run_rebinding(canaries, 1000).await;
    eprintln!(
        "{direct} URLs, {answers} names, {redirects} redirects, 1000 rebinding names in {:.1} s: {} canary hits",
        began.elapsed().as_secs_f64(),
        canaries.hits()
    );
    let reached = run_unguarded(canaries).await;
    eprintln!("without the guard: {reached} URLs, {} canary hits", canaries.hits());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long"]
async fn long() {
    run_long(&Canaries::on_loopback().await).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "only inside namespace.sh"]
async fn long_in_a_namespace() {
    let mut addresses: Vec<IpAddr> = vectors::V4.map(IpAddr::from).to_vec();
    addresses.extend(vectors::V6.map(IpAddr::from));
    // These are nobody's own address: "any", the broadcast, multicast, reserved; a link-local one needs its link.
    let reserved = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.octets()[0] >= 224,
        IpAddr::V6(address) => address.is_multicast() || address.is_unicast_link_local(),
    };
    addresses.retain(|address| !address.is_unspecified() && !reserved(address));
    addresses
        .extend(vectors::carriers(Ipv4Addr::new(169, 254, 169, 254)).into_iter().map(IpAddr::from));
    let canaries = Canaries::on_port_80(&addresses).await;
    run_long(&canaries).await;
}
