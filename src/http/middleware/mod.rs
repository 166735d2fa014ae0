//! The layers that every request passes through, one per file. `router` stacks them. From the outside in:
//!
//! 1. `request_id` creates the [`RequestContext`](super::context::RequestContext).
//! 2. `client` determines the client's address.
//! 3. `observe` records metrics and the access log, until the last byte of the answer.
//! 4. `headers` sets the security header fields.
//! 5. `server_timing` sets the `server-timing` field.
//! 6. `problem` writes the bodies of error responses.
//! 7. `host` checks the `Host` field.
//! 8. `room` rejects requests on connections for which the listener has no place (load shedding).
//! 9. `panic` turns a panic into a 500 response.
//! 10. `cors` handles cross-origin requests.
//! 11. `authenticate` checks the API key; if the server has no keys, `origin` checks the page instead.
//! 12. `rate_limit` limits the requests of each key or address.
//!
//! Then come the routes, which check the limits of a call. `cors` is outside `authenticate`, because browsers send no
//! key with a preflight request. `rate_limit` is inside it, because it counts by key. Only the routes read bodies: a
//! layer that rejects a request decides by its head alone.

pub(crate) mod access_log;
pub(crate) mod authenticate;
pub(crate) mod client;
pub(crate) mod cors;
pub(crate) mod guarded_body;
pub(crate) mod headers;
pub(crate) mod host;
pub(crate) mod observe;
pub(crate) mod origin;
pub(crate) mod panic;
pub(crate) mod problem;
pub(crate) mod rate_limit;
pub(crate) mod request_id;
pub(crate) mod room;
pub(crate) mod server_timing;
