//! Clients: each sends, waits for the whole answer, and sends again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::{JoinSet, LocalSet};

use crate::arguments::Images;
use crate::pictures::Pictures;

/// A client that was refused does not come back at once: clients that spin would take the server's cores.
const AFTER_REFUSAL: Duration = Duration::from_millis(100);

/// Numbers of pictures that no row before has sent.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

/// What is sent, by how many, where to.
pub(crate) struct Load {
    pub(crate) address: SocketAddr,
    pub(crate) target: String,
    pub(crate) pictures: Rc<Pictures>,
    pub(crate) images: Images,
    pub(crate) clients: usize,
}

/// When it counts.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    pub(crate) warm_up: Duration,
    /// From the end of the warm-up; `None` where requests are counted.
    pub(crate) length: Option<Duration>,
    pub(crate) requests: Option<usize>,
}

/// What was answered within the window.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// Length of the window.
    pub(crate) elapsed: Duration,
    /// Of each request that was answered with 200, from its first byte to the answer's last.
    pub(crate) latencies: Vec<Duration>,
    /// The others, by status, or by what happened instead of an answer.
    pub(crate) errors: BTreeMap<String, usize>,
}

/// What clients tell; on one thread.
struct Shared {
    counts: Cell<bool>,
    over: Cell<bool>,
    requests: Option<usize>,
    measured: RefCell<Measured>,
    enough: Notify,
}

impl Load {
    /// Runs the clients; `usage` is read at both ends of the window.
    pub(crate) async fn run<U>(
        &self,
        window: Window,
        usage: impl Fn() -> U,
    ) -> anyhow::Result<(Measured, U, U)> {
        let shared = Rc::new(Shared {
            counts: Cell::new(false),
            over: Cell::new(false),
            requests: window.requests,
            measured: RefCell::default(),
            enough: Notify::new(),
        });
        let clients = LocalSet::new();
        // A server that cannot be reached at all is no measurement.
        clients.run_until(connect(self.address)).await?;
        let mut running = JoinSet::new();
        for _ in 0..self.clients {
            let client = Client {
                address: self.address,
                target: self.target.clone(),
                pictures: Rc::clone(&self.pictures),
                images: self.images,
                connection: None,
                shared: Rc::clone(&shared),
            };
            running.spawn_local_on(client.run(), &clients);
        }
        let timed = async {
            tokio::time::sleep(window.warm_up).await;
            let (start, before) = (Instant::now(), usage());
            shared.counts.set(true);
            match window.length {
                Some(length) => tokio::time::sleep(length).await,
                None => shared.enough.notified().await,
            }
            shared.counts.set(false);
            shared.over.set(true);
            (start.elapsed(), before, usage())
        };
        let (elapsed, before, after) = clients.run_until(timed).await;
        // What is under way is answered, so that the next row meets an idle server.
        clients.run_until(async { while running.join_next().await.is_some() {} }).await;
        let mut measured = shared.measured.take();
        measured.elapsed = elapsed;
        Ok((measured, before, after))
    }
}

/// One of them.
struct Client {
    address: SocketAddr,
    target: String,
    pictures: Rc<Pictures>,
    images: Images,
    connection: Option<SendRequest<Full<Bytes>>>,
    shared: Rc<Shared>,
}

impl Client {
    async fn run(mut self) {
        while !self.shared.over.get() {
            let number = match self.images {
                Images::Distinct => NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
                Images::Same => 0,
            };
            let picture = self.pictures.numbered(number);
            let start = Instant::now();
            let outcome = self.ask(picture).await;
            let answered = matches!(outcome, Ok(StatusCode::OK));
            self.shared.count(outcome, start.elapsed());
            if !answered {
                tokio::time::sleep(AFTER_REFUSAL).await;
            }
        }
    }

    /// Sends a picture and reads the answer to its end.
    async fn ask(&mut self, picture: Bytes) -> anyhow::Result<StatusCode> {
        let mut connection = match self.connection.take().filter(|open| !open.is_closed()) {
            Some(open) => open,
            None => connect(self.address).await?,
        };
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.target)
            .header(HOST, self.address.to_string())
            .header(CONTENT_TYPE, "image/jpeg")
            .body(Full::new(picture))?;
        let response = connection.send_request(request).await?;
        let status = response.status();
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame?;
        }
        if connection.ready().await.is_ok() {
            self.connection = Some(connection);
        }
        Ok(status)
    }
}

impl Shared {
    fn count(&self, outcome: anyhow::Result<StatusCode>, latency: Duration) {
        if !self.counts.get() {
            return;
        }
        let mut measured = self.measured.borrow_mut();
        match outcome {
            Ok(StatusCode::OK) => measured.latencies.push(latency),
            Ok(status) => *measured.errors.entry(status.as_u16().to_string()).or_default() += 1,
            Err(error) => *measured.errors.entry(error.to_string()).or_default() += 1,
        }
        let answered = measured.latencies.len() + measured.errors.values().sum::<usize>();
        if self.requests.is_some_and(|requests| answered >= requests) {
            self.counts.set(false);
            self.enough.notify_one();
        }
    }
}

async fn connect(address: SocketAddr) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream =
        TcpStream::connect(address).await.with_context(|| format!("cannot reach {address}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // It ends with its sender; what goes wrong on it, the sender is told.
    tokio::task::spawn_local(connection);
    Ok(sender)
}
