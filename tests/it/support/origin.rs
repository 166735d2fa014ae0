//! The other end of a fetch: a host on a loopback address that answers as a test says, and names that lead to it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use blip_server::fetch::testing::Hooks;
use blip_server::fetch::{FetchSettings, NameLookup};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::app::TestConfig;

/// A host; it is gone when this is dropped.
pub(crate) struct Origin {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    seen: Arc<Seen>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    /// Connections that are still being answered.
    open: AtomicUsize,
    heads: Mutex<Vec<String>>,
}

impl Origin {
    /// A host on `address` that hands each connection, its request's head read, to `answer`.
    pub(crate) async fn start<F, A>(address: SocketAddr, answer: F) -> io::Result<Self>
    where
        F: Fn(String, TcpStream) -> A + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await?;
        let (address, seen) = (listener.local_addr()?, Arc::<Seen>::default());
        let (answer, book) = (Arc::new(answer), Arc::clone(&seen));
        let accepting = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                book.connections.fetch_add(1, Ordering::SeqCst);
                book.open.fetch_add(1, Ordering::SeqCst);
                let (answer, book) = (Arc::clone(&answer), Arc::clone(&book));
                tokio::spawn(async move {
                    let head = read_head(&mut stream).await;
                    book.heads.lock().unwrap().push(head.clone());
                    answer(head, stream).await;
                    book.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Ok(Self { address, seen, accepting })
    }

    /// A host on 127.0.0.1 that sends these bytes to everybody and closes.
    pub(crate) async fn sending(answer: Vec<u8>) -> Self {
        let answer = Arc::new(answer);
        let send = move |_, mut stream: TcpStream| {
            let answer = Arc::clone(&answer);
            // The client may have seen enough before the end.
            async move { drop(stream.write_all(&answer).await) }
        };
        Self::start("127.0.0.1:0".parse().unwrap(), send).await.expect("a free port")
    }

    /// Connections that were made.
    pub(crate) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// Connections that are still being answered.
    pub(crate) fn open(&self) -> usize {
        self.seen.open.load(Ordering::SeqCst)
    }

    /// Heads of the requests.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.seen.heads.lock().unwrap().clone()
    }

    /// A URL of this host.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => head.extend_from_slice(&buffer[..read]),
            Ok(_) | Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// An answer of 200 with this body.
pub(crate) fn ok(body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// A redirect.
pub(crate) fn redirect(location: &str) -> Vec<u8> {
    format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n").into_bytes()
}

/// Names to addresses: each question takes the next of a name's answers, the last one for ever.
#[derive(Default)]
pub(crate) struct Names {
    answers: Mutex<HashMap<String, Vec<Vec<IpAddr>>>>,
    /// What every other name is.
    others: Vec<IpAddr>,
    questions: AtomicUsize,
}

impl Names {
    /// Every name has these addresses, until it is given others.
    pub(crate) fn all(addresses: &[IpAddr]) -> Arc<Self> {
        Arc::new(Self { others: addresses.to_vec(), ..Self::default() })
    }

    /// Gives a name its answers.
    pub(crate) fn set(&self, name: &str, mut answers: Vec<Vec<IpAddr>>) {
        answers.reverse();
        self.answers.lock().unwrap().insert(name.to_owned(), answers);
    }

    /// How often it was asked.
    pub(crate) fn questions(&self) -> usize {
        self.questions.load(Ordering::SeqCst)
    }
}

impl NameLookup for Names {
    fn lookup(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        self.questions.fetch_add(1, Ordering::SeqCst);
        let mut names = self.answers.lock().unwrap();
        let answer = names.get_mut(host).map_or_else(
            || self.others.clone(),
            |answers| {
                let next = if answers.len() > 1 { answers.pop() } else { answers.last().cloned() };
                next.unwrap_or_default()
            },
        );
        let found =
            if answer.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(answer) };
        async move { found }.boxed()
    }
}

/// Fetching with plain HTTP from this port and the usual ones; `is_allowed` judges addresses.
pub(crate) fn fetching(
    config: &mut TestConfig,
    names: &Arc<Names>,
    port: u16,
    is_allowed: fn(IpAddr) -> bool,
) {
    let settings = FetchSettings { enabled: true, allow_http: true, ..FetchSettings::default() };
    let lookup = Arc::clone(names) as Arc<dyn NameLookup>;
    let ports = vec![80, 443, port];
    config.fetch = Some((settings, Hooks { is_allowed, ports, ..Hooks::with_lookup(lookup) }));
}

/// For tests whose hosts are on loopback addresses.
pub(crate) fn any_loopback(address: IpAddr) -> bool {
    address.is_loopback()
}
