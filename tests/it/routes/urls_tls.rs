//! Images from `https://`: certificates are checked, and no redirect leaves TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use blip_server::fetch::testing::Hooks;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::support::origin::{any_loopback, fetching, ok, redirect};
use crate::support::{Names, Origin, TestApp, png};

/// A host with a certificate for `secure.example` that sends these bytes to everybody.
struct SecureOrigin {
    address: SocketAddr,
    certificate: Vec<u8>,
}

impl SecureOrigin {
    async fn sending(answer: Vec<u8>) -> Self {
        let certified = rcgen::generate_simple_self_signed(["secure.example".to_owned()]).unwrap();
        let certificate = certified.cert.der().clone();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that does not trust the certificate hangs up.
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { address, certificate: certificate.to_vec() }
    }

    fn url(&self, host: &str) -> String {
        format!("https://{host}:{}/a.png", self.address.port())
    }
}

/// A service that trusts these certificates; every name is 127.0.0.1.
fn service(ports: Vec<u16>, roots: Vec<Vec<u8>>) -> TestApp {
    let names = Names::all(&[[127, 0, 0, 1].into()]);
    TestApp::with(|config| {
        fetching(config, &names, 443, any_loopback);
        let hooks = Hooks { is_allowed: any_loopback, ports, roots, ..Hooks::with_lookup(names) };
        config.fetch.as_mut().unwrap().1 = hooks;
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_believed_only_with_a_certificate_that_is_trusted_and_its_own() {
    let origin = SecureOrigin::sending(ok(&png(1))).await;
    let ports = vec![origin.address.port()];
    let trusting = service(ports.clone(), vec![origin.certificate.clone()]);
    let request = json!({"image": origin.url("secure.example")});
    trusting.json("/caption", &request).await.ok();
    let wrong_name = json!({"image": origin.url("other.example")});
    trusting.json("/caption", &wrong_name).await.refused(422, "url_unreachable");
    let wrong_root = SecureOrigin::sending(Vec::new()).await.certificate;
    let other = service(ports, vec![wrong_root]);
    other.json("/caption", &request).await.refused(422, "url_unreachable");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_redirect_leaves_tls() {
    let plain = Origin::sending(ok(&png(2))).await;
    let secure = SecureOrigin::sending(redirect(&plain.url("/a.png"))).await;
    let ports = vec![plain.address.port(), secure.address.port()];
    let app = service(ports, vec![secure.certificate.clone()]);
    let request = json!({"image": secure.url("secure.example")});
    app.json("/caption", &request).await.refused(422, "url_unreachable");
    assert_eq!(plain.connections(), 0);
    assert_eq!(app.metrics.fetch_total.with_label_values(&["blocked"]).get(), 1);
    // The other way is open.
    let secure = SecureOrigin::sending(ok(&png(2))).await;
    let plain = Origin::sending(redirect(&secure.url("secure.example"))).await;
    let ports = vec![plain.address.port(), secure.address.port()];
    let app = service(ports, vec![secure.certificate.clone()]);
    app.json("/caption", &json!({"image": plain.url("/")})).await.ok();
}
