//! Fetches images by URL, and nothing else. The URL comes from an untrusted client, so the HTTP client is guarded
//! against server-side request forgery (SSRF), that is, against requests to internal networks that the server can
//! reach.
//!
//! ```text
//! text ─ target: scheme, port, host, literal address, allow-list ─> Target
//!      ─ client: permit ─ resolve, check every address ─ connect to those ─ GET ─ redirect? a new Target, limited
//!      ─ body: status, encoding, size ─> bytes, which hold the permit until they are decoded
//! ```
//!
//! - `settings`: what may be fetched, and how long it may take. Fetching is off by default.
//! - `address`: which addresses belong to the public internet, and which are this machine's own.
//! - `hosts`: the setting `fetch.allowed_hosts`, the list of hosts that images may come from.
//! - `target`: [`Target`], a URL whose text satisfies every rule. The type is proof that the text has been checked.
//! - `resolver`: name resolution that checks every address. Connections go only to addresses that passed.
//! - `client`: [`Fetcher`], the handle that `http` holds, with its permits, redirects and timeouts. `body`: reads the
//!   response within bounds.
//! - `testing`: lets tests replace name resolution, ports, root certificates and the address check; only with the
//!   feature `test-util`.
//!
//! Nothing is cached by URL: fetched bytes are an image like any other, identified by their hash. The cause of a
//! failure at the other end is counted in metrics but not reported to the client, so that nobody can map networks
//! through the server. A URL may carry secrets in its path and query, so only its host is logged, at debug level.

mod address;
mod body;
mod client;
mod error;
mod hosts;
mod resolver;
mod settings;
mod target;
#[cfg(feature = "test-util")]
pub mod testing;

pub use address::is_public;
pub use client::{FetchSetupError, Fetched, Fetcher};
pub use error::{FetchError, NotAllowed};
pub use resolver::NameLookup;
pub use settings::FetchSettings;
pub use target::Target;
