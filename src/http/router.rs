//! The list of routes, from which the OpenAPI documents are generated, and the middleware layers around them.

use std::sync::Arc;

use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::routing::get;
use axum::{Extension, Router};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::error::{ApiError, from_status};
use super::middleware::access_log::AccessLog;
use super::middleware::authenticate::authenticate;
use super::middleware::client::client;
use super::middleware::cors::cors;
use super::middleware::headers::security_headers;
use super::middleware::host::host;
use super::middleware::observe::{Observer, observe};
use super::middleware::origin::origin;
use super::middleware::panic::PanicResponder;
use super::middleware::problem::problem;
use super::middleware::rate_limit::rate_limit;
use super::middleware::request_id::request_id;
use super::middleware::room::room;
use super::middleware::server_timing::server_timing;
use super::openapi::endpoint::EndpointRules;
use super::openapi::{self, Document};
use super::routes::documents::Documents;
use super::routes::{
    InferenceEndpoint, caption, documents, embeddings, health, info, metrics, similarity, vqa,
};
use super::settings::Limits;
use super::state::{HttpState, metric_labels};

/// Returns the endpoints that run a model. To add an endpoint, write its file in `routes` and list it here.
fn inference_endpoints() -> [InferenceEndpoint; 4] {
    [caption::endpoint(), vqa::endpoint(), similarity::endpoint(), embeddings::endpoint()]
}

/// Returns the plain OpenAPI document, which client generators can read, for a server with the default limits.
#[must_use]
pub fn document() -> Document {
    plain_document_for(&Limits::default())
}

/// Returns the strict OpenAPI document, which has all conditions between fields, for a server with the default limits.
#[must_use]
pub fn strict_document() -> Document {
    strict_document_for(&Limits::default())
}

/// Returns the plain document for a server with these limits.
pub(crate) fn plain_document_for(limits: &Limits) -> Document {
    let (routes, rules) = documented();
    openapi::plain(routes, &rules, limits)
}

/// Returns the strict document for a server with these limits.
pub(crate) fn strict_document_for(limits: &Limits) -> Document {
    let (routes, rules) = documented();
    openapi::strict(routes, &rules, limits)
}

/// Returns the input of the generated documents: every route, and the rules of the inference endpoints.
fn documented() -> (OpenApi, Vec<EndpointRules>) {
    let (inference, rules) = inference_routes();
    let routes = inference.merge(state_routes()).merge(metrics_routes()).merge(document_routes());
    (routes.split_for_parts().1, rules)
}

fn inference_routes() -> (OpenApiRouter<HttpState>, Vec<EndpointRules>) {
    let mut router = OpenApiRouter::default();
    let mut rules = Vec::new();
    for endpoint in inference_endpoints() {
        router = router.merge(endpoint.router);
        rules.push(endpoint.rules);
    }
    (router, rules)
}

/// Returns the routes of the health probes and `/info`. Both the public and the operations listener serve them.
fn state_routes() -> OpenApiRouter<HttpState> {
    OpenApiRouter::default()
        .routes(routes!(health::check_health))
        .routes(routes!(health::check_liveness))
        .routes(routes!(health::check_readiness))
        .routes(routes!(info::show_info))
}

/// Returns the route `/metrics`. The operations listener serves it if there is one, else the public listener.
fn metrics_routes() -> OpenApiRouter<HttpState> {
    OpenApiRouter::default().routes(routes!(metrics::show_metrics))
}

/// Returns the routes of the OpenAPI documents, which a setting can switch off.
fn document_routes() -> OpenApiRouter<HttpState> {
    OpenApiRouter::default()
        .routes(routes!(documents::show_openapi_json))
        .routes(routes!(documents::show_openapi_yaml))
        .routes(routes!(documents::show_strict_openapi_json))
}

