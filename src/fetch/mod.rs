//! Images by URL, and nothing else: the client that fetches what a stranger names, guarded against being turned on the
//! networks that the server stands in (server-side request forgery).
//!
//! ```text
//! text ─ target: scheme, port, host, literal address, allow-list ─> Target
//!      ─ client: place ─ resolve, every answer checked ─ connect to those ─ GET ─ redirect? a new Target, at most so many
//!      ─ body: status, encoding, size ─> bytes, which keep the place until they are decoded
//! ```
//!
//! - `settings`: what may be fetched, and how long it may take. Off by default.
//! - `address`: which addresses belong to the public internet; a pure function.
//! - `hosts`: the list of hosts that images may come from.
//! - `target`: a URL whose text has passed every rule; holding one proves it.
//! - `resolver`: names to addresses, none of them unchecked; the connection goes to no other.
//! - `client`: [`Fetcher`], what `http` holds: hops, time, room. `body`: the answer, bounded.
//! - `testing`: how tests stand in for names, ports and addresses; production's constructor takes none of it.
//!
//! Nothing is cached by URL: fetched bytes are an image like any other, known by their hash.
//! What went wrong at the other end is counted and never told, so that nobody can map networks through the server.
//! A URL may carry secrets in its path and query: no more than its host is logged, at debug level.

mod address;
mod body;
mod client;
mod error;
mod hosts;
mod resolver;
mod settings;
mod target;
#[doc(hidden)]
pub mod testing;

pub use address::is_public;
pub use client::{FetchSetupError, Fetched, Fetcher};
pub use error::{FetchError, NotAllowed};
pub use resolver::Lookup;
pub use settings::{FetchSettings, InvalidFetchSetting};
pub use target::Target;
