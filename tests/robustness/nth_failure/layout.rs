//! The control block that the test and the shim share: a file of [`BYTES`] bytes that the shim maps into the server. All
//! fields are native `u64`s at `index * 8`.

/// Size of the file.
pub(crate) const BYTES: usize = 1024;

/// 1 while calls are counted and may fail.
pub(crate) const ARMED: usize = 0;
/// Index of the kind of call that fails, in [`KINDS`].
pub(crate) const KIND: usize = 1;
/// Which call of this kind fails, counted from 1 since the block was armed. 0: none fails, all are counted.
pub(crate) const NTH: usize = 2;
/// The `errno` of the failure, or [`SHORT`].
pub(crate) const ACTION: usize = 3;
/// Allocations below this size in bytes are neither counted nor refused.
pub(crate) const MIN_BYTES: usize = 4;
/// Number of calls that the shim made fail since the block was armed: 0 or 1.
pub(crate) const HITS: usize = 5;
/// The first of the counters: calls of each kind since the block was armed.
pub(crate) const COUNTS: usize = 6;
/// Offset in bytes of a text that says which call failed, ended by a zero byte.
pub(crate) const PLACE: usize = 512;

/// The call transfers at most one byte.
pub(crate) const SHORT: u64 = 1000;

/// Every kind of call.
pub(crate) const KINDS: [&str; 23] = [
    "allocate",
    "open",
    "read",
    "pread",
    "stat",
    "map",
    "directory",
    "seek",
    "close",
    "write",
    "socket",
    "option",
    "bind",
    "listen",
    "name",
    "accept",
    "receive",
    "send",
    "poll",
    "watch",
    "create",
    "random",
    "thread",
];
