//! TLS on the public listener: what is spoken, what a broken handshake costs, certificates that change.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use blip_server::http::{Listener, Tls, TlsSettings};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion, version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::TestServer;
use crate::support::app::TestConfig;
use crate::support::server::read_to_end;

const SHORT: Duration = Duration::from_millis(100);
/// Far above `SHORT`, far below any default.
const SOON: Duration = Duration::from_secs(8);

/// A certificate and its key in files.
struct Identity {
    directory: tempfile::TempDir,
    certificate: CertificateDer<'static>,
}

impl Identity {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let certificate = write_identity(directory.path());
        Self { directory, certificate }
    }

    /// Another certificate in the same files.
    fn renew(&mut self) {
        self.certificate = write_identity(self.directory.path());
    }

    fn settings(&self) -> TlsSettings {
        let file = |name: &str| self.directory.path().join(name);
        TlsSettings { certificate: file("certificate.pem"), key: file("key.pem") }
    }

    async fn serve(&self, change: impl FnOnce(&mut TestConfig)) -> TestServer {
        let tls = Tls::load(&self.settings()).unwrap();
        TestServer::start_on(change, |tcp| Listener::from(tcp).with_tls(tls)).await
    }
}

fn write_identity(directory: &std::path::Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let write = |name: &str, content: String| {
        let path: PathBuf = directory.join(name);
        std::fs::write(path, content).unwrap();
    };
    write("certificate.pem", made.cert.pem());
    write("key.pem", made.signing_key.serialize_pem());
    made.cert.der().clone()
}

/// A connection of a client that trusts this certificate alone.
async fn connect(
    server: &TestServer,
    trusted: &CertificateDer<'static>,
    versions: &[&'static SupportedProtocolVersion],
    protocols: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, server.connect().await).await
}

/// The answer to a request, read until the server closes.
async fn ask(stream: &mut TlsStream<TcpStream>, request: &[u8]) -> String {
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(SOON, read).await.expect("answered").expect("closed with a notice");
    String::from_utf8(answer).unwrap()
}

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

/// Plain bytes, to the end of the connection.
async fn plain(server: &TestServer, bytes: &[u8]) -> String {
    let stream = server.send(bytes).await;
    tokio::time::timeout(SOON, read_to_end(stream)).await.expect("closed")
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_1_2_and_1_3_carry_http_1_1() {
    let identity = Identity::new();
    let server = identity.serve(|_| ()).await;
    let cases =
        [(&version::TLS12, ProtocolVersion::TLSv1_2), (&version::TLS13, ProtocolVersion::TLSv1_3)];
    for (version, spoken) in cases {
        for protocols in [&["h2", "http/1.1"][..], &[]] {
            let mut stream =
                connect(&server, &identity.certificate, &[version], protocols).await.unwrap();
            assert_eq!(stream.get_ref().1.protocol_version(), Some(spoken));
            let agreed = stream.get_ref().1.alpn_protocol();
            assert_eq!(agreed, (!protocols.is_empty()).then_some(&b"http/1.1"[..]));
            let answer = ask(&mut stream, HEALTH).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(answer.ends_with("{\"status\":\"ready\"}"), "{answer}");
        }
    }
    // A client of HTTP/2 alone is told so before it says anything.
    let refused = connect(&server, &identity.certificate, &[&version::TLS13], &["h2"]).await;
    assert!(refused.is_err());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_refusal_reaches_a_client_that_sends_its_whole_body_first() {
    let identity = Identity::new();
    let server = identity.serve(|_| ()).await;
    let mut stream =
        connect(&server, &identity.certificate, &[&version::TLS13], &[]).await.unwrap();
    let body = vec![b'x'; 4 << 20];
    let head =
        format!("POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    let answer = ask(&mut stream, &[head.as_bytes(), &body].concat()).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert!(answer.contains("\"code\":\"route_not_found\""), "{answer}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_handshake_costs_its_own_connection_alone() {
    let identity = Identity::new();
    let server = identity.serve(|_| ()).await;
    let mut good = connect(&server, &identity.certificate, &[&version::TLS13], &[]).await.unwrap();
    let garbage: Vec<u8> = (0..2000_u32).map(|byte| (byte * 31 % 251) as u8).collect();
    for bytes in [HEALTH, b"\x16\x03\x01\xff\xff", b"\0", &garbage] {
        let mut stream = server.send(bytes).await;
        stream.shutdown().await.unwrap();
        let answer = tokio::time::timeout(SOON, read_to_end(stream)).await.expect("closed");
        assert!(!answer.contains("HTTP/1.1") && !answer.contains("ready"), "{answer}");
    }
    // Plain HTTP is closed without waiting for more.
    assert!(!plain(&server, HEALTH).await.contains("HTTP/1.1"));
    server
        .app
        .until("five failures", |app| app.metrics.tls_handshake_failures_total.get() == 5)
        .await;
    let answer = ask(&mut good, HEALTH).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_handshake_is_cut_off_and_holds_a_place_until_then() {
    let identity = Identity::new();
    let server = identity
        .serve(|config| {
            config.http.connections.header_read_timeout = SHORT;
            config.http.connections.max_connections = 1;
        })
        .await;
    for bytes in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01"] {
        let slow = server.send(bytes).await;
        server.app.until("its place", |app| app.metrics.http_connections.get() == 1).await;
        tokio::time::timeout(SOON, read_to_end(slow)).await.expect("cut off");
        server.app.until("no place", |app| app.metrics.http_connections.get() == 0).await;
    }
    // A handshake and then silence is a head that never ends.
    let mut idle = connect(&server, &identity.certificate, &[&version::TLS13], &[]).await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(SOON, idle.read_to_end(&mut rest)).await.expect("cut off");
    assert_eq!(rest, b"");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_does_not_wait_for_handshakes() {
    let identity = Identity::new();
    let server = identity.serve(|_| ()).await;
    let slow = server.send(b"\x16\x03\x01").await;
    server.app.until("its place", |app| app.metrics.http_connections.get() == 1).await;
    let (_app, drained) = tokio::time::timeout(SOON, server.stop()).await.expect("ends");
    assert_eq!(drained.cut, 0);
    read_to_end(slow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_shown_to_new_connections_and_a_broken_one_is_not() {
    let mut identity = Identity::new();
    let server =
        identity.serve(|config| config.http.file_check_interval = Duration::from_millis(5)).await;
    let old = identity.certificate.clone();
    let mut open = connect(&server, &old, &[&version::TLS13], &[]).await.unwrap();
    let reloads = |result: &str| {
        server.app.metrics.file_reloads_total.with_label_values(&["certificate", result]).get()
    };

    identity.renew();
    server.app.until("it is read", |_| reloads("ok") >= 1).await;
    let mut new = connect(&server, &identity.certificate, &[&version::TLS13], &[]).await.unwrap();
    assert!(ask(&mut new, HEALTH).await.starts_with("HTTP/1.1 200"));
    assert!(connect(&server, &old, &[&version::TLS13], &[]).await.is_err(), "the old is shown");
    // A connection that was open goes on.
    assert!(ask(&mut open, HEALTH).await.starts_with("HTTP/1.1 200"));

    let failed = reloads("failed");
    std::fs::write(identity.settings().key, "nonsense").unwrap();
    server.app.until("it is refused", |_| reloads("failed") > failed).await;
    connect(&server, &identity.certificate, &[&version::TLS13], &[]).await.unwrap();
    server.stop().await;
}