/// Builds the public router: routes, the OpenAPI documents if enabled, API keys, rate limits, and the common layers.
pub fn router(state: HttpState) -> Router {
    let settings = state.settings();
    let (inference, described) = inference_routes().0.split_for_parts();
    metric_labels::initialise_routes(state.metrics(), described.paths.paths.keys());
    let mut router: Router<HttpState> = inference.merge(state_routes().split_for_parts().0);
    if !settings.operations_listener {
        router = router.merge(metrics_routes().split_for_parts().0);
    }
    if settings.docs {
        let documents =
            Documents::new(settings.limits.clone(), plain_document_for, strict_document_for);
        let page = SwaggerUi::new("/docs").config(Config::from("/openapi.json"));
        router = router
            .merge(document_routes().split_for_parts().0.layer(Extension(documents)))
            .route("/", get(documents::redirect_to_docs))
            .merge(page);
    }
    with_common_layers(with_access_layers(router.fallback(route_not_found), &state), state)
}

/// Builds the router of the operations listener, which checks neither API keys nor rate limits.
pub(crate) fn operations_router(state: HttpState) -> Router {
    let router = state_routes().merge(metrics_routes()).split_for_parts().0;
    with_common_layers(router.fallback(route_not_found), state)
}

/// Adds the layers that only the public router has: rate limits, API keys or origin checks, CORS.
fn with_access_layers(mut router: Router<HttpState>, state: &HttpState) -> Router<HttpState> {
    if state.access().limits_requests() {
        router = router.layer(from_fn_with_state(state.clone(), rate_limit));
    }
    if state.access().keys().is_some() {
        router = router.layer(from_fn_with_state(state.clone(), authenticate));
    } else {
        router = router.layer(from_fn_with_state(state.clone(), origin));
    }
    if let Some(settings) = &state.settings().cors {
        router = router.layer(cors(settings));
    }
    router
}

/// Adds the layers that both routers have. Each layer wraps those added before it; `middleware` explains the order.
fn with_common_layers(router: Router<HttpState>, state: HttpState) -> Router {
    let settings = state.settings();
    let observer = Observer {
        state: state.clone(),
        log: Arc::new(AccessLog::new(settings.access_log.clone())),
    };
    router
        .layer(CatchPanicLayer::custom(PanicResponder(Arc::clone(state.metrics()))))
        .layer(from_fn(room))
        .layer(from_fn(host))
        .layer(from_fn(problem))
        .layer(from_fn(server_timing))
        .layer(map_response(security_headers))
        .layer(from_fn_with_state(observer, observe))
        .layer(from_fn_with_state(state.clone(), client))
        .layer(from_fn(request_id))
        .with_state(state)
}

async fn route_not_found() -> ApiError {
    from_status(axum::http::StatusCode::NOT_FOUND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use crate::http::HttpSettings;
    use crate::telemetry::metrics::Metrics;

    async fn fall_over() -> &'static str {
        panic!("a test panics on purpose")
    }

    #[tokio::test]
    async fn a_panic_in_a_handler_is_a_500_with_a_body_and_is_counted() {
        let metrics = Arc::new(Metrics::try_new().unwrap());
        let state = HttpState::new(HttpSettings::default(), Arc::clone(&metrics));
        let router = with_common_layers(Router::new().route("/panic", get(fall_over)), state);
        let request = Request::get("/panic").header("host", "x").header("x-request-id", "p-1");
        let request = request.body(Body::empty());
        let response = router.oneshot(request.unwrap()).await.unwrap();
        assert_eq!(response.status(), 500);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body = std::str::from_utf8(&body).unwrap();
        assert!(body.contains(r#""code":"internal_error""#), "{body}");
        assert!(body.contains(r#""request_id":"p-1""#), "{body}");
        assert!(!body.contains("on purpose"), "{body}");
        assert_eq!(metrics.panics_total.with_label_values(&["handler"]).get(), 1);
        let labels = ["/panic", "GET", "500", "internal_error"];
        assert_eq!(metrics.http_requests_total.with_label_values(&labels).get(), 1);
        assert_eq!(metrics.http_requests_in_flight.get(), 0);
    }
}
