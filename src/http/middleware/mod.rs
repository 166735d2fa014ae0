//! What every request passes through, one idea a file. From the outside in:
//!
//! `request_id` (makes the context) - `client` (whose address) - `observe` (metrics and the access log, until the last
//! byte) - `headers` - `server_timing` - `problem` (bodies of refusals) - `host` - `room` - `panic` - `cors` -
//! `authenticate`, or `origin` where there are no keys - `rate_limit` - the routes, which check the limits of a call.
//!
//! `cors` stands outside the keys, because browsers send none when they ask beforehand; limits stand inside, because
//! they count by key. Bodies are read by the routes: what a layer refuses, it refuses from the head alone.

pub(crate) mod access_log;
pub(crate) mod authenticate;
pub(crate) mod client;
pub(crate) mod context;
pub(crate) mod cors;
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
