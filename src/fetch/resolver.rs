//! Name resolution that checks every address. The client connects to the addresses checked here and does not resolve
//! the name again. So an attacker gains nothing by changing the address of a name between the check and the connection
//! (DNS rebinding).

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;

/// Name resolution. It is a trait so that tests can replace it.
pub trait NameLookup: Send + Sync + 'static {
    /// Returns every address of `host`, IPv4 and IPv6.
    fn lookup(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The system's resolver.
///
/// A lookup blocks a thread and cannot be interrupted, and its own timeout may be longer than the caller's. A semaphore
/// therefore bounds the lookups in progress, so that slow names from untrusted clients cannot take all threads of the
/// runtime.
pub(super) struct SystemLookup {
    lookups: Arc<Semaphore>,
    resolve: fn(&str) -> io::Result<Vec<IpAddr>>,
}

impl SystemLookup {
    pub(super) fn new(max_lookups: usize) -> Self {
        let resolve = |name: &str| {
            let addresses = (name, 0).to_socket_addrs()?;
            Ok(addresses.map(|address| address.ip()).collect())
        };
        Self { lookups: Arc::new(Semaphore::new(max_lookups)), resolve }
    }
}

impl NameLookup for SystemLookup {
    fn lookup(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let (lookups, resolve) = (Arc::clone(&self.lookups), self.resolve);
        // A final dot makes the name absolute, so that the network's own search domains are not tried.
        let name = format!("{host}.");
        let asked = async move {
            let question = lookups.acquire_owned().await.map_err(io::Error::other)?;
            let answer = move || {
                let _question = question;
                resolve(&name)
            };
            tokio::task::spawn_blocking(answer).await.map_err(io::Error::other)?
        };
        asked.boxed()
    }
}

/// The resolver that reqwest uses. It fails if any address of a name is not permitted.
pub(super) struct CheckedResolver {
    pub(super) lookup: Arc<dyn NameLookup>,
    pub(super) is_allowed: fn(IpAddr) -> bool,
}

/// Error: an address of the name is not permitted. `client` finds this error among the sources of reqwest's error.
#[derive(Debug, thiserror::Error)]
#[error("the name has an address outside the public internet")]
pub(super) struct BlockedName;

#[derive(Debug, thiserror::Error)]
#[error("the name has no address")]
struct NoAddress;

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (answer, is_allowed) = (self.lookup.lookup(name.as_str()), self.is_allowed);
        Box::pin(async move {
            let addresses = answer.await?;
            if addresses.is_empty() {
                return Err(NoAddress.into());
            }
            if !addresses.iter().all(|&address| is_allowed(address)) {
                return Err(BlockedName.into());
            }
            // Port 0 means the port of the URL.
            let addresses = addresses.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::is_public;
    use crate::fetch::testing::FixedLookup;

    async fn resolve(addresses: &[&str]) -> Result<Vec<SocketAddr>, String> {
        let lookup = Arc::new(FixedLookup::new(addresses));
        let resolver = CheckedResolver { lookup, is_allowed: is_public };
        let resolved = resolver.resolve("example.org".parse().unwrap()).await;
        resolved.map(Iterator::collect).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_name_passes_only_when_every_address_does() {
        let both = resolve(&["8.8.8.8", "2606:4700::1111"]).await.unwrap();
        let expected = ["8.8.8.8:0".parse().unwrap(), "[2606:4700::1111]:0".parse().unwrap()];
        assert_eq!(both, expected);
        for bad in ["127.0.0.1", "::1", "::ffff:10.0.0.1", "169.254.169.254", "fd00:ec2::254"] {
            for addresses in [vec![bad], vec!["8.8.8.8", bad], vec![bad, "8.8.8.8"]] {
                assert_eq!(resolve(&addresses).await, Err(BlockedName.to_string()), "{bad}");
            }
        }
        assert_eq!(resolve(&[]).await, Err(NoAddress.to_string()));
    }

    #[tokio::test]
    async fn the_system_is_asked_for_the_absolute_name_and_a_question_that_fails_is_over() {
        let resolve = |name: &str| match name {
            "example.org." => Ok(vec![IpAddr::from([8, 8, 8, 8])]),
            "panic.example." => panic!("as a broken resolver library might"),
            _ => Err(io::ErrorKind::NotFound.into()),
        };
        let lookup = SystemLookup { resolve, ..SystemLookup::new(1) };
        assert!(lookup.lookup("nothing.example").await.is_err());
        assert!(lookup.lookup("panic.example").await.is_err());
        assert_eq!(lookup.lookup("example.org").await.unwrap(), [IpAddr::from([8, 8, 8, 8])]);
    }

    #[tokio::test]
    async fn an_abandoned_lookup_counts_until_the_system_has_answered() {
        static GATE: std::sync::Barrier = std::sync::Barrier::new(2);
        let resolve = |_: &str| {
            GATE.wait();
            Ok(Vec::new())
        };
        let lookup = SystemLookup { resolve, ..SystemLookup::new(1) };
        let asked = tokio::spawn(lookup.lookup("example.org"));
        while lookup.lookups.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        // All permits are taken, so by now the lookup is either queued for a thread or running on one.
        tokio::task::yield_now().await;
        asked.abort();
        assert!(asked.await.is_err());
        assert_eq!(lookup.lookups.available_permits(), 0);
        tokio::task::spawn_blocking(|| GATE.wait()).await.unwrap();
        drop(lookup.lookups.acquire().await.unwrap());
    }
}
