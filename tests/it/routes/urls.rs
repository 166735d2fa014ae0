//! Images by URL where fetching is switched on: what works, what is refused before anybody is asked, what is told.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::support::app::{TestConfig, json_request};
use crate::support::inputs::image_id;
use crate::support::origin::{any_loopback, fetching, ok, redirect};
use crate::support::{Names, Origin, TestApp, png};
use blip_server::fairness::ClientId;

/// A service that fetches from loopback addresses on the origin's port.
fn fetcher_of(origin: &Origin, names: &Arc<Names>) -> TestApp {
    TestApp::with(|config| fetching(config, names, origin.address.port(), any_loopback))
}

fn count(app: &TestApp, result: &str) -> u64 {
    app.metrics.fetch_total.with_label_values(&[result]).get()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_by_url_is_answered_like_its_bytes() {
    let picture = png(7);
    let origin = Origin::sending(ok(&picture)).await;
    let names = Names::all(&[[127, 0, 0, 1].into()]);
    let app = fetcher_of(&origin, &names);
    let by_name = format!("http://cdn.example:{}/a%20b.png?sign=x", origin.address.port());
    for url in [origin.url("/a.png"), by_name] {
        let answer = app.json("/caption", &json!({"image": url})).await;
        assert_eq!(answer.ok()["image"]["id"], image_id(&picture));
        assert!(answer.header("server-timing").starts_with("fetch;dur="), "{answer:?}");
    }
    assert_eq!((origin.connections(), names.questions()), (2, 1), "nothing is cached by URL");
    assert_eq!(count(&app, "ok"), 2);
    let stage = app.metrics.stage_duration_seconds.with_label_values(&["fetch"]);
    assert_eq!(stage.get_sample_count(), 2);
    // And from now on by its id.
    app.json("/caption", &json!({"image": image_id(&picture)})).await.ok();
    assert_eq!(origin.connections(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_request_tells_the_host_who_asks_and_nothing_about_the_client() {
    let origin = Origin::sending(ok(&png(1))).await;
    let app = fetcher_of(&origin, &Arc::default());
    let mut request = json_request("/caption", &json!({"image": origin.url("/a.png?x=1")}));
    for name in ["authorization", "cookie", "referer", "x-forwarded-for"] {
        request.headers_mut().insert(name, "secret".parse().unwrap());
    }
    app.send(request).await.ok();
    let head = origin.heads()[0].to_ascii_lowercase();
    let mut lines: Vec<&str> = head.trim_end().split("\r\n").collect();
    lines.sort_unstable();
    let agent = concat!("user-agent: blip-server/", env!("CARGO_PKG_VERSION"));
    let host = format!("host: {}", origin.address);
    let expected =
        ["accept-encoding: identity", "accept: */*", "get /a.png?x=1 http/1.1", &host, agent];
    assert_eq!(lines, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_url_twice_in_a_call_is_fetched_once() {
    let origin = Origin::sending(ok(&png(3))).await;
    let app = fetcher_of(&origin, &Arc::default());
    let (url, other) = (origin.url("/a.png"), origin.url("/b.png"));
    let request = json!({"inputs": [{"image": url}, {"image": url}, {"image": other}]});
    let batch = app.json("/caption/batch", &request).await.ok();
    assert_eq!((&batch["failed"], origin.connections()), (&json!(0), 2), "{batch}");
    let request = json!({"images": [url, url], "text": "a"});
    app.json("/similarity", &request).await.ok();
    assert_eq!(origin.connections(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_followed_up_to_the_limit() {
    let answer = |head: String, mut stream: tokio::net::TcpStream| async move {
        use tokio::io::AsyncWriteExt;
        let hops: usize = head[5..6].parse().unwrap();
        let location = format!("/{}", hops.saturating_sub(1));
        let answer = if hops == 0 { ok(&png(4)) } else { redirect(&location) };
        drop(stream.write_all(&answer).await);
    };
    let origin = Origin::start("127.0.0.1:0".parse().unwrap(), answer).await.unwrap();
    let app = fetcher_of(&origin, &Arc::default());
    app.json("/caption", &json!({"image": origin.url("/3")})).await.ok();
    assert_eq!(origin.connections(), 4);
    let answer = app.json("/caption", &json!({"image": origin.url("/4")})).await;
    assert_eq!(answer.refused_field(422, "url_unreachable"), "image");
    assert_eq!((origin.connections(), count(&app, "redirect")), (8, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_a_rule_is_refused_in_the_rules_words_and_stays_with_its_input() {
    let origin = Origin::sending(ok(&png(5))).await;
    let app = TestApp::with(|config| {
        fetching(config, &Arc::default(), origin.address.port(), any_loopback);
        let (settings, _) = config.fetch.as_mut().unwrap();
        settings.allowed_hosts = vec!["127.0.0.1".to_owned(), "*.example.org".to_owned()];
    });
    let cases = [
        ("http://example.net/a.png", "fetch.allowed_hosts"),
        ("http://127.0.0.2/a.png", "fetch.allowed_hosts"),
        ("http://10.0.0.1/a.png", "outside the public internet"),
        ("http://a.example.org:8080/", "ports 443 and 80"),
        ("http://me:word@a.example.org/", "user name"),
        ("http://a.example.org/#x", "fragment"),
        ("http://a.example.org./", "no final dot"),
        ("http://a.example.org/a b", "percent-encode"),
        ("http://[::1", "not a valid URL"),
    ];
    let mut inputs: Vec<Value> = cases.iter().map(|(url, _)| json!({"image": url})).collect();
    inputs.push(json!({"image": origin.url("/a.png")}));
    let batch = app.json("/caption/batch", &json!({"inputs": inputs})).await.ok();
    assert_eq!(batch["failed"], cases.len(), "{batch}");
    for (index, (url, words)) in cases.iter().enumerate() {
        let error = &batch["results"][index]["error"];
        assert_eq!(error["code"], "url_not_allowed", "{url}");
        assert_eq!(error["errors"][0]["field"], format!("inputs[{index}].image"), "{url}");
        assert!(error["detail"].as_str().unwrap().contains(words), "{url}: {error}");
    }
    assert_eq!((origin.connections(), count(&app, "blocked")), (1, cases.len() as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetched_file_is_judged_like_any_other() {
    let cases = [
        (ok(b"<!doctype html><title>no picture</title>"), 415, "unsupported_image_format"),
        (ok(b""), 422, "undecodable_image"),
        (ok(&png(1)[..40]), 422, "undecodable_image"),
    ];
    for (answer, status, code) in cases {
        let origin = Origin::sending(answer).await;
        let app = fetcher_of(&origin, &Arc::default());
        let refused = app.json("/caption", &json!({"image": origin.url("/")})).await;
        assert_eq!(refused.refused_field(status, code), "image");
        assert_eq!(count(&app, "ok"), 1, "the fetch itself went well");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn info_says_whether_images_are_fetched() {
    let off = TestApp::start();
    assert_eq!(off.get("/info").await.ok()["limits"]["fetch_enabled"], false);
    let on = TestApp::with(|config| fetching(config, &Arc::default(), 80, any_loopback));
    assert_eq!(on.get("/info").await.ok()["limits"]["fetch_enabled"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_refused_is_fetched() {
    let origin = Origin::sending(ok(&png(6))).await;
    let with_capacity = |bytes: u64| {
        let port = origin.address.port();
        let change = move |config: &mut TestConfig| {
            fetching(config, &Arc::default(), port, any_loopback);
            config.engine.capacity_bytes = bytes;
        };
        TestApp::with(change)
    };
    let urls: Vec<String> = (0..4).map(|index| origin.url(&format!("/{index}"))).collect();
    let request = json!({"images": urls, "text": "a"});
    let body = request.to_string().len() as u64;
    // The pixels of four images do not fit, although their URLs do.
    let small = with_capacity(body);
    small.json("/similarity", &request).await.refused(422, "batch_too_large");
    // A full server refuses the call before anybody is asked.
    let full = with_capacity(2 * MIB);
    let held = [(1, 2 * MIB - body), (2, MIB / 2)].map(|(client, bytes)| {
        // The second takes what is kept for those who hold little.
        let mut held = full.handle.admit(ClientId(client), 0, far()).unwrap();
        held.reserve_bytes(bytes).unwrap();
        held
    });
    full.json("/similarity", &request).await.refused(503, "overloaded");
    assert_eq!(origin.connections(), 0);
    drop(held);
    full.json("/similarity", &request).await.ok();
    assert_eq!(origin.connections(), 4);
}

const MIB: u64 = 1 << 20;

fn far() -> std::time::Instant {
    std::time::Instant::now() + std::time::Duration::from_secs(60)
}
