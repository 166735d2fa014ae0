//! `Host` over a real socket.

use crate::support::TestServer;
use crate::support::server::read_to_end;

const END: &str = "connection: close\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_one_valid_host_is_a_400_before_anything_else() {
    let server = TestServer::start(|_| ()).await;
    for fields in [
        "",
        "host: a\r\nhost: a\r\n",
        "host: a\r\nHOST: b\r\n",
        "host: a b\r\n",
        "host: a,b\r\n",
        "host: user@a\r\n",
        "host: a/b\r\n",
        "host: http://a\r\n",
        "host: a:port\r\n",
        "host: [::1\r\n",
    ] {
        for target in ["GET /health", "POST /caption", "GET /nothing", "GET http://a/health"] {
            let request = format!("{target} HTTP/1.1\r\n{fields}\r\n");
            // The connection ends with the answer, though nobody asked for that.
            let answer = read_to_end(server.send(request.as_bytes()).await).await;
            assert!(answer.starts_with("HTTP/1.1 400"), "{request}{answer}");
            assert!(answer.contains(r#""code":"invalid_request""#), "{request}{answer}");
            assert!(
                answer.contains("the host header") || answer.contains("needs a host"),
                "{answer}"
            );
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_valid_host_is_served() {
    let server = TestServer::start(|_| ()).await;
    for request in [
        format!("GET /health HTTP/1.1\r\nHost: localhost:8080\r\n{END}"),
        format!("GET /health HTTP/1.1\r\nhost: [::1]:8080\r\n{END}"),
        format!("GET /health HTTP/1.1\r\nhost: my_service.local.\r\n{END}"),
        format!("GET /health HTTP/1.1\r\nhost:\r\n{END}"),
        format!("GET http://elsewhere:80/health HTTP/1.1\r\nhost: x\r\n{END}"),
        format!("GET /health HTTP/1.0\r\nhost: x\r\n{END}"),
        format!("GET /health HTTP/1.0\r\n{END}"),
    ] {
        let answer = read_to_end(server.send(request.as_bytes()).await).await;
        assert!(answer.contains(" 200 OK\r\n"), "{request}{answer}");
    }
    server.stop().await;
}
