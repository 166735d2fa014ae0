//! A proxy that spoils the way between client and server, one fault at a time (the set is toxiproxy's).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// Limits of data end within heads, within bodies and within answers.
const LIMITS: usize = 8;
const LIMIT_STEP: usize = 61;

/// What is wrong with the way, in both directions.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Toxic {
    /// Every piece arrives later by this.
    Latency(Duration),
    /// So many bytes a second get through.
    Bandwidth(usize),
    /// The end of a connection is passed on later by this.
    SlowClose(Duration),
    /// Nothing gets through; the connection is closed after this.
    Timeout(Duration),
    /// The connection is reset after this.
    ResetPeer(Duration),
    /// Pieces of so many bytes, with this pause between them.
    Slicer(usize, Duration),
    /// The connection is closed after so many bytes, of which each connection gets more than the one before.
    LimitData(usize),
}

impl Toxic {
    /// One of each.
    pub(crate) const ALL: [Self; 7] = [
        Self::Latency(Duration::from_millis(20)),
        Self::Bandwidth(20_000),
        Self::SlowClose(Duration::from_millis(50)),
        Self::Timeout(Duration::from_millis(50)),
        Self::ResetPeer(Duration::from_millis(2)),
        Self::Slicer(40, Duration::from_millis(1)),
        Self::LimitData(60),
    ];

    /// True when requests get through it, sooner or later.
    pub(crate) fn lets_through(self) -> bool {
        match self {
            Self::Latency(_) | Self::Bandwidth(_) | Self::SlowClose(_) | Self::Slicer(..) => true,
            Self::Timeout(_) | Self::ResetPeer(_) | Self::LimitData(_) => false,
        }
    }

    /// What it is for the `number`-th connection.
    fn for_connection(self, number: usize) -> Self {
        match self {
            Self::LimitData(limit) => Self::LimitData(limit + number % LIMITS * LIMIT_STEP),
            Self::Latency(_)
            | Self::Bandwidth(_)
            | Self::SlowClose(_)
            | Self::Timeout(_)
            | Self::ResetPeer(_)
            | Self::Slicer(..) => self,
        }
    }

    /// Its name in toxiproxy.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Latency(_) => "latency",
            Self::Bandwidth(_) => "bandwidth",
            Self::SlowClose(_) => "slow_close",
            Self::Timeout(_) => "timeout",
            Self::ResetPeer(_) => "reset_peer",
            Self::Slicer(..) => "slicer",
            Self::LimitData(_) => "limit_data",
        }
    }
}

/// A proxy that ends, with its connections, when this is dropped.
pub(crate) struct FaultProxy {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl FaultProxy {
    /// A proxy before `server`.
    pub(crate) async fn start(server: SocketAddr, toxic: Toxic) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            for number in 0.. {
                let Ok((client, _)) = listener.accept().await else { return };
                connections.spawn(pass(client, server, toxic.for_connection(number)));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, accepting }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One connection through the proxy.
async fn pass(client: TcpStream, server: SocketAddr, toxic: Toxic) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    // Options of connections that have just ended fail; then there is nothing to pass on either.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    match toxic {
        Toxic::Timeout(limit) => {
            sleep(limit).await;
            drop((client, server));
        }
        Toxic::ResetPeer(limit) => {
            let _ = (client.set_zero_linger(), server.set_zero_linger());
            let _ = timeout(limit, both_ways(client, server, toxic)).await;
        }
        Toxic::Latency(_)
        | Toxic::Bandwidth(_)
        | Toxic::SlowClose(_)
        | Toxic::Slicer(..)
        | Toxic::LimitData(_) => both_ways(client, server, toxic).await,
    }
}

async fn both_ways(client: TcpStream, server: TcpStream, toxic: Toxic) {
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    let up = one_way(client_reads, server_writes, toxic);
    let down = one_way(server_reads, client_writes, toxic);
    // A broken direction breaks both; an ended one leaves the other open.
    let _ = tokio::try_join!(up, down);
}

/// Passes bytes on until their end, which is passed on too.
async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, toxic: Toxic) -> io::Result<()> {
    let mut buffer = vec![0; 4096];
    let mut passed = 0;
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            break;
        }
        let mut piece = &buffer[..read];
        match toxic {
            Toxic::Latency(delay) => sleep(delay).await,
            Toxic::Bandwidth(rate) => {
                sleep(Duration::from_secs(1) * read as u32 / rate as u32).await;
            }
            Toxic::LimitData(limit) => piece = &piece[..read.min(limit - passed)],
            Toxic::SlowClose(_) | Toxic::Timeout(_) | Toxic::ResetPeer(_) | Toxic::Slicer(..) => {}
        }
        passed += piece.len();
        match toxic {
            Toxic::Slicer(size, pause) => {
                for slice in piece.chunks(size) {
                    to.write_all(slice).await?;
                    sleep(pause).await;
                }
            }
            Toxic::Latency(_)
            | Toxic::Bandwidth(_)
            | Toxic::SlowClose(_)
            | Toxic::Timeout(_)
            | Toxic::ResetPeer(_)
            | Toxic::LimitData(_) => to.write_all(piece).await?,
        }
        if let Toxic::LimitData(limit) = toxic
            && passed == limit
        {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
    }
    if let Toxic::SlowClose(delay) = toxic {
        sleep(delay).await;
    }
    to.shutdown().await
}
