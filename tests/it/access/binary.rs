//! The binary with all of it: addresses in the log, probes and scrapes during a drain, the health check over TLS.

use std::net::TcpStream;
use std::process::Command;

use serde_json::json;

use super::A;
use crate::support::process::{get, read, send};
use crate::support::{ServerProcess, base64, png};

#[test]
fn operators_see_the_drain_to_its_end() {
    let key = format!("a:{A}");
    let settings = [("SERVER__OPERATIONS_LISTEN", "127.0.0.1:0"), ("AUTH__KEYS", key.as_str())];
    // An image takes two seconds: time to look around while it is encoded.
    let mut server = ServerProcess::start(&["--image-us", "2000000"], &settings);
    let operations = server.address("operations listener on http://");
    let public = server.public_address();
    assert!(get(&public, "/metrics").starts_with("HTTP/1.1 401"));
    assert!(get(&public, "/health/ready").starts_with("HTTP/1.1 200"));
    assert!(get(&operations, "/health/ready").starts_with("HTTP/1.1 200"));

    let body = json!({"image": base64(&png(1))}).to_string();
    let busy = send(
        &public,
        &format!(
            "POST /caption HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {A}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ),
    );
    while !get(&operations, "/metrics").contains("\nblip_queue_rows 1\n") {}
    server.terminate();
    while TcpStream::connect(&public).is_ok() {}
    let ready = get(&operations, "/health/ready");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("draining"), "{ready}");
    let metrics = get(&operations, "/metrics");
    assert!(metrics.contains("\nblip_draining 1\n"), "{metrics}");
    assert!(metrics.contains("\nblip_queue_rows 1\n"), "the request ended before the look");
    let answer = read(busy);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(server.end().1, Some(0));
    assert!(TcpStream::connect(&operations).is_err());
}

#[test]
fn the_health_check_asks_a_server_that_speaks_tls_and_wants_keys() {
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["blip.example".to_owned()]).unwrap();
    let write = |name: &str, content: String| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let certificate = write("certificate.pem", made.cert.pem());
    let key_file = write("key.pem", made.signing_key.serialize_pem());
    let keys_file = write("keys", format!("a:{A}\n"));
    let settings = [
        ("SERVER__TLS_CERTIFICATE", certificate.as_str()),
        ("SERVER__TLS_KEY", key_file.as_str()),
        ("AUTH__KEYS_FILE", keys_file.as_str()),
    ];
    let mut server = ServerProcess::start(&[], &settings);
    let address = server.address("listening on https://");
    let healthcheck = Command::new(env!("CARGO_BIN_EXE_blip-server"))
        .args(["healthcheck", "--listen", &address])
        .env_clear()
        .envs(settings.iter().map(|(name, value)| (format!("BLIP__{name}"), value)))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&healthcheck.stderr);
    assert_eq!(healthcheck.status.code(), Some(0), "{said}");
    server.terminate();
    assert_eq!(server.end().1, Some(0));
}
