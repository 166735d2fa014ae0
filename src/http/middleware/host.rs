//! Rejects requests whose `Host` field is missing, repeated or malformed (RFC 9112, section 3.2). Otherwise a proxy and
//! this server could read different hosts from one request, and one of them would answer for the wrong site.

use axum::extract::Request;
use axum::http::{HeaderMap, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::error::ApiError;

/// Answers a request with 400 and closes the connection if its `Host` field is missing, repeated or malformed.
pub(crate) async fn host(request: Request, next: Next) -> Response {
    match check(request.version(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(detail) => ApiError::invalid(detail).close_connection().into_response(),
    }
}

/// Checks that `Host` is present exactly once and is valid. HTTP/1.0 requests may omit it, and HTTP/2 requests have the
/// host in the request target. In HTTP/1.1, a request target in absolute form does not replace the `Host` field.
fn check(version: Version, headers: &HeaderMap) -> Result<(), &'static str> {
    let mut given = headers.get_all(header::HOST).iter();
    match (given.next(), given.next()) {
        (None, _) if version == Version::HTTP_11 => Err("an HTTP/1.1 request needs a host header"),
        (None, _) => Ok(()),
        (Some(_), Some(_)) => Err("the host header is given more than once"),
        (Some(value), None) if is_host(value.as_bytes()) => Ok(()),
        (Some(_), None) => Err("the host header must be a name or address, with or without port"),
    }
}

/// True if `value` has the form `uri-host [":" port]` of RFC 3986. It may be empty: clients send an empty `Host` if the
/// target URI has no host.
fn is_host(value: &[u8]) -> bool {
    let (host, port) = if let Some(rest) = value.strip_prefix(b"[") {
        let Some(end) = rest.iter().position(|&byte| byte == b']') else { return false };
        let address = &rest[..end];
        let in_address = |byte: &u8| byte.is_ascii_hexdigit() || b":.".contains(byte);
        if address.is_empty() || !address.iter().all(in_address) {
            return false;
        }
        (&b""[..], &rest[end + 1..])
    } else {
        let end = value.iter().position(|&byte| byte == b':').unwrap_or(value.len());
        value.split_at(end)
    };
    let has_port = match port.strip_prefix(b":") {
        Some(digits) => digits.iter().all(u8::is_ascii_digit),
        None => port.is_empty(),
    };
    let in_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=%".contains(byte);
    has_port && host.iter().all(in_name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn checked(version: Version, hosts: &[&[u8]]) -> bool {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, HeaderValue::from_bytes(host).unwrap());
        }
        check(version, &headers).is_ok()
    }

    #[test]
    fn http_1_1_needs_one_valid_host() {
        let good: [&[u8]; 10] = [
            b"localhost",
            b"localhost:8080",
            b"127.0.0.1:80",
            b"[::1]",
            b"[::1]:8080",
            b"[::ffff:1.2.3.4]:1",
            b"my_service.local",
            b"a.example.",
            b"xn--caf-dma.example:",
            b"",
        ];
        for host in good {
            assert!(checked(Version::HTTP_11, &[host]), "{}", host.escape_ascii());
        }
        let wrong: [&[u8]; 12] = [
            b"a b",
            b"a,b",
            b"user@a",
            b"a/b",
            b"http://a",
            b"a:b",
            b"a:80:80",
            b"[::1",
            b"[]",
            b"[::1]x",
            b"caf\xe9",
            b"a?b",
        ];
        for host in wrong {
            assert!(!checked(Version::HTTP_11, &[host]), "{}", host.escape_ascii());
            assert!(!checked(Version::HTTP_10, &[host]), "{}", host.escape_ascii());
        }
        assert!(!checked(Version::HTTP_11, &[]));
        assert!(!checked(Version::HTTP_11, &[b"a", b"a"]));
        assert!(checked(Version::HTTP_10, &[]));
        assert!(checked(Version::HTTP_2, &[]));
    }
}
