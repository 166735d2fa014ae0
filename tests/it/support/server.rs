//! The whole service on a real socket: for what only bytes on a connection can show.

use std::net::SocketAddr;

use blip_server::http::{Drained, Listener, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::TestApp;
use super::app::TestConfig;

/// A service that listens.
pub(crate) struct TestServer {
    /// The service.
    pub(crate) app: TestApp,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Ends it.
    pub(crate) shutdown: CancellationToken,
    serving: JoinHandle<Drained>,
}

impl TestServer {
    /// A service on a port of its own.
    pub(crate) async fn start(change: impl FnOnce(&mut TestConfig)) -> Self {
        Self::start_on(change, Listener::from).await
    }

    /// The same, on what `listen` makes of its socket.
    pub(crate) async fn start_on(
        change: impl FnOnce(&mut TestConfig),
        listen: impl FnOnce(TcpListener) -> Listener,
    ) -> Self {
        let app = TestApp::with(change);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (listener, shutdown) = (listen(listener), CancellationToken::new());
        let (router, state, token) = (app.router.clone(), app.state.clone(), shutdown.clone());
        let serving = tokio::spawn(async move { serve(listener, router, &state, token).await });
        Self { app, address, shutdown, serving }
    }

    /// A connection.
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("a connection")
    }

    /// A connection on which this was sent.
    pub(crate) async fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.expect("a writable connection");
        stream
    }

    /// Shuts down and waits for the end.
    pub(crate) async fn stop(self) -> (TestApp, Drained) {
        self.shutdown.cancel();
        let drained = self.serving.await.expect("serving does not panic");
        (self.app, drained)
    }
}

/// Everything that arrives until the server closes the connection.
pub(crate) async fn read_to_end(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end as well.
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Everything that arrives up to and with this text.
pub(crate) async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut seen = String::new();
    let mut buffer = [0; 1024];
    while !seen.contains(text) {
        let read = stream.read(&mut buffer).await.expect("a readable connection");
        assert!(read > 0, "the connection ended after {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    seen
}
