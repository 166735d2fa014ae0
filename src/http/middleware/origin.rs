//! Decides which web pages may send requests to a server without API keys (protection against cross-site request
//! forgery and DNS rebinding). Without this check, any page could send requests to a server on the machine of a
//! visitor, through a form or through a host name that resolves to that machine.
//!
//! Pages of this machine are allowed, and so are pages of the origins and hosts that the settings name. If the server
//! does not listen on a loopback address, pages of its own host are allowed too. Browsers send `Origin` with every POST
//! and with every CORS request. Other clients do not send `Origin`, and their requests pass.
//!
//! Browsers send no `Origin` when a page reads its own host, and after DNS rebinding that is a host name of the attacker. So
//! on a loopback address, reads must name a host that no attacker can own.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::error::{ApiError, Code};
use crate::http::settings::HttpSettings;
use crate::http::state::HttpState;

/// Rejects requests of web pages that are not allowed. `router` adds this layer only if the server has no keys.
pub(crate) async fn origin(
    State(state): State<HttpState>,
    request: Request,
    next: Next,
) -> Response {
    let checked = check(request.headers(), state.settings())
        .and_then(|()| check_host_of_read(&request, state.settings()));
    match checked {
        Ok(()) => next.run(request).await,
        // The body stays unread, so the connection must close.
        Err(error) => error.close_connection().into_response(),
    }
}

fn check(headers: &HeaderMap, settings: &HttpSettings) -> Result<(), ApiError> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let (Some(origin), more) = (origins.next(), origins.next()) else { return Ok(()) };
    let text = origin.to_str().unwrap_or_default();
    if more.is_none() && is_allowed(text, headers, settings) {
        return Ok(());
    }
    Err(ApiError::new(
        Code::OriginNotAllowed,
        "web pages of this origin may not use the server; its operator can add the origin to \
         server.cors_allowed_origins, or the host name of the server to server.allowed_hosts",
    ))
}

/// Rejects a GET that names a foreign host on a loopback address. Health probes pass, because they tell nothing.
fn check_host_of_read<B>(
    request: &axum::http::Request<B>,
    settings: &HttpSettings,
) -> Result<(), ApiError> {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let is_probe = request.uri().path().starts_with("/health");
    let headers = request.headers();
    if !settings.on_loopback || !is_read || is_probe || headers.contains_key(header::ORIGIN) {
        return Ok(());
    }
    match asked_host(headers) {
        Some(host) if !is_own_host(&host, settings) => Err(ApiError::new(
            Code::OriginNotAllowed,
            "the server listens for this machine only, and does not know this host name; its operator can add the name to \
             server.allowed_hosts",
        )),
        Some(_) | None => Ok(()),
    }
}

/// True if no attacker can own this host: an address, a name without a dot, or a name of this machine or of the settings.
fn is_own_host(host: &str, settings: &HttpSettings) -> bool {
    let own = |name: &String| name.eq_ignore_ascii_case(host);
    !host.contains('.')
        || host.parse::<IpAddr>().is_ok()
        || is_loopback(host)
        || settings.allowed_hosts.iter().any(own)
}

fn is_allowed(origin: &str, headers: &HeaderMap, settings: &HttpSettings) -> bool {
    let mut named = settings.cors.iter().flat_map(|cors| &cors.allowed_origins);
    if named.any(|named| named == "*" || named == origin) {
        return true;
    }
    // Sandboxed pages and local files send the origin `null`, which has no host.
    let Some(host) = host_of(origin) else { return false };
    let same = |name: &String| name.eq_ignore_ascii_case(&host);
    is_loopback(&host)
        || settings.allowed_hosts.iter().any(same)
        || !settings.on_loopback && asked_host(headers).is_some_and(|asked| same(&asked))
}

/// Returns the host of an origin `scheme://host[:port]`, without the brackets of an IPv6 address.
fn host_of(origin: &str) -> Option<String> {
    let uri: Uri = origin.parse().ok()?;
    let authority = uri.authority().filter(|_| uri.scheme().is_some())?;
    Some(bare(authority.host()))
}

/// Returns the host in the `Host` field, without port and brackets.
fn asked_host(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::HOST)?.to_str().ok()?;
    let authority: axum::http::uri::Authority = text.parse().ok()?;
    Some(bare(authority.host()))
}

fn bare(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').to_owned()
}

