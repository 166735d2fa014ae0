//! Sockets, TLS and connections, up to the point where hyper has a request for the router.
//!
//! - `listener`: the socket that accepts connections. `tls`: the certificate, and the TLS handshake.
//! - `server`: runs each connection, and drains all of them at shutdown.
//! - `connection`: the timeouts of one connection, and what the connection is doing at the moment.
//! - `connection_table`: decides which connections have a place, and which one closes when all places are taken.
//! - `sockets`: the limit on open sockets.
//! - `malformed`: answers, counts and logs request heads that hyper rejects.

mod connection;
mod connection_table;
mod listener;
mod malformed;
mod server;
mod sockets;
mod tls;

#[cfg(test)]
pub(crate) use listener::Accept;
pub use listener::Listener;
#[cfg(test)]
pub(crate) use server::serve_connections;
pub use server::{Drained, LAST_ANSWERS, max_sockets, serve, serve_operations};
pub use tls::{Tls, TlsError};
