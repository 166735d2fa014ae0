//! The list of routes, from which the OpenAPI documents are generated, and the middleware layers around them.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::http::{HeaderValue, header};
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use tower_http::catch_panic::CatchPanicLayer;
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
use super::middleware::load_shedding::shed_load;
use super::middleware::observe::{Observer, observe};
use super::middleware::origin::origin;
use super::middleware::panic::PanicResponder;
use super::middleware::problem::problem;
use super::middleware::rate_limit::rate_limit;
use super::middleware::request_id::request_id;
use super::middleware::server_timing::server_timing;
use super::openapi::endpoint::DocumentedEndpoint;
use super::openapi::{Document, DocumentedRoutes};
use super::routes::documents::Documents;
use super::routes::{
    EndpointList, InferenceEndpoint, bulk, caption, classify, compatible, documents, embeddings,
    health, info, mcp, metrics, playground, rank, root, similarity, vqa,
};
use super::settings::{CompatSettings, Limits};
use super::state::HttpState;
use super::state::metric_labels::{self, TaskLabel};

/// The endpoints that run a model. To add an endpoint, write its file in `routes` and list it here.
pub(crate) const ENDPOINTS: EndpointList = &[
    caption::endpoint,
    vqa::endpoint,
    similarity::endpoint,
    embeddings::endpoint,
    classify::endpoint,
    rank::endpoint,
];

/// Returns the plain OpenAPI document, which client generators can read, for a server with the default limits.
#[must_use]
pub fn document() -> Document {
    documented(ENDPOINTS, CompatSettings::default()).plain(&Limits::default())
}

/// Returns the strict OpenAPI document, which has all conditions between fields, for a server with the default limits.
#[must_use]
pub fn strict_document() -> Document {
    documented(ENDPOINTS, CompatSettings::default()).strict(&Limits::default())
}

/// Describes every route of a server with these inference endpoints.
pub(crate) fn documented(endpoints: EndpointList, compat: CompatSettings) -> DocumentedRoutes {
    let InferenceRoutes { mut router, documented, .. } = inference_routes(endpoints);
    router = router.merge(bulk::routes());
    if compat.enabled {
        router = router.merge(compatible::routes());
    }
    let routes = router.merge(state_routes()).merge(metrics_routes()).merge(document_routes());
    DocumentedRoutes { routes: routes.split_for_parts().1, endpoints: documented }
}

/// The merged routers, task labels and descriptions of all inference endpoints.
#[derive(Default)]
struct InferenceRoutes {
    router: OpenApiRouter<HttpState>,
    tasks: Vec<TaskLabel>,
    documented: Vec<DocumentedEndpoint>,
}

fn inference_routes(endpoints: EndpointList) -> InferenceRoutes {
    endpoints.iter().fold(InferenceRoutes::default(), |mut all, endpoint| {
        let InferenceEndpoint { router, task, documented } = endpoint();
        all.tasks.push(task);
        all.documented.push(documented);
        InferenceRoutes { router: all.router.merge(router), ..all }
    })
}

/// Returns the routes of the health probes and `/info`. Both the public and the operations listener serve them.
fn state_routes() -> OpenApiRouter<HttpState> {
    OpenApiRouter::default()
        .routes(routes!(health::check_health))
        .routes(routes!(health::check_liveness))
        .routes(routes!(health::check_readiness))
        .routes(routes!(info::show_info))
}

/// Returns the route `/metrics`. If the server has an operations listener, that listener serves the route; otherwise
/// the public listener does.
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
    router_of(ENDPOINTS, state)
}

/// Builds the public router with these inference endpoints.
fn router_of(endpoints: EndpointList, state: HttpState) -> Router {
    let settings = state.settings();
    let InferenceRoutes { mut router, tasks, .. } = inference_routes(endpoints);
    let tools = router.clone();
    router = router.merge(bulk::routes());
    if settings.compat.enabled {
        router = router.merge(compatible::routes());
    }
    let (inference, described) = router.split_for_parts();
    metric_labels::initialise_routes(state.metrics(), described.paths.paths.keys());
    state.initialise_tasks(tasks);
    let mut router: Router<HttpState> =
        inference.merge(state_routes().split_for_parts().0).route("/", get(root::show_root));
    if !settings.operations_listener {
        router = router.merge(metrics_routes().split_for_parts().0);
    }
    if settings.playground {
        router = router.merge(playground::assets());
        if !settings.operations_listener {
            router = router.merge(playground::status());
        }
    }
    if settings.mcp.enabled {
        metric_labels::initialise_routes(state.metrics(), ["/mcp".to_owned()].iter());
        let tools = tools.merge(state_routes()).split_for_parts().0;
        router = router.merge(mcp::routes(tools, &state));
    }
    if settings.docs {
        let compat = settings.compat;
        let documents =
            Documents::new(settings.limits.clone(), move || documented(endpoints, compat));
        // Relative addresses work below the path of a proxy too.
        let page = SwaggerUi::new("/docs").config(Config::from("../openapi.json"));
        let page = Router::from(page).layer(map_response(relative_redirect));
        router = router
            .merge(document_routes().split_for_parts().0.layer(Extension(documents)))
            .merge(page);
    }
    with_common_layers(with_access_layers(router.fallback(route_not_found), &state), state)
}

/// Builds the router of the operations listener, which checks neither API keys nor rate limits.
pub(crate) fn operations_router(state: HttpState) -> Router {
    let mut router = state_routes().merge(metrics_routes()).split_for_parts().0;
    if state.settings().playground {
        router = router.merge(playground::assets()).merge(playground::status());
    }
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
        router = router.layer(cors(settings, state.tracer().is_some()));
    }
    router
}

/// Adds the layers that both routers have. Each layer wraps the layers added before it; `middleware` explains the
/// order.
fn with_common_layers(router: Router<HttpState>, state: HttpState) -> Router {
    let settings = state.settings();
    let observer = Observer {
        state: state.clone(),
        log: Arc::new(AccessLog::new(settings.access_log.clone())),
    };
    router
        .layer(CatchPanicLayer::custom(PanicResponder(Arc::clone(state.metrics()))))
        .layer(from_fn(shed_load))
        .layer(from_fn(host))
        .layer(from_fn(problem))
        .layer(from_fn(server_timing))
        .layer(map_response(security_headers))
        .layer(from_fn_with_state(observer, observe))
        .layer(from_fn_with_state(state.clone(), client))
        .layer(from_fn(request_id))
        .with_state(state)
}

/// Makes the redirect from `/docs` to `/docs/` relative.
async fn relative_redirect(mut response: Response) -> Response {
    if let Some(location) = response.headers_mut().get_mut(header::LOCATION)
        && location == "/docs/"
    {
        *location = HeaderValue::from_static("docs/");
    }
    response
}

async fn route_not_found() -> ApiError {
    from_status(axum::http::StatusCode::NOT_FOUND)
}
