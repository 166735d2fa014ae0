//! A client with keep-alive connections that tells exactly what became of each request.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::tally::Outcome;
use super::traffic::Ask;

/// A connection that was idle for longer is not used again: far below the server's keep-alive time, so that no request
/// is sent into a connection that is just being closed.
const IDLE_LIMIT: Duration = Duration::from_secs(20);

/// A connection and when it was last used.
type Idle = (SendRequest<Full<Bytes>>, Instant);

/// Connections to one server.
pub(crate) struct Pool {
    address: SocketAddr,
    idle: Mutex<Vec<Idle>>,
    /// Requests come from so many addresses in turn, as a proxy would tell.
    clients: u64,
    sent: AtomicU64,
}

impl Pool {
    /// No connections yet.
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self::of_clients(address, 1)
    }

    /// A proxy in front of so many clients; the server has to trust it.
    pub(crate) fn of_clients(address: SocketAddr, clients: u64) -> Self {
        Self { address, idle: Mutex::default(), clients, sent: AtomicU64::new(0) }
    }

    /// Sends a request and reads its answer to the end, for at most `patience`.
    pub(crate) async fn ask(&self, ask: &Ask, patience: Duration) -> Outcome {
        tokio::time::timeout(patience, self.exchange(ask)).await.unwrap_or(Outcome::TimedOut)
    }

    /// The text of an answer that has to come.
    ///
    /// # Panics
    /// When it does not.
    pub(crate) async fn text(&self, ask: &Ask) -> String {
        let mut connection = connect(self.address).await.expect("a connection");
        let answer = connection.send_request(self.request(ask)).await.expect("an answer");
        let body = answer.into_body().collect().await.expect("a whole answer");
        String::from_utf8(body.to_bytes().into()).expect("a text")
    }

    async fn exchange(&self, ask: &Ask) -> Outcome {
        let mut request = self.request(ask);
        loop {
            let Some(mut connection) = self.connection().await else {
                return Outcome::NoConnection;
            };
            match connection.try_send_request(request).await {
                Ok(answer) => return self.read(connection, answer).await,
                // Nothing of it was written: the server had closed the idle connection.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Outcome::Cut,
                },
            }
        }
    }

    /// Reads an answer; its connection is kept if it may be.
    async fn read(
        &self,
        mut connection: SendRequest<Full<Bytes>>,
        answer: hyper::Response<hyper::body::Incoming>,
    ) -> Outcome {
        let status = answer.status().as_u16();
        let Ok(body) = answer.into_body().collect().await else {
            return Outcome::Cut;
        };
        if connection.ready().await.is_ok() {
            self.idle().push((connection, Instant::now()));
        }
        Outcome::Answer(status, problem_code(status, &body.to_bytes()))
    }

    async fn connection(&self) -> Option<SendRequest<Full<Bytes>>> {
        {
            let mut idle = self.idle();
            while let Some((connection, since)) = idle.pop() {
                if since.elapsed() > IDLE_LIMIT {
                    // Those below are older still.
                    idle.clear();
                } else if connection.is_ready() {
                    return Some(connection);
                }
            }
        }
        connect(self.address).await
    }

    fn request(&self, ask: &Ask) -> Request<Full<Bytes>> {
        let request = Request::builder().method(ask.method).uri(&ask.target);
        let request = request.header("host", self.address.to_string());
        let client = self.sent.fetch_add(1, Ordering::Relaxed) % self.clients;
        let request = request.header("x-forwarded-for", format!("10.0.0.{client}"));
        let request = match ask.content_type {
            Some(content_type) => request.header("content-type", content_type),
            None => request,
        };
        request.body(Full::new(ask.body.clone())).expect("a request")
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection, driven by a task of its own until its sender is dropped.
async fn connect(address: SocketAddr) -> Option<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await.ok()?;
    stream.set_nodelay(true).ok()?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    Some(sender)
}

/// The code in a problem document.
pub(crate) fn problem_code(status: u16, body: &[u8]) -> Option<String> {
    if status < 400 {
        return None;
    }
    let text = String::from_utf8_lossy(body);
    let (_, rest) = text.split_once("\"code\":\"")?;
    Some(rest.split('"').next().unwrap_or_default().to_owned())
}
