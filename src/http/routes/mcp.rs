//! `POST /mcp`: the tools of the Model Context Protocol over streamable HTTP, without sessions: every message is answered as
//! JSON, so any replica can answer it. Off by default (`mcp.enabled`).
//!
//! The OpenAPI documents do not contain this route, because the protocol describes itself (`tools/list`).

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::{Extension, Request as HttpRequest, State};
use axum::http::{HeaderValue, Method, Request, header, request};
use axum::response::Response;
use axum::routing::post;
use axum::{Router, middleware::from_fn};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;

use crate::engine::Admission;
use crate::http::context::RequestContext;
use crate::http::error::{self, ApiError};
use crate::http::extract::head::X_REQUEST_TIMEOUT_MS;
use crate::http::inference::start::Start;
use crate::http::middleware::panic::PanicResponder;
use crate::http::middleware::problem::{ErrorCode, problem};
use crate::http::state::HttpState;
use crate::mcp::{Answer, McpServer, ToolService};

/// The routes that the tools call, without the layers that check who may call them: these have checked the message.
#[derive(Clone)]
struct ToolRoutes(Router);

/// Returns the route. `tools` has the routes that the tools call.
pub(crate) fn routes(tools: Router<HttpState>, state: &HttpState) -> Router<HttpState> {
    let panics = PanicResponder(Arc::clone(state.metrics()));
    let tools = tools
        .layer(CatchPanicLayer::custom(panics))
        .layer(from_fn(problem))
        .with_state(state.clone());
    Router::new().route("/mcp", post(answer_mcp)).layer(Extension(ToolRoutes(tools)))
}

/// Answers one message.
async fn answer_mcp(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    Extension(ToolRoutes(router)): Extension<ToolRoutes>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    let start = Start::new(&http, &state, &context)?;
    let (parts, body) = http.into_parts();
    let body = start.read_any_type(HttpRequest::from_parts(parts.clone(), body)).await?;
    let service = Arc::new(ToolCalls {
        router,
        head: parts.clone(),
        admission: Mutex::new(Some(body.admission)),
    });
    let message = Request::from_parts(parts, Full::new(body.bytes));
    let max = usize::try_from(state.settings().limits.max_body_bytes).unwrap_or(usize::MAX);
    let response = message_service(service, max).handle(message).await;
    let status = response.status();
    let mut response = response.map(Body::new);
    if !status.is_client_error() && !status.is_server_error() {
        return Ok(response);
    }
    let mut error = error::from_status(status);
    if is_json(&response) {
        // An error in the format of the protocol.
        response.extensions_mut().insert(ErrorCode(error.code));
        return Ok(response);
    }
    // The SDK tells in plain text what is wrong with the request.
    let text = response.into_body().collect().await.unwrap_or_default().to_bytes();
    error.detail = String::from_utf8_lossy(&text).into_owned().into();
    Err(error)
}

/// Creates the service of the protocol for one message.
fn message_service(
    service: Arc<ToolCalls>,
    max_body_bytes: usize,
) -> StreamableHttpService<McpServer, NeverSessionManager> {
    // Hosts and origins are checked by our own layers.
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(false)
        .with_json_response(true)
        .disable_allowed_hosts()
        .disable_allowed_origins()
        .with_max_request_body_bytes(max_body_bytes);
    let server = McpServer::new(service, None);
    StreamableHttpService::new(move || Ok(server.clone()), Arc::default(), config)
}

fn is_json(response: &Response) -> bool {
    response.headers().get(header::CONTENT_TYPE)
        == Some(&HeaderValue::from_static("application/json"))
}

/// The calls of the tool that one message names.
struct ToolCalls {
    router: Router,
    /// Head of the message. Its extensions tell the routes who calls.
    head: request::Parts,
    /// Reservation for the body of the message.
    admission: Mutex<Option<Admission>>,
}

impl ToolService for ToolCalls {
    fn request(
        &self,
        path: &'static str,
        body: Option<Vec<u8>>,
    ) -> BoxFuture<'_, Result<Answer, String>> {
        async move {
            // The message is gone by now; the call reserves the capacity for its own body.
            drop(self.admission.lock().unwrap_or_else(PoisonError::into_inner).take());
            let method = if body.is_some() { Method::POST } else { Method::GET };
            let body = Bytes::from(body.unwrap_or_default());
            let length = body.len();
            let mut request = Request::new(Body::from(body));
            *request.method_mut() = method;
            *request.uri_mut() = path.parse().expect("paths are constants");
            *request.extensions_mut() = self.head.extensions.clone();
            let headers = request.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            if let Some(timeout) = self.head.headers.get(X_REQUEST_TIMEOUT_MS) {
                headers.insert(X_REQUEST_TIMEOUT_MS, timeout.clone());
            }
            answer_of(&self.router, request).await
        }
        .boxed()
    }
}

/// Sends a request to a router, and reads the answer.
///
/// # Errors
/// If the answer cannot be read.
pub(crate) async fn answer_of(router: &Router, request: Request<Body>) -> Result<Answer, String> {
    let sent: Result<Response, Infallible> = router.clone().oneshot(request).await;
    let response = match sent {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let is_success = response.status().is_success();
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
    Ok(Answer { is_success, body: body.to_bytes() })
}
