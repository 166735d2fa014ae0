//! The pages for people: what they may load, how long browsers keep them, and who may see them. `tests/page` uses them in a
//! browser.

use axum::body::Body;
use axum::http::{Request, Response};
use blip_server::http::{ApiKey, AuthSettings};
use http_body_util::BodyExt;

use crate::support::TestApp;

async fn open(app: &TestApp, path: &str, fields: &[(&str, &str)]) -> Response<Body> {
    let mut request = Request::get(path).header("accept", "text/html,*/*");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    app.open(request.body(Body::empty()).unwrap()).await
}

fn field<'a>(response: &'a Response<Body>, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

async fn text(response: Response<Body>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The paths of the assets that a page names.
fn assets(page: &str) -> Vec<String> {
    page.split('"').filter(|part| part.starts_with("assets/")).map(|it| format!("/{it}")).collect()
}

#[tokio::test]
async fn the_pages_load_nothing_from_elsewhere_and_run_no_markup() {
    let app = TestApp::start();
    for path in ["/", "/status"] {
        let page = open(&app, path, &[]).await;
        assert_eq!(page.status(), 200, "{path}");
        assert_eq!(field(&page, "content-type"), "text/html; charset=utf-8");
        let policy = field(&page, "content-security-policy").to_owned();
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ] {
            assert!(policy.contains(rule), "{rule}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        let text = text(page).await;
        assert!(!text.contains("http://") && !text.contains("https://"), "{path}");
        assert!(assets(&text).len() >= 3, "{text}");
    }
}

#[tokio::test]
async fn browsers_keep_assets_for_a_year_and_ask_for_the_page_each_time() {
    let app = TestApp::start();
    let page = open(&app, "/", &[]).await;
    assert_eq!(field(&page, "cache-control"), "no-cache");
    assert_eq!(field(&page, "vary"), "accept");
    let etag = field(&page, "etag").to_owned();
    let known = open(&app, "/", &[("if-none-match", &format!("\"other\", {etag}"))]).await;
    assert_eq!(known.status(), 304);
    assert_eq!(text(known).await, "");
    let other = open(&app, "/", &[("if-none-match", "\"other\"")]).await;
    assert_eq!(other.status(), 200);
    for path in assets(&text(page).await) {
        let asset = open(&app, &path, &[]).await;
        assert_eq!(asset.status(), 200, "{path}");
        assert_eq!(field(&asset, "cache-control"), "public, max-age=31536000, immutable");
        assert_eq!(field(&asset, "x-content-type-options"), "nosniff");
        assert!(!text(asset).await.is_empty());
        let (folder, file) = path.rsplit_once('/').unwrap();
        let old = format!("/assets/0000000000000000/{file}");
        app.get(&old).await.refused(404, "route_not_found");
        app.get(&format!("{folder}/../../{file}")).await.refused(404, "route_not_found");
    }
}

#[tokio::test]
async fn the_pages_need_no_key_and_other_clients_see_text() {
    let app = TestApp::with(|config| {
        config.http.auth = Some(AuthSettings {
            keys: vec![ApiKey::parse("0123456789abcdef").unwrap()],
            keys_file: None,
            failed_attempts_per_minute: 60,
        });
    });
    let page = text(open(&app, "/", &[]).await).await;
    for path in assets(&page) {
        assert_eq!(open(&app, &path, &[]).await.status(), 200, "{path}");
    }
    assert_eq!(open(&app, "/status", &[]).await.status(), 200);
    app.get("/metrics").await.refused(401, "unauthorized");
    assert_eq!(app.get("/").await.text(), "blip-server is running");
}

#[tokio::test]
async fn the_pages_can_be_switched_off() {
    let app = TestApp::with(|config| config.http.playground = false);
    let page = open(&app, "/", &[]).await;
    assert_eq!((page.status().as_u16(), field(&page, "location")), (307, "docs/"));
    app.get("/status").await.refused(404, "route_not_found");
    let app = TestApp::with(|config| {
        config.http.playground = false;
        config.http.docs = false;
    });
    assert_eq!(text(open(&app, "/", &[]).await).await, "blip-server is running");
    // A page names no page that is not served.
    let app = TestApp::with(|config| {
        config.http.docs = false;
        config.http.operations_listener = true;
    });
    let page = text(open(&app, "/", &[]).await).await;
    assert!(!page.contains("href=\"docs/\"") && !page.contains("href=\"status\""), "{page}");
    app.get("/status").await.refused(404, "route_not_found");
}
