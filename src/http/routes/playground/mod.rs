//! The pages for people: the playground at `/`, where pictures are captioned and asked about, and the status page for
//! operators at `/status`. They are plain files in `assets`, which browsers run as they are; `tests/page` checks them.
//!
//! The path of the assets contains a hash of them all, so browsers keep them for a year and still see each new version. The
//! content security policy allows only these files, and no markup from text (trusted types).

use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};

use crate::http::error::{ApiError, from_status};
use crate::http::middleware::headers::MayBeStored;
use crate::http::settings::HttpSettings;
use crate::http::state::HttpState;

/// A file that the pages load: its name, media type and content.
type Asset = (&'static str, &'static str, &'static [u8]);

macro_rules! assets {
    ($($name:literal: $media_type:literal from $path:literal,)*) => {
        &[$(($name, $media_type, include_bytes!($path)),)*]
    };
}

const ASSETS: &[Asset] = assets! {
    "api.js": "text/javascript" from "assets/api.js",
    "app.js": "text/javascript" from "assets/app.js",
    "caption.js": "text/javascript" from "assets/caption.js",
    "code.js": "text/javascript" from "assets/code.js",
    "dom.js": "text/javascript" from "assets/dom.js",
    "heatmap.js": "text/javascript" from "assets/heatmap.js",
    "icon.svg": "image/svg+xml" from "assets/icon.svg",
    "keybox.js": "text/javascript" from "assets/keybox.js",
    "map.js": "text/javascript" from "assets/map.js",
    "models.js": "text/javascript" from "assets/models.js",
    "pictures.js": "text/javascript" from "assets/pictures.js",
    "result.js": "text/javascript" from "assets/result.js",
    "status.js": "text/javascript" from "assets/status.js",
    "style.css": "text/css" from "assets/style.css",
    "task.js": "text/javascript" from "assets/task.js",
    "tasks.js": "text/javascript" from "assets/tasks.js",
    "words.js": "text/javascript" from "assets/words.js",
    "scenes/cat-and-dog.png": "image/png" from "../../../../demo/scenes/cat-and-dog.png",
    "scenes/octopus-and-guitar.png": "image/png" from "../../../../demo/scenes/octopus-and-guitar.png",
    "scenes/rocket.png": "image/png" from "../../../../demo/scenes/rocket.png",
    "scenes/two-cats.png": "image/png" from "../../../../demo/scenes/two-cats.png",
    "scenes/whale.png": "image/png" from "../../../../demo/scenes/whale.png",
};

const PLAYGROUND: &str = include_str!("assets/index.html");
const STATUS: &str = include_str!("assets/status.html");

/// Links that are left out if their page is not served.
const DOCS_LINK: &str = "<a href=\"docs/\">API reference</a>";
const STATUS_LINK: &str = "<a href=\"status\">Status</a>";

const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' blob: data:; connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// Header fields of the pages.
const PAGE_HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_TYPE, "text/html; charset=utf-8"),
    (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("permissions-policy"), "camera=(self), microphone=(), geolocation=()"),
    (header::VARY, "accept"),
];

/// A hash of all assets, 16 hexadecimal digits.
static HASH: LazyLock<String> = LazyLock::new(|| {
    let mut all = Sha256::new();
    for (name, _, content) in ASSETS {
        all.update(name.as_bytes());
        all.update(content.len().to_le_bytes());
        all.update(content);
    }
    short_text(&all.finalize())
});

/// Returns the first eight bytes of a hash in hexadecimal digits.
fn short_text(hash: &[u8]) -> String {
    hash.iter().take(8).fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Returns the routes of the assets.
pub(crate) fn assets() -> Router<HttpState> {
    Router::new().route("/assets/{hash}/{*name}", get(show_asset))
}

/// Returns the route of the status page.
pub(crate) fn status() -> Router<HttpState> {
    Router::new().route("/status", get(show_status))
}

/// Answers a request for the playground.
pub(crate) fn playground(headers: &HeaderMap, settings: &HttpSettings) -> Response {
    let mut text = PLAYGROUND.to_owned();
    if !settings.docs {
        text = text.replace(DOCS_LINK, "");
    }
    if settings.operations_listener {
        text = text.replace(STATUS_LINK, "");
    }
    page(headers, &text)
}

async fn show_status(headers: HeaderMap) -> Response {
    page(&headers, STATUS)
}

/// Answers a request for a page; without a body if the browser has this version of it.
fn page(headers: &HeaderMap, template: &str) -> Response {
    let text = template.replace("{assets}", &format!("assets/{}", *HASH));
    let etag = format!("\"{}\"", short_text(&Sha256::digest(&text)));
    let known =
        headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let is_known = known
        .flat_map(|value| value.split(','))
        .any(|one| one.trim().trim_start_matches("W/") == etag);
    let mut response =
        if is_known { StatusCode::NOT_MODIFIED.into_response() } else { text.into_response() };
    let headers = response.headers_mut();
    for (name, value) in PAGE_HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::ETAG, etag.parse().expect("hexadecimal digits in quotes"));
    // A page is asked for each time, because it names the current assets.
    response.extensions_mut().insert(MayBeStored("no-cache"));
    response
}

async fn show_asset(Path((hash, name)): Path<(String, String)>) -> Result<Response, ApiError> {
    let asset = ASSETS.iter().find(|(known, ..)| *known == name).filter(|_| hash == *HASH);
    let Some((_, media_type, content)) = asset else {
        return Err(from_status(StatusCode::NOT_FOUND));
    };
    let mut response = ([(header::CONTENT_TYPE, *media_type)], *content).into_response();
    let year = MayBeStored("public, max-age=31536000, immutable");
    response.extensions_mut().insert(year);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_are_small_and_name_only_assets_that_exist() {
        let own = ASSETS.iter().filter(|(name, ..)| !name.starts_with("scenes/"));
        let bytes: usize = own.map(|(_, _, content)| content.len()).sum();
        let all = bytes + PLAYGROUND.len() + STATUS.len();
        assert!(all < 150_000, "{all} bytes");
        for link in [DOCS_LINK, STATUS_LINK] {
            assert!(PLAYGROUND.contains(link), "{link}");
        }
        for page in [PLAYGROUND, STATUS] {
            for name in page.split("{assets}/").skip(1).map(|rest| rest.split('"').next().unwrap())
            {
                assert!(ASSETS.iter().any(|(known, ..)| *known == name), "{name}");
            }
            // Neither scripts nor styles in the page, which the content security policy would block.
            for inline in ["<script>", "<style", " style=", " onclick"] {
                assert!(!page.contains(inline), "{inline}");
            }
        }
    }

    #[test]
    fn every_file_of_the_folder_is_served() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/routes/playground/assets");
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let is_page = ["index.html", "status.html"].contains(&name.as_str());
            assert!(is_page || ASSETS.iter().any(|(known, ..)| *known == name), "{name}");
        }
    }
}
