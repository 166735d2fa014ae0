//! Fairness between clients: round robin, and a limit on how much one client may hold while others wait.
//!
//! A client is identified by its API key, or by its address if the server has no keys (`http` decides). Every scarce
//! resource is shared among clients first, and then among the calls of each client. These resources are the places in
//! the worker's work units, the decoding threads, rows, and bytes.
//!
//! Bulk work may wait: it is served behind all other (interactive) work, but gets at least a small share, so that it
//! always moves. The bulk work of a client counts as a client of its own.
//!
//! - [`ClientId`], [`CallId`]: identify the client and the call behind a request.
//! - [`Turns`]: a fair queue, which takes items one by one from each client in turn.
//! - [`fits`]: decides whether a client may take more of a shared capacity. A reserve on top of the capacity is only
//!   for clients that use little of the capacity ([`with_reserve`]).

mod deficit;
mod share;
mod turns;

pub use deficit::Deficit;
pub use share::{fits, with_reserve};
pub use turns::{Pick, Turns};

/// Opaque id of a client, or of the bulk work of a client. Capacity is shared fairly between clients.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// Bulk work gets at least one part in this many of whatever it shares with interactive work.
pub(crate) const BULK_PARTS: u32 = 20;

impl ClientId {
    /// The bit that is set in the ids of bulk work, and in no other.
    const BULK: u64 = 1 << 63;

    /// Creates the id of a client's interactive work from a hash.
    #[must_use]
    pub fn from_hash(hash: u64) -> Self {
        Self(hash & !Self::BULK)
    }

    /// Returns the id of the client's bulk work.
    #[must_use]
    pub fn bulk(self) -> Self {
        Self(self.0 | Self::BULK)
    }

    /// True if this is the id of bulk work.
    #[must_use]
    pub fn is_bulk(self) -> bool {
        self.0 & Self::BULK != 0
    }
}

/// Id of one call of a client; unique within one engine's lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId {
    /// The client that makes the call.
    pub client: ClientId,
    /// Sequence number of the call, assigned by the engine.
    pub number: u64,
}
