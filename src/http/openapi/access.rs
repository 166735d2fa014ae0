//! Describes API keys and rate limits in the OpenAPI document: adds the security scheme, and the error responses of
//! every route that needs a key. `openapi` calls this.

use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, OpenApi};

use super::problems::problems;
use crate::http::access::{is_limited, is_public};
use crate::http::error::Code;
use crate::http::error::dialect::Dialect;

/// Name of the security scheme in the document.
const SCHEME: &str = "api_key";

const DESCRIPTION: &str =
    "Required if the server is configured with API keys. By default it has none.";

/// Adds the security scheme and the error responses. A public operation gets an empty list of security requirements. Every
/// other operation gets an optional requirement, because a server may have no API keys.
pub(crate) fn add(document: &mut OpenApi) {
    let scheme =
        HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(DESCRIPTION)).build();
    let components = document.components.get_or_insert_with(Components::new);
    components.add_security_scheme(SCHEME, SecurityScheme::Http(scheme));
    for (path, item) in &mut document.paths.paths {
        for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
            if is_public(path) {
                operation.security = Some(Vec::new());
                // Without API keys, the origin is checked, and requests are limited by address.
                let limited = is_limited(path).then_some(Code::RateLimited);
                add_problems(operation, [Code::OriginNotAllowed].into_iter().chain(limited));
            } else {
                guard(operation, Dialect::of(path));
            }
        }
    }
}

fn guard(operation: &mut Operation, dialect: Dialect) {
    let without_key = SecurityRequirement::default();
    let with_key = SecurityRequirement::new(SCHEME, Vec::<String>::new());
    operation.security = Some(vec![without_key, with_key]);
    // The routes of other APIs describe all their errors by one response.
    if dialect != Dialect::Native {
        return;
    }
    let codes = [Code::Unauthorized, Code::OriginNotAllowed, Code::RateLimited];
    add_problems(operation, codes.into_iter());
}

fn add_problems(operation: &mut Operation, codes: impl Iterator<Item = Code>) {
    for code in codes {
        operation.responses.responses.extend(problems(&[&[code]]));
    }
}
