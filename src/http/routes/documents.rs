//! `GET /openapi.json`, `/openapi.yaml` and `/openapi-strict.json`. The Swagger UI page itself is mounted in `router`.

use std::sync::{Arc, OnceLock};

use axum::extract::Extension;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use crate::http::error::ApiError;
use crate::http::openapi::DocumentedRoutes;
use crate::http::settings::Limits;

/// The OpenAPI documents of one server. Each is generated on its first request and then cached. Generating a document
/// takes milliseconds, but a request for it is only forty bytes long. Without the cache, a client could therefore cause
/// much work at little cost to itself. Clones share the cache.
#[derive(Clone)]
pub(crate) struct Documents(Arc<Cache>);

struct Cache {
    limits: Limits,
    routes: Box<dyn Fn() -> DocumentedRoutes + Send + Sync>,
    plain_json: OnceLock<Bytes>,
    plain_yaml: OnceLock<Bytes>,
    strict_json: OnceLock<Bytes>,
}

impl Documents {
    /// Creates an empty cache for the documents of a server with these limits. `routes` describes its routes.
    pub(crate) fn new(
        limits: Limits,
        routes: impl Fn() -> DocumentedRoutes + Send + Sync + 'static,
    ) -> Self {
        let (plain_json, plain_yaml, strict_json) = Default::default();
        let routes = Box::new(routes);
        Self(Arc::new(Cache { limits, routes, plain_json, plain_yaml, strict_json }))
    }

    fn json(&self) -> Result<Bytes, ApiError> {
        let Cache { limits, routes, plain_json, .. } = &*self.0;
        once(plain_json, || routes().plain(limits).to_json())
    }

    fn yaml(&self) -> Result<Bytes, ApiError> {
        let Cache { limits, routes, plain_yaml, .. } = &*self.0;
        once(plain_yaml, || routes().plain(limits).to_yaml())
    }

    fn strict(&self) -> Result<Bytes, ApiError> {
        let Cache { limits, routes, strict_json, .. } = &*self.0;
        once(strict_json, || routes().strict(limits).to_json())
    }
}

/// OpenAPI document in JSON, for client generators
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "show_openapi_json",
    tag = "operations",
    responses((status = 200, description = "The OpenAPI document.", content_type = "application/json", body = Object)),
)]
pub(crate) async fn show_openapi_json(
    Extension(documents): Extension<Documents>,
) -> Result<Response, ApiError> {
    let json = documents.json()?;
    Ok(document("application/json", json))
}

/// OpenAPI document in YAML, for client generators
#[utoipa::path(
    get,
    path = "/openapi.yaml",
    operation_id = "show_openapi_yaml",
    tag = "operations",
    responses((status = 200, description = "The OpenAPI document.", content_type = "application/yaml", body = Object)),
)]
pub(crate) async fn show_openapi_yaml(
    Extension(documents): Extension<Documents>,
) -> Result<Response, ApiError> {
    let yaml = documents.yaml()?;
    Ok(document("application/yaml", yaml))
}

/// OpenAPI document in JSON with all cross-field constraints
#[utoipa::path(
    get,
    path = "/openapi-strict.json",
    operation_id = "show_strict_openapi_json",
    tag = "operations",
    responses((status = 200, description = "The strict OpenAPI document, for validators and fuzzers.", content_type = "application/json", body = Object)),
)]
pub(crate) async fn show_strict_openapi_json(
    Extension(documents): Extension<Documents>,
) -> Result<Response, ApiError> {
    let json = documents.strict()?;
    Ok(document("application/json", json))
}

fn document(content_type: &'static str, document: Bytes) -> Response {
    let content_type = HeaderValue::from_static(content_type);
    ([(header::CONTENT_TYPE, content_type)], document).into_response()
}

/// Returns the document in `written`. If `written` is empty, first generates the document with `write` and stores it
/// there.
fn once<E: std::fmt::Display>(
    written: &OnceLock<Bytes>,
    write: impl FnOnce() -> Result<String, E>,
) -> Result<Bytes, ApiError> {
    if let Some(document) = written.get() {
        return Ok(document.clone());
    }
    let document = write().map_err(|error| {
        tracing::error!(%error, "cannot generate the OpenAPI document");
        ApiError::internal()
    })?;
    Ok(written.get_or_init(|| document.into()).clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::router::{ENDPOINTS, documented};
    use crate::http::settings::CompatSettings;

    #[test]
    fn each_document_is_generated_once_and_shared_from_then_on() {
        let documents =
            Documents::new(Limits::default(), || documented(ENDPOINTS, CompatSettings::default()));
        let json = documents.json().unwrap();
        assert_eq!(json.as_ptr(), documents.json().unwrap().as_ptr());
        let yaml = documents.yaml().unwrap();
        assert_eq!(yaml.as_ptr(), documents.clone().yaml().unwrap().as_ptr());
        let strict = documents.strict().unwrap();
        assert!(json != yaml && json != strict);
    }
}
