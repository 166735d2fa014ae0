//! Who may ask, whose images are whose, how often, and over what: keys, scopes, limits, the operations listener, TLS.

mod binary;
mod config;
mod cors;
mod files;
mod keys;
mod limits;
mod operations;
mod scope;
mod tls;

use axum::body::Body;
use axum::http::Request;
use blip_server::http::{ApiKey, AuthSettings};
use serde_json::Value;

use crate::support::app::TestConfig;
use crate::support::{Answer, TestApp};

/// The secrets of two clients.
const A: &str = "secret-of-client-a";
const B: &str = "secret-of-client-b";

/// Two clients, `a` and `b`.
fn with_keys(config: &mut TestConfig) {
    let keys = [format!("a:{A}"), format!("b:{B}")];
    config.http.auth = Some(AuthSettings {
        keys: keys.iter().map(|key| ApiKey::parse(key).unwrap()).collect(),
        keys_file: None,
        failed_attempts_per_minute: 60,
    });
}

/// A GET with a key.
async fn get(app: &TestApp, path: &str, secret: &str) -> Answer {
    let request = Request::get(path).header("authorization", format!("Bearer {secret}"));
    app.send(request.body(Body::empty()).unwrap()).await
}

/// A POST of JSON with a key.
async fn post(app: &TestApp, path: &str, secret: &str, body: &Value) -> Answer {
    let request = Request::post(path)
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {secret}"));
    app.send(request.body(Body::from(body.to_string())).unwrap()).await
}
