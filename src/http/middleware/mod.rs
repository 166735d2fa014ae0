//! The layers that every request passes through, one per file. `router` stacks them. From the outside in:
//!
//! 1. `request_id` creates the [`RequestContext`](super::context::RequestContext).
//! 2. `client` determines the client's address.
//! 3. `observe` counts and times requests until the last byte of the response, writes the access log, and begins and ends
//!    the request's trace (`server_span`).
//! 4. `headers` sets the security header fields.
//! 5. `server_timing` sets the `server-timing` field.
//! 6. `problem` writes the bodies of error responses.
//! 7. `host` checks the `Host` field.
//! 8. `load_shedding` rejects requests on connections that have a place in the reserve instead of a regular place.
//!    Probes and scrapes pass.
//! 9. `panic` turns a panic into a 500 response.
//! 10. `cors` handles cross-origin requests.
//! 11. `authenticate` checks the API key. If the server has no keys, `origin` instead checks whether the web page that
//!     sent the request may send it.
//! 12. `rate_limit` limits the requests of each key or address.
//!
//! Innermost are the routes, which check the limits on the content of a request. `cors` is outside `authenticate`,
//! because browsers send no key with a preflight request. `rate_limit` is inside `authenticate`, because it counts by
//! key. Only the routes read bodies: a layer that rejects a request looks only at the request head.

pub(crate) mod access_log;
pub(crate) mod authenticate;
pub(crate) mod client;
pub(crate) mod cors;
pub(crate) mod guarded_body;
pub(crate) mod headers;
pub(crate) mod host;
pub(crate) mod load_shedding;
pub(crate) mod observe;
pub(crate) mod origin;
pub(crate) mod panic;
pub(crate) mod problem;
pub(crate) mod rate_limit;
pub(crate) mod request_id;
pub(crate) mod server_span;
pub(crate) mod server_timing;
