//! Images by URL in the whole application: one setting switches it on, under the rules that no setting bends.

use std::net::TcpListener;

use serde_json::{Value, json};

use super::server::RealServer;

#[tokio::test(flavor = "multi_thread")]
async fn fetching_is_switched_on_by_its_setting_and_inner_addresses_stay_refused() {
    let canary = TcpListener::bind("127.0.0.1:0").unwrap();
    canary.set_nonblocking(true).unwrap();
    let port = canary.local_addr().unwrap().port();
    let settings = [("FETCH__ENABLED", "true"), ("FETCH__ALLOW_HTTP", "true")];
    let server = RealServer::start(&["caption-varied"], &settings).await;
    let cases = [
        ("http://127.0.0.1/a.png".to_owned(), "url_not_allowed"),
        (format!("http://127.0.0.1:{port}/a.png"), "url_not_allowed"),
        ("http://169.254.169.254/latest/meta-data/".to_owned(), "url_not_allowed"),
        ("https://[::ffff:10.0.0.1]/a.png".to_owned(), "url_not_allowed"),
        // Whether or not the machine's resolver knows the name.
        ("https://localhost/a.png".to_owned(), "url_unreachable"),
    ];
    for (url, code) in cases {
        let answer = server.post("/caption", &json!({"image": url})).await;
        let problem: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!((&problem["status"], &problem["code"]), (&json!(422), &json!(code)), "{url}");
    }
    assert!(server.metric("blip_fetch_total{result=\"blocked\"}").await >= 4.0);
    assert_eq!(canary.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody came");
    server.stop().await;
}
