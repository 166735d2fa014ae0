//! What must stay untouched: listeners on addresses outside the public internet, all on one port.

use std::net::{IpAddr, SocketAddr};

use crate::support::origin::ok;
use crate::support::{Origin, png};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Listeners that count their visitors, and serve them a picture.
pub(super) struct Canaries {
    pub(super) port: u16,
    listeners: Vec<Origin>,
}

impl Canaries {
    /// On loopback addresses and a free port.
    pub(super) async fn on_loopback() -> Self {
        // The port that one address has free may be taken on another.
        for _ in 0..100 {
            let first = listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
            let port = first.address.port();
            let Ok(second) = listen(SocketAddr::from(([127, 0, 0, 2], port))).await else {
                continue;
            };
            let mut listeners = vec![first, second];
            match listen(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port))).await {
                Ok(third) => listeners.push(third),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => continue,
                Err(error) => eprintln!("no canary on [::1]: {error}"),
            }
            return Self { port, listeners };
        }
        panic!("no port is free on three loopback addresses");
    }

    /// On all these addresses and port 80; only possible where they are this machine's own.
    pub(super) async fn on_port_80(addresses: &[IpAddr]) -> Self {
        let mut listeners = Vec::new();
        for &address in addresses {
            let listener = listen(SocketAddr::new(address, 80)).await;
            listeners.push(listener.unwrap_or_else(|error| {
                panic!("{address}: {error}; this runs inside tests/robustness/ssrf/namespace.sh")
            }));
        }
        Self { port: 80, listeners }
    }

    /// Visitors so far.
    pub(super) fn hits(&self) -> usize {
        self.listeners.iter().map(Origin::connections).sum()
    }

    /// Whether a client that connects to this address would be seen.
    pub(super) fn listens_on(&self, address: IpAddr) -> bool {
        let address = match address {
            // The kernel takes "any address" for loopback.
            address if address.is_unspecified() && address.is_ipv4() => [127, 0, 0, 1].into(),
            address if address.is_unspecified() => [0, 0, 0, 0, 0, 0, 0, 1].into(),
            address => address,
        };
        self.listeners.iter().any(|listener| listener.address.ip() == address)
    }
}

async fn listen(address: SocketAddr) -> std::io::Result<Origin> {
    let answer =
        |_, mut stream: TcpStream| async move { drop(stream.write_all(&ok(&png(9))).await) };
    Origin::start(address, answer).await
}
