//! Fairness between clients: round robin, and a limit on how much one client may hold while others wait.
//!
//! A client is identified by its API key, or by its address if the server has no keys (`http` decides). Every scarce
//! resource is shared among clients first, and then among the calls of each client. These resources are the places in
//! the worker's work units, the decoding threads, rows, and bytes.
//!
//! - [`ClientId`], [`CallId`]: identify the client and the call behind a request.
//! - [`Turns`]: a fair queue, which takes items one by one from each client in turn.
//! - [`fits`]: decides whether a client may take more of a shared capacity. A reserve on top of the capacity is only
//!   for clients that use little of the capacity ([`with_reserve`]).

mod share;
mod turns;

pub use share::{fits, with_reserve};
pub use turns::{Pick, Turns};

/// Opaque id of a client. Capacity is shared fairly between clients.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// Id of one call of a client; unique within one engine's lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId {
    /// The client that makes the call.
    pub client: ClientId,
    /// Sequence number of the call, assigned by the engine.
    pub number: u64,
}
