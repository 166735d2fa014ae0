//! Whose images are whose: ids, pixels and features belong to the owner of the key that they came with.

use blip_server::http::ApiKey;
use serde_json::json;

use super::{A, B, post, with_keys};
use crate::support::inputs::image_id;
use crate::support::{TestApp, base64, png};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_one_key_is_not_found_by_another() {
    let app = TestApp::with(with_keys);
    let file = png(1);
    let by_id = json!({"image": image_id(&file)});
    post(&app, "/caption", A, &json!({"image": base64(&file)})).await.ok();
    post(&app, "/caption", A, &by_id).await.ok();
    post(&app, "/caption", B, &by_id).await.refused(404, "image_not_found");
    // Not even while it is known to be there: B's own copy is B's.
    post(&app, "/caption", B, &json!({"image": base64(&file)})).await.ok();
    post(&app, "/caption", B, &by_id).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_work_of_one_key_is_no_cached_work_of_another() {
    let app = TestApp::with(with_keys);
    let body = json!({"image": base64(&png(1))});
    let encoded = || app.metrics.images_encoded_total.get();
    let pixels = |result| app.metrics.cache_requests_total.with_label_values(&["pixels", result]);
    let before = encoded();
    post(&app, "/caption", A, &body).await.ok();
    post(&app, "/caption", A, &body).await.ok();
    assert_eq!((encoded() - before, pixels("hit").get(), pixels("miss").get()), (1, 1, 1));
    // How long an answer takes must not tell that somebody else sent the same image.
    post(&app, "/caption", B, &body).await.ok();
    assert_eq!((encoded() - before, pixels("hit").get(), pixels("miss").get()), (2, 1, 2));
    post(&app, "/caption", B, &body).await.ok();
    assert_eq!((encoded() - before, pixels("hit").get(), pixels("miss").get()), (2, 2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_of_one_id_share_images() {
    let app = TestApp::with(|config| {
        with_keys(config);
        let auth = config.http.auth.as_mut().unwrap();
        auth.keys = [A, B].map(|secret| ApiKey::parse(&format!("team:{secret}")).unwrap()).into();
    });
    let file = png(1);
    post(&app, "/caption", A, &json!({"image": base64(&file)})).await.ok();
    post(&app, "/caption", B, &json!({"image": image_id(&file)})).await.ok();
}
