//! Tells a service manager such as systemd what the server does, by the protocol `sd_notify(3)`: text lines in
//! datagrams to a Unix socket. `App::serve` calls it. Without a service manager nothing is sent and no timer runs.
//!
//! What is sent, and when:
//!
//! - a line of status at each change: loading, ready, reloading a failed model, draining, worker down;
//! - `READY=1` once, when requests are served; until then, every few seconds, a request for more time to start, because
//!   a download of weights takes as long as it takes;
//! - `STOPPING=1` at the beginning of the drain, with the time that the settings allow it;
//! - `WATCHDOG=1` at half the interval that the service manager asks for, as long as `/health/live` would answer 200.
//!
//! The messages come from a task of the async runtime. If the runtime hangs, they stop, and the service manager restarts
//! the server; that is the fault which the process cannot notice by itself.
//!
//! The crate `sd-notify` is not used: it reads the environment itself, which only `config` may do, and knows no sockets
//! in the abstract namespace.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use super::AFTER_THE_DRAIN;
use crate::config::{DrainSettings, NotifySocket, ServiceManager};
use crate::http::{HttpState, Readiness};

/// How often the state is sent if no watchdog asks for more.
const INTERVAL: Duration = Duration::from_secs(5);

/// How much more time the server asks for while it loads; several times [`INTERVAL`], so that a late message does no
/// harm.
const MORE_TIME_TO_START: Duration = Duration::from_secs(60);

/// Sends notifications until it is dropped.
pub(super) struct Notifier {
    shared: Arc<Shared>,
    ticker: tokio::task::JoinHandle<()>,
}

struct Shared {
    socket: UnixDatagram,
    state: HttpState,
    report: Mutex<Report>,
}

impl Notifier {
    /// Starts to send notifications about `state`. If the socket cannot be used, logs why and returns `None`: the server
    /// works without them.
    pub(super) fn start(
        manager: &ServiceManager,
        state: HttpState,
        drain: DrainSettings,
    ) -> Option<Self> {
        let failed = |error: io::Error| {
            tracing::warn!(%error, "cannot notify the service manager (NOTIFY_SOCKET)");
        };
        let socket = connect(&manager.socket).map_err(failed).ok()?;
        let report = Report::new(manager.watchdog.is_some(), drain);
        let shared = Arc::new(Shared { socket, state, report: Mutex::new(report) });
        shared.send();
        let period = interval(manager.watchdog);
        let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ticking = Arc::clone(&shared);
        let ticker = tokio::spawn(async move {
            loop {
                ticks.tick().await;
                ticking.send();
            }
        });
        Some(Self { shared, ticker })
    }

    /// Sends the state now, after it has changed.
    pub(super) fn send(&self) {
        self.shared.send();
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.ticker.abort();
    }
}

impl Shared {
    fn send(&self) {
        // The lock also keeps the messages of two threads in the order of the states that they report.
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        let message = report.next(self.state.readiness(), !self.state.worker_is_down());
        if !message.is_empty()
            && let Err(error) = self.socket.send(message.as_bytes())
        {
            tracing::debug!(%error, "the service manager does not take notifications");
        }
    }
}

/// Returns the time between two messages: at most half the interval of the watchdog, as `sd_watchdog_enabled(3)` advises.
fn interval(watchdog: Option<Duration>) -> Duration {
    let half = watchdog.map(|watchdog| watchdog / 2);
    // A timer of tokio needs a period above zero.
    half.map_or(INTERVAL, |half| half.clamp(Duration::from_millis(1), INTERVAL))
}

/// Connects a socket on which sending never waits.
fn connect(address: &NotifySocket) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match address {
        NotifySocket::Path(path) => socket.connect(path)?,
        NotifySocket::Abstract(name) => connect_abstract(&socket, name)?,
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(target_os = "linux")]
fn connect_abstract(socket: &UnixDatagram, name: &str) -> io::Result<()> {
    use std::os::linux::net::SocketAddrExt;

    socket.connect_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)
}

#[cfg(not(target_os = "linux"))]
fn connect_abstract(_: &UnixDatagram, _: &str) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "only Linux has abstract sockets"))
}

/// Decides what to send. Knows no socket and no clock.
#[derive(Debug)]
struct Report {
    has_watchdog: bool,
    drain: DrainSettings,
    last_status: Option<&'static str>,
    is_ready_sent: bool,
}

impl Report {
    fn new(has_watchdog: bool, drain: DrainSettings) -> Self {
        Self { has_watchdog, drain, last_status: None, is_ready_sent: false }
    }

