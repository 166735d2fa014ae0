//! The variables by which a service manager such as systemd tells a service where to send its state: the protocol
//! `sd_notify(3)`. They are no settings: only the service manager sets them.

use std::path::PathBuf;
use std::time::Duration;

use super::Environment;

/// Where the service manager expects notifications, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceManager {
    /// The socket (`NOTIFY_SOCKET`).
    pub socket: NotifySocket,
    /// The service manager kills the service if it gets no sign of life for this long (`WATCHDOG_USEC`). `None`: it does
    /// not watch.
    pub watchdog: Option<Duration>,
}

/// Address of a Unix datagram socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotifySocket {
    /// A socket in the file system.
    Path(PathBuf),
    /// A socket in Linux's abstract namespace, by its name without the leading `@`.
    Abstract(String),
}

/// Reads the variables. Returns `None` if no service manager waits for notifications.
pub(super) fn read(environment: &Environment, process: u32) -> Option<ServiceManager> {
    let socket = environment.get("NOTIFY_SOCKET")?;
    let socket = match socket.strip_prefix('@') {
        Some(name) => NotifySocket::Abstract(name.to_owned()),
        // Other families, such as vsock:CID:PORT, are for virtual machines.
        None if socket.starts_with('/') => NotifySocket::Path(PathBuf::from(socket)),
        None => return None,
    };
    let number = |name: &str| environment.get(name)?.parse::<u64>().ok();
    // The watchdog of another process is no business of this one.
    let is_ours = number("WATCHDOG_PID").is_none_or(|watched| watched == u64::from(process));
    let watchdog = number("WATCHDOG_USEC").filter(|&microseconds| is_ours && microseconds > 0);
    Some(ServiceManager { socket, watchdog: watchdog.map(Duration::from_micros) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_from(variables: &[(&str, &str)]) -> Option<ServiceManager> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        read(&variables.iter().map(own).collect(), 42)
    }

    #[test]
    fn without_a_socket_there_is_no_service_manager() {
        assert_eq!(read_from(&[("WATCHDOG_USEC", "1000")]), None);
        assert_eq!(read_from(&[("NOTIFY_SOCKET", "vsock:2:1234")]), None);
    }

    #[test]
    fn sockets_are_paths_or_abstract_names() {
        let socket = |text: &str| read_from(&[("NOTIFY_SOCKET", text)]).unwrap().socket;
        assert_eq!(socket("/run/notify"), NotifySocket::Path("/run/notify".into()));
        assert_eq!(socket("@notify/1"), NotifySocket::Abstract("notify/1".to_owned()));
    }

    #[test]
    fn a_watchdog_counts_only_if_it_watches_this_process() {
        let watchdog = |microseconds, process| {
            let socket = ("NOTIFY_SOCKET", "/run/notify");
            let watched = [socket, ("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", process)];
            read_from(&watched).unwrap().watchdog
        };
        assert_eq!(watchdog("3000000", "42"), Some(Duration::from_secs(3)));
        assert_eq!(watchdog("3000000", "43"), None);
        assert_eq!(watchdog("0", "42"), None);
        let anybody = [("NOTIFY_SOCKET", "/run/notify"), ("WATCHDOG_USEC", "5")];
        assert_eq!(read_from(&anybody).unwrap().watchdog, Some(Duration::from_micros(5)));
    }
}
