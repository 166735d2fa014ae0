//! Twins of the types that `sync` hands to the engine: each is the type of `std` or tokio on a real thread, and a type
//! that shuttle controls on a thread of an explored schedule. Only this crate's own tests use them.
//!
//! - `locks`: a mutex, a notification and a thread.
//! - `inbox`: a bounded channel.

pub(crate) mod inbox;
pub(crate) mod locks;
