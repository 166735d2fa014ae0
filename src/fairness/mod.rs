//! Fairness between clients: round robin, and a limit on how much one client may hold while others wait.
//!
//! A client is an API key, or a client address where there are no keys (`http` decides). Every scarce resource is
//! shared by client first, and by call within a client: places in the worker's units, decoding threads, rows and bytes.
//!
//! - [`ClientId`], [`CallId`]: who makes a request.
//! - [`Turns`]: a fair queue. Waiting items are taken one by one from each client in turn.
//! - [`fits`]: a shared capacity, with a part reserved for clients that hold little ([`with_reserve`]).

mod share;
mod turns;

pub use share::{fits, with_reserve};
pub use turns::{Pick, Turns};

/// Opaque id of a client, the unit of fairness.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// One call of a client; the number is unique within one engine's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId {
    /// The client that makes the call.
    pub client: ClientId,
    /// Number of the call, counted by its engine.
    pub number: u64,
}
