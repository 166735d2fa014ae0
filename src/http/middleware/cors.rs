//! Allows cross-origin requests (CORS) from the origins that the settings name. If there are no such settings, `router`
//! does not add this layer.

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::request_id::X_REQUEST_ID;
use super::server_span::{TRACEPARENT, TRACERESPONSE, TRACESTATE};
use super::server_timing::SERVER_TIMING;
use crate::http::settings::CorsSettings;

/// Builds the layer from the settings. Their validation has already rejected invalid origins. If requests are traced, pages
/// may send and see the fields of traces.
pub(crate) fn cors(settings: &CorsSettings, is_traced: bool) -> CorsLayer {
    let any = settings.allowed_origins.iter().any(|origin| origin == "*");
    let origins = settings.allowed_origins.iter().filter_map(|origin| origin.parse().ok());
    let allowed: AllowOrigin = if any {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.collect::<Vec<HeaderValue>>())
    };
    let mut sent = vec![
        header::AUTHORIZATION,
        header::CONTENT_TYPE,
        X_REQUEST_ID,
        HeaderName::from_static("x-request-timeout-ms"),
        // This server ignores it. A proxy in front of several servers routes by it.
        HeaderName::from_static("x-image-id"),
    ];
    let mut seen = vec![
        X_REQUEST_ID,
        SERVER_TIMING,
        header::RETRY_AFTER,
        HeaderName::from_static("ratelimit"),
        HeaderName::from_static("ratelimit-policy"),
    ];
    if is_traced {
        sent.extend([TRACEPARENT, TRACESTATE]);
        seen.push(TRACERESPONSE);
    }
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(sent)
        .expose_headers(seen)
}
