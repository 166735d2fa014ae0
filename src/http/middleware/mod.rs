//! What every request passes through, one idea a file. From the outside in:
//!
//! `request_id` (makes the context) - `observe` (metrics and the access log, until the last byte) - `headers` -
//! `server_timing` - `problem` (bodies of refusals) - `panic` - `cors` - the routes.
//!
//! API keys and rate limits would stand between `cors` and the routes.

pub(crate) mod access_log;
pub(crate) mod context;
pub(crate) mod cors;
pub(crate) mod headers;
pub(crate) mod observe;
pub(crate) mod panic;
pub(crate) mod problem;
pub(crate) mod request_id;
pub(crate) mod server_timing;
