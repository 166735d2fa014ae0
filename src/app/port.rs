//! Why the server cannot listen on an address, and what to do. The commands that serve, and the doctor, say the same.

use std::io::ErrorKind;

/// The reason and the advice for each error of `bind` that has an advice.
const ADVICE: [(ErrorKind, &str, &str); 3] = [
    (
        ErrorKind::AddrInUse,
        "another program is already listening there",
        "stop that program, or choose another port",
    ),
    (
        ErrorKind::PermissionDenied,
        "this user may not use ports below 1024",
        "choose a higher port, or give the process the capability CAP_NET_BIND_SERVICE",
    ),
    (
        ErrorKind::AddrNotAvailable,
        "this machine has no such address",
        "choose one of its addresses, or :PORT for all of them",
    ),
];

/// Returns the reason of an error of `bind`, and what to do; `None` if there is no advice.
pub(crate) fn explain(error: ErrorKind) -> Option<(&'static str, &'static str)> {
    ADVICE.iter().find(|(kind, ..)| *kind == error).map(|&(_, reason, advice)| (reason, advice))
}
