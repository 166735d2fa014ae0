//! Gives every request an id, and returns it in the response. The client's own `x-request-id` is used if it is valid.
//! This is the outermost layer, so all others can rely on the [`RequestContext`].

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use crate::http::context::RequestContext;

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_LENGTH: usize = 128;

/// A random number for this process, which keeps two replicas from creating the same id.
static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Creates the [`RequestContext`] of a request, and sets `x-request-id` in the response.
pub(crate) async fn request_id(mut request: Request, next: Next) -> Response {
    let id = accepted(request.headers().get(&X_REQUEST_ID)).unwrap_or_else(new_id);
    request.extensions_mut().insert(RequestContext::new(Arc::clone(&id)));
    let mut response = next.run(request).await;
    let value = HeaderValue::from_str(&id).expect("an id holds only letters, digits and ._:-");
    response.headers_mut().insert(X_REQUEST_ID, value);
    response
}

/// Returns the client's id if it matches `[A-Za-z0-9._:-]{1,128}`.
fn accepted(value: Option<&HeaderValue>) -> Option<Arc<str>> {
    let id = value?.to_str().ok()?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    let acceptable = (1..=MAX_LENGTH).contains(&id.len()) && id.bytes().all(allowed);
    acceptable.then(|| id.into())
}

/// Creates an id: 16 hexadecimal digits for the process, and at least 8 from a counter.
pub(crate) fn new_id() -> Arc<str> {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{:016x}-{number:08x}", *PROCESS).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_ids_of_clients_are_taken_over() {
        let accepts = |id: &str| accepted(Some(&HeaderValue::from_str(id).unwrap())).is_some();
        assert!(accepts("a"));
        assert!(accepts("Req_1.a:b-C"));
        assert!(accepts(&"x".repeat(128)));
        assert!(!accepts(""));
        assert!(!accepts(&"x".repeat(129)));
        assert!(!accepts("a b"));
        assert!(!accepts("<script>"));
    }

    #[test]
    fn new_ids_differ_and_are_acceptable_themselves() {
        let (first, second) = (new_id(), new_id());
        assert_ne!(first, second);
        assert_eq!(accepted(Some(&HeaderValue::from_str(&first).unwrap())), Some(first));
    }
}
