//! Replacements for parts of the fetcher in tests: name resolution, the ports of the tests' own listeners, the address
//! check, root certificates. Only builds with the cargo feature `test-util` contain them, and
//! [`Fetcher::try_new`](super::Fetcher::try_new) does not accept them.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::client::Dependencies;
use super::{FetchSettings, FetchSetupError, Fetcher, NameLookup, is_public};
use crate::telemetry::metrics::Metrics;

/// The parts of the fetcher that a test replaces.
pub struct Hooks {
    /// Name resolution that replaces the system's.
    pub lookup: Arc<dyn NameLookup>,
    /// Whether an address may be connected to. In production, the address must be public ([`is_public`]) and not one of
    /// this machine's own.
    pub is_allowed: fn(IpAddr) -> bool,
    /// Ports that may be connected to; 80 and 443 in production.
    pub ports: Vec<u16>,
    /// Root certificates (DER) that are trusted; in production, those of the system.
    pub roots: Vec<Vec<u8>>,
}

impl Hooks {
    /// Returns hooks with this name resolution and the ports of production. They permit every public address and trust
    /// no root certificate.
    #[must_use]
    pub fn with_lookup(lookup: Arc<dyn NameLookup>) -> Self {
        Self { lookup, is_allowed: is_public, ports: vec![80, 443], roots: Vec::new() }
    }

    fn into_dependencies(self) -> Dependencies {
        let roots = self.roots.iter().filter_map(|der| reqwest::Certificate::from_der(der).ok());
        let roots = Some(roots.collect());
        let Self { lookup, is_allowed, ports, .. } = self;
        Dependencies { lookup, is_allowed, ports, roots }
    }
}

impl Fetcher {
    /// Creates a fetcher with the name resolution, ports, root certificates and address check in `hooks`.
    ///
    /// # Errors
    /// The same as for [`try_new`](Self::try_new).
    pub fn with_hooks(
        settings: &FetchSettings,
        max_bytes: usize,
        metrics: Arc<Metrics>,
        hooks: Hooks,
    ) -> Result<Self, FetchSetupError> {
        Self::with_dependencies(settings, max_bytes, metrics, hooks.into_dependencies())
    }
}

/// A lookup that returns the same addresses for every name.
#[derive(Debug, Clone)]
pub struct FixedLookup(Vec<IpAddr>);

impl FixedLookup {
    /// Creates a lookup that returns these addresses.
    ///
    /// # Panics
    /// If one of the texts is not an IP address.
    #[must_use]
    pub fn new(addresses: &[&str]) -> Self {
        let parse = |text: &&str| text.parse().expect("an IP address");
        Self(addresses.iter().map(parse).collect())
    }
}

impl NameLookup for FixedLookup {
    fn lookup(&self, _: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let addresses = self.0.clone();
        async move { Ok(addresses) }.boxed()
    }
}