    /// Returns the next message, which may be empty. `is_alive` is false if a worker has ended or hangs.
    fn next(&mut self, readiness: Readiness, is_alive: bool) -> String {
        let mut lines = Vec::new();
        let status = status(readiness, is_alive);
        let is_new = self.last_status.replace(status) != Some(status);
        if is_new {
            lines.push(format!("STATUS={status}"));
        }
        match readiness {
            Readiness::Loading => lines.push(extend(MORE_TIME_TO_START)),
            Readiness::Ready if !self.is_ready_sent => {
                self.is_ready_sent = true;
                lines.push("READY=1".to_owned());
            }
            Readiness::Draining if is_new => {
                let DrainSettings { delay, timeout } = self.drain;
                lines.push("STOPPING=1".to_owned());
                lines.push(extend(delay.saturating_add(timeout).saturating_add(AFTER_THE_DRAIN)));
            }
            Readiness::Ready | Readiness::Draining | Readiness::WorkerDown => {}
        }
        if self.has_watchdog && is_alive {
            lines.push("WATCHDOG=1".to_owned());
        }
        lines.join("\n")
    }
}

fn status(readiness: Readiness, is_alive: bool) -> &'static str {
    match (readiness, is_alive) {
        (Readiness::Loading, _) => "loading the models",
        (Readiness::Ready, _) => "ready",
        (Readiness::Draining, _) => "shutting down: finishing the requests in progress",
        (Readiness::WorkerDown, true) => "not ready: reloading the models after a failure",
        (Readiness::WorkerDown, false) => "failed: a worker has ended or hangs",
    }
}

/// Asks for this much time, from now on, until the next change of state.
fn extend(time: Duration) -> String {
    format!("EXTEND_TIMEOUT_USEC={}", time.as_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAIN: DrainSettings =
        DrainSettings { delay: Duration::from_secs(1), timeout: Duration::from_secs(20) };

    #[test]
    fn a_server_reports_each_state_once_and_asks_for_time_while_it_loads() {
        let mut report = Report::new(false, DRAIN);
        let more = "EXTEND_TIMEOUT_USEC=60000000";
        let loading = format!("STATUS=loading the models\n{more}");
        assert_eq!(report.next(Readiness::Loading, true), loading);
        assert_eq!(report.next(Readiness::Loading, true), more);
        assert_eq!(report.next(Readiness::Ready, true), "STATUS=ready\nREADY=1");
        assert_eq!(report.next(Readiness::Ready, true), "");
        let failed = report.next(Readiness::WorkerDown, true);
        assert_eq!(failed, "STATUS=not ready: reloading the models after a failure");
        // systemd takes READY=1 only once.
        assert_eq!(report.next(Readiness::Ready, true), "STATUS=ready");
        let draining = report.next(Readiness::Draining, true);
        assert!(draining.ends_with("STOPPING=1\nEXTEND_TIMEOUT_USEC=26000000"), "{draining}");
        assert_eq!(report.next(Readiness::Draining, true), "");
    }

    #[test]
    fn the_watchdog_hears_nothing_from_a_server_whose_worker_is_down() {
        let mut report = Report::new(true, DRAIN);
        for readiness in [Readiness::Loading, Readiness::Ready, Readiness::Draining] {
            assert!(report.next(readiness, true).ends_with("WATCHDOG=1"), "{readiness:?}");
            assert!(!report.next(readiness, false).contains("WATCHDOG"), "{readiness:?}");
        }
        assert_eq!(report.next(Readiness::WorkerDown, true).lines().last(), Some("WATCHDOG=1"));
        let down = report.next(Readiness::WorkerDown, false);
        assert_eq!(down, "STATUS=failed: a worker has ended or hangs");
    }

    #[test]
    fn messages_come_at_half_the_interval_of_the_watchdog() {
        assert_eq!(interval(None), INTERVAL);
        assert_eq!(interval(Some(Duration::from_secs(2))), Duration::from_secs(1));
        assert_eq!(interval(Some(Duration::from_secs(3600))), INTERVAL);
        assert_eq!(interval(Some(Duration::from_micros(1))), Duration::from_millis(1));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_socket_in_the_abstract_namespace_is_reached() {
        use std::os::linux::net::SocketAddrExt;

        let name = format!("blip-server-test-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let receiver = UnixDatagram::bind_addr(&address).unwrap();
        connect(&NotifySocket::Abstract(name)).unwrap().send(b"READY=1").unwrap();
        let mut message = [0; 16];
        let length = receiver.recv(&mut message).unwrap();
        assert_eq!(&message[..length], b"READY=1");
    }
}
