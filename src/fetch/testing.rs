//! What tests replace in the fetcher: name resolution, ports of their own listeners, the check of addresses, root
//! certificates. Not used outside tests: no setting leads here, and [`Fetcher::try_new`](super::Fetcher::try_new) takes
//! none of it.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::client::Dependencies;
use super::{Lookup, is_public};

/// What a test replaces in the fetcher.
pub struct Hooks {
    /// Name resolution instead of the system's.
    pub lookup: Arc<dyn Lookup>,
    /// Whether an address may be connected to; [`is_public`] in production.
    pub permits: fn(IpAddr) -> bool,
    /// Ports that may be connected to; 80 and 443 in production.
    pub ports: Vec<u16>,
    /// Certificates (DER) that are trusted; the system's in production.
    pub roots: Vec<Vec<u8>>,
}

impl Hooks {
    /// The production rules with this name resolution.
    #[must_use]
    pub fn with_lookup(lookup: Arc<dyn Lookup>) -> Self {
        Self { lookup, permits: is_public, ports: vec![80, 443], roots: Vec::new() }
    }

    pub(super) fn into_dependencies(self) -> Dependencies {
        let roots = self.roots.iter().filter_map(|der| reqwest::Certificate::from_der(der).ok());
        let roots = Some(roots.collect());
        let Self { lookup, permits, ports, .. } = self;
        Dependencies { lookup, permits, ports, roots }
    }
}

/// Name resolution that gives every name the same addresses.
#[derive(Debug, Clone)]
pub struct FixedLookup(Vec<IpAddr>);

impl FixedLookup {
    /// Name resolution with these addresses.
    ///
    /// # Panics
    /// If one of them is not an IP address.
    #[must_use]
    pub fn new(addresses: &[&str]) -> Self {
        let parse = |text: &&str| text.parse().expect("an IP address");
        Self(addresses.iter().map(parse).collect())
    }
}

impl Lookup for FixedLookup {
    fn lookup(&self, _: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let addresses = self.0.clone();
        async move { Ok(addresses) }.boxed()
    }
}
