//! The parts of the section `[server]` that `app` and `cli` use: the addresses of the listeners and the times of the
//! drain. The other parts belong to `http`.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::http::ConnectionSettings;
use crate::settings::{InvalidSetting, NotAccepted, Section, empty_is_none, millis, require, text};

/// Addresses of the listeners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ListenSettings {
    /// Address of the public listener.
    #[serde(with = "text")]
    listen: Address,
    /// Address of the operations listener; `None` if there is none.
    #[serde(with = "empty_is_none")]
    operations_listen: Option<Address>,
}

impl ListenSettings {
    pub(super) fn public(&self) -> SocketAddr {
        self.listen.0
    }

    pub(super) fn operations(&self) -> Option<SocketAddr> {
        self.operations_listen.map(|address| address.0)
    }
}

impl Default for ListenSettings {
    fn default() -> Self {
        let listen = Address(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)));
        Self { listen, operations_listen: None }
    }
}

impl Section for ListenSettings {
    const NAME: &'static str = "server";

    fn check(&self) -> Result<(), InvalidSetting> {
        let Some(operations) = self.operations_listen else { return Ok(()) };
        let differs = operations.0.port() == 0 || operations != self.listen;
        let accepted = "an address or port other than server.listen";
        require(differs, "operations_listen", operations, accepted)
    }
}

/// An IP address and a port. `localhost:PORT` means 127.0.0.1, and `:PORT` without an address means 0.0.0.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Address(SocketAddr);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Address {
    type Err = NotAccepted;

    fn from_str(text: &str) -> Result<Self, NotAccepted> {
        let address = read_address(text).map(Self);
        address.ok_or(NotAccepted(
            "an address and a port: 127.0.0.1:8080, localhost:8080, [::1]:8080, or :8080 for every address of this \
             machine",
        ))
    }
}

fn read_address(text: &str) -> Option<SocketAddr> {
    let port = |digits: &str| {
        let only_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<u16>().ok().filter(|_| only_digits)
    };
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let (host, digits) = text.rsplit_once(':')?;
    let ip = match host {
        "" => Ipv4Addr::UNSPECIFIED,
        "localhost" => Ipv4Addr::LOCALHOST,
        _ => return None,
    };
    port(digits).map(|port| SocketAddr::from((ip, port)))
}

/// How long the process continues after the first signal to shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DrainSettings {
    /// Time for which the server still accepts requests but reports not ready, so that load balancers notice.
    #[serde(rename = "drain_delay_ms", with = "millis")]
    pub delay: Duration,
    /// Longest time that requests in flight may still take after `delay`.
    #[serde(rename = "drain_timeout_ms", with = "millis")]
    pub timeout: Duration,
}

impl Default for DrainSettings {
    fn default() -> Self {
        Self { delay: Duration::ZERO, timeout: ConnectionSettings::default().drain_timeout }
    }
}

impl Section for DrainSettings {
    const NAME: &'static str = "server";

    fn check(&self) -> Result<(), InvalidSetting> {
        let accepted = "more than zero and at most a day";
        require(!self.timeout.is_zero(), "drain_timeout_ms", 0, accepted)
    }
}
