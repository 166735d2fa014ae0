//! The service without a listener, for the commands that process files and for `mcp`: the same routes, engine and caches,
//! called in this process.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, header};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use http_body_util::{BodyExt, Collected};
use tower::ServiceExt;

use super::App;
use crate::annotate::{BulkService, Lines, SendError};
use crate::config::Config;
use crate::engine::Engine;
use crate::http;
use crate::mcp::{Answer, ToolService};

/// The only user waits for every call, however slow the models are, and ends what takes too long.
const DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// A loaded service without a listener.
pub struct LocalService {
    router: Router,
    engine: Engine,
}

impl App {
    /// Loads the models for calls in this process. API keys and rate limits of the settings do not apply, because the caller
    /// is the user.
    ///
    /// # Errors
    /// Those of [`App::serve`] while it loads.
    pub async fn start_local(mut config: Config) -> anyhow::Result<LocalService> {
        config.http.auth = None;
        config.http.rate_limit = None;
        config.http.bulk.deadline = DEADLINE;
        config.http.deadline = DEADLINE;
        config.engine.max_queue_wait = DEADLINE;
        let app = Self::build(config)?;
        let engine = app.start_engine().await?;
        Ok(LocalService { router: http::router(app.state.clone()), engine })
    }
}

impl LocalService {
    /// Ends the engine. Work in progress is dropped.
    pub fn stop(self) {
        self.engine.handle().abort();
        drop(self.engine);
    }

    /// Returns a client of the routes, which stays usable after this value is gone.
    pub fn tools(&self) -> Arc<dyn ToolService> {
        Arc::new(LocalTools(self.router.clone()))
    }

    async fn request(&self, lines: BoxStream<'static, Bytes>) -> Result<Lines, SendError> {
        let body = Body::from_stream(lines.map(Ok::<_, Infallible>));
        let failed = |message: String| SendError { message, retry_after: None };
        let request = Request::post("/bulk")
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/x-ndjson")
            .body(body);
        let request = request.map_err(|error| failed(error.to_string()))?;
        let response = match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        if !response.status().is_success() {
            let body =
                response.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
            return Err(failed(String::from_utf8_lossy(&body).into_owned()));
        }
        let pieces = response.into_body().into_data_stream();
        Ok(pieces.map(|piece| piece.map_err(|error| error.to_string())).boxed())
    }
}

impl BulkService for LocalService {
    fn send(&self, lines: BoxStream<'static, Bytes>) -> BoxFuture<'_, Result<Lines, SendError>> {
        self.request(lines).boxed()
    }
}

/// The routes, for the tools of the Model Context Protocol.
struct LocalTools(Router);

impl ToolService for LocalTools {
    fn request(
        &self,
        path: &'static str,
        body: Option<Vec<u8>>,
    ) -> BoxFuture<'_, Result<Answer, String>> {
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.unwrap_or_default()));
        async move { http::answer_of(&self.0, request.map_err(|error| error.to_string())?).await }
            .boxed()
    }
}
