//! `POST /mcp`: the tools of the Model Context Protocol over streamable HTTP, without sessions: every message is answered as
//! JSON, so any replica can answer it. Off by default (`mcp.enabled`).
//!
//! The OpenAPI documents do not contain this route, because the protocol describes itself (`tools/list`).

mod message;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Request as HttpRequest, State};
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header, request};
use axum::response::Response;
use axum::routing::post;
use axum::{Router, middleware::from_fn};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use serde_json::{Map, Value};
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;

use self::message::{Message, Texts};
use crate::http::context::RequestContext;
use crate::http::error::{self, ApiError, Code};
use crate::http::extract::head::X_REQUEST_TIMEOUT_MS;
use crate::http::extract::{AdmittedBody, HandedAdmission};
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
    let (mut head, body) = http.into_parts();
    if !is_json(&head.headers) {
        let detail = "send one JSON-RPC message, with content-type application/json";
        return Err(ApiError::new(Code::UnsupportedMediaType, detail).close_connection());
    }
    let body = start.read_any_type(HttpRequest::from_parts(head.clone(), body)).await?;
    if body.bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        return Err(ApiError::invalid("batches are not supported; send one JSON-RPC message"));
    }
    let Message { small, texts } = start.json(&body).await?;
    let AdmittedBody { bytes, admission } = body;
    drop(bytes);
    let service = Arc::new(ToolCalls {
        router,
        head: head.clone(),
        texts: Mutex::new(texts),
        admission: HandedAdmission::new(admission),
    });
    // Every answer is JSON, whatever else a client accepts.
    let accepted = HeaderValue::from_static("application/json, text/event-stream");
    head.headers.insert(header::ACCEPT, accepted);
    let small = serde_json::to_vec(&small).map_err(|_| ApiError::internal())?;
    let message = Request::from_parts(head, Full::new(Bytes::from(small)));
    let response = message_service(service).handle(message).await;
    let status = response.status();
    let mut response = response.map(Body::new);
    if !status.is_client_error() && !status.is_server_error() {
        return Ok(response);
    }
    let mut error = error::from_status(status);
    if is_json(response.headers()) {
        // An error in the format of the protocol.
        response.extensions_mut().insert(ErrorCode(error.code));
        return Ok(response);
    }
    if status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
        let detail = "no JSON-RPC message: it needs jsonrpc (\"2.0\"), method, id (text or a whole number; none for a \
                      notification), and an object as params, if it has any";
        return Err(ApiError::invalid(detail));
    }
    // The SDK tells in plain text what is wrong with the head of the request.
    let text = response.into_body().collect().await.unwrap_or_default().to_bytes();
    error.detail = String::from_utf8_lossy(&text).into_owned().into();
    Err(error)
}

/// Creates the service of the protocol for one message.
fn message_service(
    service: Arc<ToolCalls>,
) -> StreamableHttpService<McpServer, NeverSessionManager> {
    // Hosts and origins are checked by our own layers.
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(false)
        .with_json_response(true)
        .disable_allowed_hosts()
        .disable_allowed_origins();
    let server = McpServer::new(service);
    StreamableHttpService::new(move || Ok(server.clone()), Arc::default(), config)
}

fn is_json(headers: &HeaderMap) -> bool {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = text.and_then(|text| text.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

/// The calls of the tool that one message names.
struct ToolCalls {
    router: Router,
    /// Head of the message. Its extensions tell the routes who calls.
    head: request::Parts,
    /// The long texts of the message.
    texts: Mutex<Texts>,
    /// Reservation for the body of the message, which becomes that of the tool's call.
    admission: HandedAdmission,
}

impl ToolService for ToolCalls {
    fn restore(&self, arguments: &mut Map<String, Value>) {
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        arguments.values_mut().for_each(|value| texts.restore(value));
    }

    fn request(
        &self,
        path: &'static str,
        body: Option<Vec<u8>>,
    ) -> BoxFuture<'_, Result<Answer, String>> {
        async move {
            let has_body = body.is_some();
            let body = Bytes::from(body.unwrap_or_default());
            let length = body.len();
            let mut request = Request::new(Body::from(body));
            *request.uri_mut() = Uri::from_static(path);
            *request.extensions_mut() = self.head.extensions.clone();
            if has_body {
                *request.method_mut() = Method::POST;
                request.extensions_mut().insert(self.admission.clone());
            }
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

/// Sends a request to a router, and reads the answer. If it is an error, notes the code in the context of the request, because
/// the message itself is answered with status 200.
///
/// # Errors
/// If the answer cannot be read.
pub(crate) async fn answer_of(router: &Router, request: Request<Body>) -> Result<Answer, String> {
    let context = request.extensions().get::<RequestContext>().cloned();
    let sent: Result<Response, Infallible> = router.clone().oneshot(request).await;
    let response = match sent {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let is_success = response.status().is_success();
    if let (Some(context), Some(code)) = (context, response.extensions().get::<ErrorCode>()) {
        context.note(|notes| notes.stream_error = Some(code.0));
    }
    let after = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = after.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
    Ok(Answer { is_success, retry_after, body: body.to_bytes() })
}
