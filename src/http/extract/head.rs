//! Checks that need only the request head: content type, content encoding, declared size, deadline. `extract::read`
//! calls [`Head::check`] before it reads any of the body.

use std::time::{Duration, Instant};

use axum::http::request::Parts;
use axum::http::{HeaderMap, header};

use super::disposition::{charset, is_ascii_superset, is_utf8_compatible};
use crate::http::error::{ApiError, Code};
use crate::http::settings::HttpSettings;

/// Maximum length of a multipart boundary in characters (RFC 2046).
const MAX_BOUNDARY_LENGTH: usize = 70;
pub(crate) const X_REQUEST_TIMEOUT_MS: &str = "x-request-timeout-ms";

/// What a request head says about its body, once the head has passed all checks.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) encoding: Encoding,
    /// `Content-Length`, if the head has one.
    pub(crate) declared_bytes: Option<u64>,
}

/// How a body must be parsed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// `application/json`, `application/<anything>+json` or `text/json`.
    Json {
        /// True if the declared charset agrees with UTF-8 only for ASCII characters. In that case, the body may contain
        /// only ASCII characters.
        only_ascii: bool,
    },
    /// `multipart/form-data`.
    Multipart { boundary: String },
    /// `image/*`, `application/octet-stream`, or no type: the body is one image, and the query string has the other
    /// fields.
    Raw {
        /// True if the type is `image/*`. Then the body is an image even if it has no bytes.
        declares_image: bool,
    },
}

impl Head {
    /// Checks everything in the head except the deadline.
    ///
    /// # Errors
    /// `unsupported_media_type`, `payload_too_large` (which closes the connection), `invalid_request`.
    pub(crate) fn check(parts: &Parts, settings: &HttpSettings) -> Result<Self, ApiError> {
        check_content_encoding(&parts.headers)?;
        let encoding = encoding(&parts.headers)?;
        let is_raw = matches!(encoding, Encoding::Raw { .. });
        if !is_raw && has_query(parts) {
            return Err(ApiError::invalid(
                "a query string is allowed only with a raw image body; send its fields in the body",
            ));
        }
        Ok(Self { encoding, declared_bytes: checked_length(&parts.headers, settings)? })
    }

    /// Like [`check`](Self::check), for a route that ignores the content type and the query string. Clients of other APIs
    /// often send a wrong type or none.
    ///
    /// # Errors
    /// Those of [`check`](Self::check) that do not concern the type.
    pub(crate) fn check_any_type(parts: &Parts, settings: &HttpSettings) -> Result<Self, ApiError> {
        check_content_encoding(&parts.headers)?;
        let declared_bytes = checked_length(&parts.headers, settings)?;
        Ok(Self { encoding: Encoding::Raw { declares_image: false }, declared_bytes })
    }
}

/// Returns the error for a body of more than `max` bytes. The rest of the body stays unread, so the connection closes.
pub(crate) fn body_too_large(max: u64) -> ApiError {
    let detail =
        format!("the body exceeds the limit of this server, {max} bytes; send less in one call");
    ApiError::new(Code::PayloadTooLarge, detail).close_connection()
}

/// Returns the time by which the request must be answered: `arrived` plus the client's `x-request-timeout-ms`, or plus
/// the server's `limit` if that is shorter or the client sets no timeout.
///
/// # Errors
/// `invalid_request` if the header is not an integer of at least 1.
pub(crate) fn deadline(
    headers: &HeaderMap,
    arrived: Instant,
    limit: Duration,
) -> Result<Instant, ApiError> {
    let Some(value) = headers.get(X_REQUEST_TIMEOUT_MS) else { return Ok(arrived + limit) };
    match value.to_str().ok().and_then(milliseconds) {
        Some(wish) if !wish.is_zero() => Ok(arrived + wish.min(limit)),
        Some(_) | None => {
            let detail = "must be a whole number of milliseconds, at least 1";
            Err(ApiError::field(Code::InvalidRequest, X_REQUEST_TIMEOUT_MS, detail))
        }
    }
}

/// Parses a number of milliseconds, which may contain only digits. A number that does not fit into a `u64` becomes
/// `u64::MAX`, which is above any limit.
fn milliseconds(text: &str) -> Option<Duration> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| Duration::from_millis(text.parse().unwrap_or(u64::MAX)))
}