fn is_loopback(host: &str) -> bool {
    let name = host.to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::settings::CorsSettings;
    use axum::http::HeaderValue;

    fn is_accepted(origin: &str, host: &str, settings: &HttpSettings) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        headers.insert(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
        check(&headers, settings).is_ok()
    }

    #[test]
    fn pages_of_this_machine_are_accepted_and_foreign_ones_are_not() {
        let settings = HttpSettings::default();
        for origin in [
            "http://localhost:3000",
            "http://LOCALHOST",
            "https://app.localhost:8443",
            "http://127.0.0.1:5173",
            "http://127.9.9.9",
            "http://[::1]:8080",
        ] {
            assert!(is_accepted(origin, "127.0.0.1:8080", &settings), "{origin}");
        }
        for origin in [
            "https://evil.example",
            // DNS rebinding: the name resolves to this machine, and the browser sends it as origin and host.
            "http://rebound.example:8080",
            "http://localhost.evil.example",
            "http://127.0.0.1.evil.example",
            "http://192.168.0.7",
            "null",
            "",
            "localhost:3000",
            "file://",
        ] {
            assert!(!is_accepted(origin, "rebound.example:8080", &settings), "{origin}");
        }
        let mut headers = HeaderMap::new();
        assert!(check(&headers, &settings).is_ok(), "no browser");
        headers.append(header::ORIGIN, HeaderValue::from_static("http://localhost"));
        headers.append(header::ORIGIN, HeaderValue::from_static("https://evil.example"));
        assert!(check(&headers, &settings).is_err(), "two origins");
    }

    #[test]
    fn settings_name_origins_and_hosts() {
        let settings = HttpSettings {
            cors: Some(CorsSettings { allowed_origins: vec!["https://a.example".to_owned()] }),
            allowed_hosts: vec!["vision.example".to_owned()],
            ..HttpSettings::default()
        };
        assert!(is_accepted("https://a.example", "x", &settings));
        assert!(!is_accepted("http://a.example", "x", &settings), "another scheme");
        assert!(is_accepted("https://Vision.example:8443", "x", &settings));
        let any = CorsSettings { allowed_origins: vec!["*".to_owned()] };
        let settings = HttpSettings { cors: Some(any), ..HttpSettings::default() };
        assert!(is_accepted("https://evil.example", "x", &settings));
    }

    fn is_read(method: &str, path: &str, host: &str, settings: &HttpSettings) -> bool {
        let request = axum::http::Request::builder().method(method).uri(path);
        check_host_of_read(&request.header("host", host).body(()).unwrap(), settings).is_ok()
    }

    /// After DNS rebinding, a page reads the server under the attacker's name, which browsers take for the same origin.
    #[test]
    fn on_loopback_a_foreign_host_name_reads_nothing() {
        let settings = HttpSettings {
            allowed_hosts: vec!["vision.example".to_owned()],
            ..HttpSettings::default()
        };
        for path in ["/info", "/metrics", "/v1/models", "/"] {
            for host in ["rebound.example:8080", "localhost.evil.example", "127.0.0.1.nip.io"] {
                assert!(!is_read("GET", path, host, &settings), "{path} of {host}");
                assert!(!is_read("HEAD", path, host, &settings), "{path} of {host}");
            }
            for host in [
                "localhost:8080",
                "app.localhost",
                "127.0.0.1:8080",
                "[::1]:8080",
                "10.0.0.7",
                "captions:8080",
                "Vision.example",
                "",
            ] {
                assert!(is_read("GET", path, host, &settings), "{path} of {host}");
            }
        }
        assert!(is_read("GET", "/health/ready", "probe.example", &settings), "a probe");
        assert!(is_read("POST", "/caption", "proxy.example", &settings), "no page: no origin");
        let elsewhere = HttpSettings { on_loopback: false, ..HttpSettings::default() };
        assert!(is_read("GET", "/info", "vision.example", &elsewhere));
    }

    #[test]
    fn behind_an_address_of_its_own_a_server_takes_its_own_pages() {
        let settings = HttpSettings { on_loopback: false, ..HttpSettings::default() };
        assert!(is_accepted("https://vision.example", "vision.example", &settings));
        assert!(is_accepted("http://10.0.0.7:8080", "10.0.0.7:8080", &settings));
        assert!(is_accepted("http://[fd00::7]:80", "[fd00::7]:80", &settings));
        assert!(!is_accepted("https://evil.example", "vision.example", &settings));
    }
}
