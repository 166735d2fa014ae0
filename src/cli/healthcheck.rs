//! The command `healthcheck`: requests `GET /health/ready`. The exit code is 0 if the server is ready, and 1 if it is
//! not ready or does not answer.
//!
//! Container health checks run this command, so it must work without a shell, curl and root certificates. The request
//! goes to the operations listener if one is configured. The command does not verify the TLS certificate of the public
//! listener, because it sends nothing secret.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::error::CommandError;
use crate::config::Config;
use crate::hub::install_tls_provider;

/// Request timeout. It is shorter than the default timeout of health checks in container engines (30 s), and longer
/// than a busy server takes to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sends the request to `url`, which must be plain HTTP, or to the configured address if there is no `url`. Calls
/// `config` only if there is no `url`.
pub(super) fn run(
    url: Option<&str>,
    config: impl FnOnce() -> Result<Config, CommandError>,
) -> Result<(), CommandError> {
    let Some(url) = url else {
        let url = configured_url(&config()?)?;
        let client = client(|builder| builder.tls_danger_accept_invalid_certs(true))?;
        return super::runtime()?.block_on(ask(&url, &client));
    };
    if !url.starts_with("http://") {
        return Err(CommandError::Negative(format!("{url} is not a URL that starts with http://")));
    }
    super::runtime()?.block_on(ask(url, &plain_client(TIMEOUT)?))
}

async fn ask(url: &str, client: &reqwest::Client) -> Result<(), CommandError> {
    let response = client.get(url).send().await;
    let status = response
        .map_err(|error| {
            CommandError::failed(format!("no answer from {url}"), error.without_url())
        })?
        .status();
    if status.is_success() {
        return Ok(());
    }
    Err(CommandError::Negative(format!("not ready: {url} answered {status}")))
}

/// Creates a client for plain HTTP on this machine. It uses no proxy. It loads no root certificates, because a
/// container image may have none.
pub(super) fn plain_client(timeout: Duration) -> Result<reqwest::Client, CommandError> {
    client(|builder| builder.timeout(timeout))
}

fn client(
    change: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
) -> Result<reqwest::Client, CommandError> {
    install_tls_provider();
    let builder = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).tls_certs_only([]);
    change(builder)
        .build()
        .map_err(|error| CommandError::failed("cannot create an HTTP client", error))
}

fn configured_url(config: &Config) -> Result<String, CommandError> {
    match (config.operations_listen, &config.http.tls) {
        (Some(operations), _) => ready_url("http", operations),
        (None, Some(_)) => ready_url("https", config.listen),
        (None, None) => ready_url("http", config.listen),
    }
}

/// Builds the URL of the readiness route. If the server listens on every address, the URL uses loopback.
fn ready_url(scheme: &str, listen: SocketAddr) -> Result<String, CommandError> {
    if listen.port() == 0 {
        let reason = "the server is configured to listen on port 0, so its actual port is unknown; pass --url";
        return Err(CommandError::Negative(reason.to_owned()));
    }
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    Ok(format!("{scheme}://{}/health/ready", SocketAddr::new(ip, listen.port())))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_server_on_every_address_is_asked_on_loopback() {
        let url = |listen: &str| ready_url("http", listen.parse().unwrap());
        assert_eq!(url("0.0.0.0:80").unwrap(), "http://127.0.0.1:80/health/ready");
        assert_eq!(url("[::]:81").unwrap(), "http://[::1]:81/health/ready");
        assert_eq!(url("10.0.0.7:82").unwrap(), "http://10.0.0.7:82/health/ready");
        assert!(url("127.0.0.1:0").unwrap_err().to_string().contains("--url"));
    }

    /// Starts a thread that answers one request with `status` and then returns the request head. Returns the URL for
    /// the request, and the thread.
    fn answer_once(status: &'static str) -> (String, std::thread::JoinHandle<String>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = ready_url("http", listener.local_addr().unwrap()).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 1024];
            let length = stream.read(&mut head).unwrap();
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                .unwrap();
            String::from_utf8_lossy(&head[..length]).into_owned()
        });
        (url, thread)
    }

    fn never() -> Result<Config, CommandError> {
        panic!("the configuration must not be loaded when a URL is given")
    }

    #[test]
    fn ready_is_success_and_everything_else_is_not() {
        let (url, server) = answer_once("200 OK");
        run(Some(&url), never).unwrap();
        assert!(server.join().unwrap().starts_with("GET /health/ready HTTP/1.1"));

        let (url, server) = answer_once("503 Service Unavailable");
        let error = run(Some(&url), never).unwrap_err();
        assert!(error.to_string().contains("503"), "{error}");
        server.join().unwrap();
    }

    #[test]
    fn nobody_there_is_a_failure() {
        // After the drop, nothing listens on this port.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = ready_url("http", listener.local_addr().unwrap()).unwrap();
        drop(listener);
        assert!(run(Some(&url), never).is_err());
        assert!(run(Some("https://example.org"), never).is_err());
    }
}