fn check_content_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let encoded = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"));
    if encoded {
        return Err(ApiError::new(
            Code::UnsupportedMediaType,
            "compressed bodies are not supported; send the body without content-encoding",
        ));
    }
    Ok(())
}

/// Checks the head of a request whose body is lines of JSON. Its type may be anything but a form's.
///
/// # Errors
/// `unsupported_media_type`, `invalid_request`.
pub(crate) fn check_lines(parts: &Parts) -> Result<(), ApiError> {
    let headers = &parts.headers;
    check_content_encoding(headers)?;
    let content_type = headers.get(header::CONTENT_TYPE).map(axum::http::HeaderValue::as_bytes);
    if content_type.is_some_and(|text| text.to_ascii_lowercase().starts_with(b"multipart/")) {
        let detail = "send one JSON object per line, with content-type application/x-ndjson";
        return Err(ApiError::new(Code::UnsupportedMediaType, detail).close_connection());
    }
    if has_query(parts) {
        let detail = "a query string is not allowed here; send its fields in the lines";
        return Err(ApiError::invalid(detail).close_connection());
    }
    Ok(())
}

fn has_query(parts: &Parts) -> bool {
    parts.uri.query().is_some_and(|query| !query.is_empty())
}

/// Returns the declared length of the body, after comparing it with the limit.
fn checked_length(headers: &HeaderMap, settings: &HttpSettings) -> Result<Option<u64>, ApiError> {
    let declared_bytes = declared_bytes(headers)?;
    let max = settings.limits.max_body_bytes;
    if declared_bytes.is_some_and(|declared| declared > max) {
        return Err(body_too_large(max));
    }
    Ok(declared_bytes)
}

fn declared_bytes(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(header::CONTENT_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    length.map(Some).ok_or_else(|| ApiError::invalid("content-length is not an integer"))
}

fn encoding(headers: &HeaderMap) -> Result<Encoding, ApiError> {
    let raw = |declares_image| Ok(Encoding::Raw { declares_image });
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return raw(false) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/json" | "text/json" => json(value.as_bytes()),
        other if other.starts_with("application/") && other.ends_with("+json") => {
            json(value.as_bytes())
        }
        "multipart/form-data" => boundary(&text).map(|boundary| Encoding::Multipart { boundary }),
        "application/octet-stream" | "" => raw(false),
        "application/x-www-form-urlencoded" => Err(ApiError::new(
            Code::UnsupportedMediaType,
            "URL-encoded forms are not supported (curl sends this type by default); add \
             -H 'content-type: application/json', or -H 'content-type: application/octet-stream' for an image file",
        )),
        image if image.starts_with("image/") => raw(true),
        _ => Err(ApiError::new(
            Code::UnsupportedMediaType,
            "content-type must be application/json, multipart/form-data, image/* or application/octet-stream",
        )),
    }
}

/// Decides from the declared charset how to read JSON. UTF-8 and ASCII are accepted under any of their names. Other
/// supersets of ASCII are accepted only if the body contains only ASCII characters. All other charsets are rejected.
fn json(content_type: &[u8]) -> Result<Encoding, ApiError> {
    match charset(content_type) {
        None => Ok(Encoding::Json { only_ascii: false }),
        Some(charset) if is_utf8_compatible(&charset) => Ok(Encoding::Json { only_ascii: false }),
        Some(charset) if is_ascii_superset(&charset) => Ok(Encoding::Json { only_ascii: true }),
        Some(_) => Err(not_utf8()),
    }
}

/// Returns the error for a JSON body in a charset other than UTF-8.
pub(super) fn not_utf8() -> ApiError {
    let detail = "JSON must be UTF-8; encode it as UTF-8 and leave the charset out of content-type";
    ApiError::new(Code::UnsupportedMediaType, detail)
}

