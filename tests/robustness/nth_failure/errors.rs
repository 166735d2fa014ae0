//! The errors that Linux reports for each kind of call, and those that are tried here.

use super::layout::SHORT;

const EINTR: u64 = 4;
const EIO: u64 = 5;
const EAGAIN: u64 = 11;
const ENOMEM: u64 = 12;
const EACCES: u64 = 13;
const ENODEV: u64 = 19;
const EMFILE: u64 = 24;
const ENOSPC: u64 = 28;
const EPIPE: u64 = 32;
const ENOSYS: u64 = 38;
const EADDRINUSE: u64 = 98;
const ECONNABORTED: u64 = 103;
const ECONNRESET: u64 = 104;
const ENOBUFS: u64 = 105;

/// The name of an error.
pub(super) fn name(action: u64) -> &'static str {
    match action {
        EINTR => "EINTR",
        EIO => "EIO",
        EAGAIN => "EAGAIN",
        ENOMEM => "ENOMEM",
        EACCES => "EACCES",
        ENODEV => "ENODEV",
        EMFILE => "EMFILE",
        ENOSPC => "ENOSPC",
        EPIPE => "EPIPE",
        ENOSYS => "ENOSYS",
        EADDRINUSE => "EADDRINUSE",
        ECONNABORTED => "ECONNABORTED",
        ECONNRESET => "ECONNRESET",
        ENOBUFS => "ENOBUFS",
        SHORT => "short",
        _ => "?",
    }
}

/// Kinds of calls and their errors, while a server loads.
pub(super) const LOADING: [(&str, &[u64]); 20] = [
    ("open", &[EIO, EMFILE, EACCES]),
    ("read", &[EIO, EINTR, SHORT]),
    ("pread", &[EIO, EINTR, SHORT]),
    ("stat", &[EIO, EACCES]),
    ("map", &[ENOMEM, ENODEV]),
    ("directory", &[EIO, EMFILE]),
    ("seek", &[EIO]),
    ("close", &[EIO, EINTR]),
    ("write", &[EIO, ENOSPC, EAGAIN, EINTR, EPIPE, SHORT]),
    ("socket", &[EMFILE, ENOMEM]),
    ("option", &[ENOBUFS]),
    ("bind", &[EADDRINUSE, EACCES]),
    ("listen", &[EADDRINUSE]),
    ("name", &[ENOBUFS]),
    ("poll", &[EINTR]),
    ("watch", &[ENOMEM, ENOSPC]),
    ("create", &[EMFILE, ENOMEM]),
    ("random", &[EINTR, ENOSYS]),
    ("thread", &[EAGAIN]),
    ("accept", &[EMFILE]),
];

/// Kinds of calls and their errors, while a server serves.
pub(super) const SERVING: [(&str, &[u64]); 17] = [
    ("accept", &[EMFILE, ENOMEM, ECONNABORTED, EINTR]),
    ("receive", &[ECONNRESET, EIO, EINTR, EAGAIN, SHORT]),
    ("send", &[ECONNRESET, EPIPE, EINTR, EAGAIN, SHORT]),
    ("option", &[ENOBUFS]),
    ("name", &[ENOBUFS]),
    ("close", &[EIO, EINTR]),
    ("poll", &[EINTR]),
    ("watch", &[ENOMEM, ENOSPC]),
    ("create", &[EMFILE]),
    ("open", &[EIO, EMFILE]),
    ("read", &[EIO, EINTR, SHORT]),
    ("pread", &[EIO, EINTR]),
    ("stat", &[EIO]),
    ("map", &[ENOMEM]),
    ("write", &[ENOSPC, EIO, EINTR, EAGAIN, EPIPE, SHORT]),
    ("random", &[EINTR, ENOSYS]),
    ("thread", &[EAGAIN]),
];
