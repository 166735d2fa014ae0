//! Fairness between clients: who asks, whose turn it is, and how much one client may hold while others wait.
//!
//! A client is an API key, or an address where there are no keys (`http` decides). Whatever is scarce is shared by client
//! first and by call inside a client: places in the worker's units, decoding threads, rows and bytes.
//!
//! - [`ClientId`], [`CallId`]: who asks.
//! - [`Turns`]: items that wait, taken one by one from each client in turn.
//! - [`fits`]: a bound that all share, with a part kept for clients that hold little ([`with_reserve`]).

mod share;
mod turns;

pub use share::{fits, with_reserve};
pub use turns::{Pick, Turns};

/// A client, as far as fairness goes; opaque.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// One call of a client; the number is unique within one engine's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId {
    /// Whose call it is.
    pub client: ClientId,
    /// Its number.
    pub number: u64,
}