fn boundary(content_type: &str) -> Result<String, ApiError> {
    let boundary = multer::parse_boundary(content_type).map_err(|_| {
        ApiError::invalid(
            "multipart/form-data needs a boundary; let the client library write the header",
        )
    })?;
    if (1..=MAX_BOUNDARY_LENGTH).contains(&boundary.len()) {
        return Ok(boundary);
    }
    Err(ApiError::invalid("a multipart boundary must have 1 to 70 characters"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;

    fn check(headers: &[(&str, &str)]) -> Result<Head, ApiError> {
        let request =
            headers.iter().fold(Request::builder().uri("/caption"), |request, (name, value)| {
                request.header(*name, *value)
            });
        Head::check(&request.body(()).unwrap().into_parts().0, &HttpSettings::default())
    }

    #[test]
    fn each_accepted_type_has_its_encoding() {
        let boundary = || Encoding::Multipart { boundary: "xyz".to_owned() };
        let json = |only_ascii| Encoding::Json { only_ascii };
        let cases = [
            ("application/json", json(false)),
            ("Application/JSON; charset=UTF-8", json(false)),
            ("application/json;charset=\"utf8\"", json(false)),
            ("application/json; charset=us-ascii", json(false)),
            ("application/json; charset=", json(false)),
            ("application/json; charset=ISO-8859-1", json(true)),
            ("application/json; charset=windows-1252", json(true)),
            ("application/vnd.api+json", json(false)),
            ("text/json", json(false)),
            ("multipart/form-data; boundary=xyz", boundary()),
            ("image/jpeg", Encoding::Raw { declares_image: true }),
            ("image/svg+xml", Encoding::Raw { declares_image: true }),
            ("application/octet-stream", Encoding::Raw { declares_image: false }),
        ];
        for (value, expected) in cases {
            assert_eq!(check(&[("content-type", value)]).unwrap().encoding, expected, "{value}");
        }
        assert_eq!(check(&[]).unwrap().encoding, Encoding::Raw { declares_image: false });
    }

    #[test]
    fn other_types_are_refused_and_curls_default_gets_the_header_to_add() {
        let refused = |value: &str| check(&[("content-type", value)]).unwrap_err();
        assert_eq!(refused("text/plain").code, Code::UnsupportedMediaType);
        for other in ["utf-16", "utf-7", "utf-32le", "ebcdic-us"] {
            let refused = refused(&format!("application/json; charset={other}"));
            assert_eq!(refused.code, Code::UnsupportedMediaType, "{other}");
        }
        let curl = refused("application/x-www-form-urlencoded");
        assert!(curl.detail.contains("-H 'content-type: application/json'"), "{}", curl.detail);
    }

    #[test]
    fn a_multipart_boundary_is_needed_and_bounded() {
        let refused = |value: &str| check(&[("content-type", value)]).unwrap_err().code;
        assert_eq!(refused("multipart/form-data"), Code::InvalidRequest);
        let long = format!("multipart/form-data; boundary={}", "x".repeat(71));
        assert_eq!(refused(&long), Code::InvalidRequest);
    }

    #[test]
    fn compressed_bodies_are_refused() {
        assert_eq!(
            check(&[("content-encoding", "gzip")]).unwrap_err().code,
            Code::UnsupportedMediaType
        );
        assert!(check(&[("content-encoding", "identity")]).is_ok());
    }

    #[test]
    fn a_declared_body_above_the_limit_closes_the_connection() {
        let max = HttpSettings::default().limits.max_body_bytes;
        assert_eq!(
            check(&[("content-length", &max.to_string())]).unwrap().declared_bytes,
            Some(max)
        );
        let refused = check(&[("content-length", &(max + 1).to_string())]).unwrap_err();
        assert_eq!(refused.code, Code::PayloadTooLarge);
        assert!(refused.close);
    }

    #[test]
    fn the_client_may_only_shorten_the_deadline() {
        let limit = Duration::from_secs(30);
        let arrived = Instant::now();
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_TIMEOUT_MS, value.parse().unwrap());
            deadline(&headers, arrived, limit).map(|deadline| deadline - arrived)
        };
        assert_eq!(with("1500"), Ok(Duration::from_millis(1500)));
        assert_eq!(with("0015"), Ok(Duration::from_millis(15)));
        assert_eq!(with("90000"), Ok(limit));
        assert_eq!(with("99999999999999999999999"), Ok(limit));
        for wrong in ["0", "00", "-1", "1.5", "", "soon", "+5"] {
            assert_eq!(with(wrong).unwrap_err().code, Code::InvalidRequest, "{wrong}");
        }
    }
}
