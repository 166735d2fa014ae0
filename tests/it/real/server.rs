//! The whole application on a socket, as the `serve` command starts it, and a client for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use base64::Engine as _;
use blip_server::app::App;
use blip_server::config::{Flags, load};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{fixtures, photo};

/// A serving application.
pub(crate) struct RealServer {
    address: SocketAddr,
    client: Client,
    shutdown: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl RealServer {
    /// Serves these fixtures under their names, with settings as the environment would give them
    /// (`ENGINE__CAPACITY_ROWS`), and waits until it is ready. In f32, which the references are in, whatever `auto` is
    /// on this machine.
    pub(crate) async fn start(checkpoints: &[&str], settings: &[(&str, &str)]) -> Self {
        let models = checkpoints
            .iter()
            .map(|name| format!("{name}={}", fixtures().join(name).display()))
            .collect();
        let settings: Vec<_> =
            [("COMPUTE__DTYPE", "f32")].into_iter().chain(settings.iter().copied()).collect();
        Self::serve(models, &settings).await
    }

    /// Serves these `[NAME=]SRC`.
    pub(crate) async fn serve(models: Vec<String>, settings: &[(&str, &str)]) -> Self {
        let environment: BTreeMap<String, String> = settings
            .iter()
            .map(|(key, value)| (format!("BLIP__{key}"), (*value).to_owned()))
            .collect();
        let flags = Flags { models, ..Flags::default() };
        let config = load(&flags, &environment).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let app = App::build(config).unwrap();
        let ready = app.ready();
        let serving = tokio::spawn(app.serve(listener, shutdown.clone()));
        ready.cancelled().await;
        blip_server::hub::install_tls_provider();
        let client = Client::builder().no_proxy().build().unwrap();
        Self { address, client, shutdown, serving }
    }

    /// A POST of JSON.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Response {
        let request = self.client.post(format!("http://{}{path}", self.address));
        let request = request.header("content-type", "application/json");
        request.body(body.to_string()).send().await.unwrap()
    }

    /// The answer to a POST that has to succeed.
    pub(crate) async fn ask(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body).await;
        let status = response.status();
        let text = response.text().await.unwrap();
        assert_eq!(status, 200, "{path} {body}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// The answer to a POST of a body with its content type, which has to succeed.
    pub(crate) async fn send(&self, path: &str, (kind, body): (&str, Vec<u8>)) -> Value {
        let request = self.client.post(format!("http://{}{path}", self.address));
        let response = request.header("content-type", kind).body(body).send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// The answer to a GET.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let response = self.client.get(format!("http://{}{path}", self.address)).send().await;
        serde_json::from_str(&response.unwrap().text().await.unwrap()).unwrap()
    }

    /// The value of a metric's line, the sum where several lines begin so.
    pub(crate) async fn metric(&self, prefix: &str) -> f64 {
        let metrics = self.client.get(format!("http://{}/metrics", self.address));
        let text = metrics.send().await.unwrap().text().await.unwrap();
        let lines = text.lines().filter(|line| line.starts_with(prefix));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// Ends as SIGTERM does; everything has to end well.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.serving.await.unwrap().unwrap();
    }
}

/// A photo as an image value.
pub(crate) fn image(name: &str) -> Value {
    json!(base64::engine::general_purpose::STANDARD.encode(photo(name)))
}
