//! File descriptors: compares the number that the settings allow to be open at one time with the limit of this process
//! (`RLIMIT_NOFILE`), and raises the soft limit if necessary. `App::serve` calls `ensure` once at startup.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::http;

/// Number of descriptors for the server itself: runtime, listeners, standard streams, and files that are open briefly
/// (weights, keys, `/proc`).
const RESERVED_DESCRIPTORS: u64 = 64;

/// Raises the soft limit of this process if the settings need more, and warns if the hard limit is too low.
pub(super) fn ensure(config: &Config) {
    let needed = needed(config);
    let limit = getrlimit(Resource::Nofile);
    match LimitAction::of(&limit, needed) {
        LimitAction::Enough => {}
        LimitAction::Raise(to) => {
            let raised = Rlimit { current: to, maximum: limit.maximum };
            if let Err(error) = setrlimit(Resource::Nofile, raised) {
                tracing::warn!(%error, "cannot raise the file descriptor limit");
                warn(limit.current, needed);
            } else if to.is_some_and(|to| to < needed) {
                warn(to, needed);
            } else {
                tracing::debug!(
                    from = limit.current,
                    to,
                    needed,
                    "raised the file descriptor limit"
                );
            }
        }
        LimitAction::TooLow => warn(limit.current, needed),
    }
}

/// Returns the maximum number of descriptors that are open at one time, for connections, image fetches and
/// [`RESERVED_DESCRIPTORS`].
pub(super) fn needed(config: &Config) -> u64 {
    let connections = &config.http.connections;
    let fetches = if config.fetch.enabled { config.fetch.max_concurrent } else { 0 };
    let sockets =
        http::max_sockets(connections.max_connections, config.operations_listen.is_some());
    (sockets as u64).saturating_add(fetches as u64).saturating_add(RESERVED_DESCRIPTORS)
}

/// Describes a limit that is too low. The server and the doctor say the same.
pub(super) fn shortage(limit: u64, needed: u64) -> String {
    format!(
        "this process may open {limit} file descriptors, but server.max_connections and other settings need up to \
         {needed}"
    )
}

/// Returns what to do about a limit that is too low.
pub(super) fn advice(needed: u64) -> String {
    format!(
        "raise the limit (ulimit -n {needed}, LimitNOFILE={needed}, docker run --ulimit nofile={needed}) or lower \
         server.max_connections"
    )
}

fn warn(limit: Option<u64>, needed: u64) {
    let limit = limit.unwrap_or(u64::MAX);
    let (shortage, advice) = (shortage(limit, needed), advice(needed));
    tracing::warn!(limit, needed, "{shortage}: new connections will have to wait; {advice}");
}

/// What to do about the soft limit.
#[derive(Debug, PartialEq, Eq)]
enum LimitAction {
    Enough,
    /// Raise the soft limit to this hard limit; `None` is unlimited.
    Raise(Option<u64>),
    /// The soft limit cannot be raised, because it already equals the hard limit.
    TooLow,
}

impl LimitAction {
    fn of(limit: &Rlimit, needed: u64) -> Self {
        if limit.current.is_none_or(|current| current >= needed) {
            return Self::Enough;
        }
        if limit.current == limit.maximum { Self::TooLow } else { Self::Raise(limit.maximum) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_below_the_need_is_raised_as_far_as_it_may_be() {
        let plan = |current, maximum| LimitAction::of(&Rlimit { current, maximum }, 1200);
        assert_eq!(plan(Some(1200), Some(4096)), LimitAction::Enough);
        assert_eq!(plan(None, None), LimitAction::Enough);
        assert_eq!(plan(Some(1024), Some(4096)), LimitAction::Raise(Some(4096)));
        assert_eq!(plan(Some(1024), Some(1100)), LimitAction::Raise(Some(1100)));
        assert_eq!(plan(Some(1024), None), LimitAction::Raise(None));
        assert_eq!(plan(Some(1024), Some(1024)), LimitAction::TooLow);
    }
}
