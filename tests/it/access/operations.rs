//! The operations listener: what is there, what is only there, and that clients cannot crowd it out.

use std::net::SocketAddr;
use std::time::Duration;

use blip_server::http::{RateLimitSettings, serve_operations};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{A, get, with_keys};
use crate::support::TestServer;
use crate::support::server::read_to_end;

const SOON: Duration = Duration::from_secs(10);

/// The answer to a GET on a connection of its own.
async fn ask(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    tokio::time::timeout(SOON, read_to_end(stream)).await.expect("answered")
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_need_no_key_have_no_limit_and_find_a_place_and_metrics_are_theirs_alone() {
    let server = TestServer::start(|config| {
        with_keys(config);
        config.http.operations_listener = true;
        config.http.connections.max_connections = 1;
        config.http.rate_limit = Some(RateLimitSettings { requests_per_second: 1, burst: 1 });
    })
    .await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let operations = listener.local_addr().unwrap();
    let (state, closing) = (server.app.state.clone(), CancellationToken::new());
    let token = closing.clone();
    let serving = tokio::spawn(async move { serve_operations(listener, &state, token).await });

    get(&server.app, "/metrics", A).await.refused(404, "route_not_found");
    assert_eq!(server.app.get("/health").await.status, 200);
    // The one place of the public listener is taken by a client that says nothing.
    let silent = server.connect().await;
    server.app.until("the place is taken", |app| app.metrics.http_connections.get() == 1).await;
    for _ in 0..5 {
        for path in ["/health", "/health/live", "/health/ready", "/metrics", "/info", "/status"] {
            let answer = ask(operations, path).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        }
    }
    for path in ["/caption", "/docs/", "/openapi.json", "/"] {
        let answer = ask(operations, path).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
        assert!(answer.contains("\"code\":\"route_not_found\""), "{path}: {answer}");
    }
    drop(silent);
    closing.cancel();
    let drained = tokio::time::timeout(SOON, serving).await.expect("ends").unwrap();
    assert_eq!(drained.cut, 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_second_listener_metrics_are_on_the_first() {
    let server = TestServer::start(|_| ()).await;
    let answer = ask(server.address, "/metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server.stop().await;
}
