//! Decides which web pages may send requests to a server without API keys (protection against cross-site request
//! forgery and DNS rebinding). Without this check, any page could send requests to a server on the machine of a
//! visitor, through a form or through a host name that resolves to that machine.
//!
//! Pages of this machine are allowed, and so are pages of the origins and hosts that the settings name. If the server
//! does not listen on a loopback address, pages of its own host are allowed too. Browsers send `Origin` with every POST
//! and with every CORS request. Other clients do not send `Origin`, and their requests pass.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri, header};
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
    match check(request.headers(), state.settings()) {
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

    #[test]
    fn behind_an_address_of_its_own_a_server_takes_its_own_pages() {
        let settings = HttpSettings { on_loopback: false, ..HttpSettings::default() };
        assert!(is_accepted("https://vision.example", "vision.example", &settings));
        assert!(is_accepted("http://10.0.0.7:8080", "10.0.0.7:8080", &settings));
        assert!(is_accepted("http://[fd00::7]:80", "[fd00::7]:80", &settings));
        assert!(!is_accepted("https://evil.example", "vision.example", &settings));
    }
}
