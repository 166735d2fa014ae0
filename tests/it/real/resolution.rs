//! `?image_size=N` through the whole server: sizes in `/info`, captions as the reference's, and features that are not
//! mixed up between the sizes of one checkpoint.

use serde_json::{Value, json};

use super::server::{RealServer, image};
use super::{fixtures, reference};

#[tokio::test(flavor = "multi_thread")]
async fn one_checkpoint_serves_several_sizes_and_each_captions_as_the_reference() {
    let cases = reference("resolutions");
    let cases = cases["cases"].as_array().unwrap();
    let path = fixtures().join("caption-varied");
    let sizes: Vec<u64> = cases
        .iter()
        .filter(|case| case["checkpoint"] == "caption-varied")
        .map(|case| case["image_size"].as_u64().unwrap())
        .collect();
    let mut models = vec![format!("whole={}", path.display())];
    for size in [sizes[0], sizes[sizes.len() - 1]] {
        models.push(format!("at-{size}={}?image_size={size}", path.display()));
    }
    let server = RealServer::serve(models, &[("COMPUTE__DTYPE", "f32")]).await;
    let info = server.get("/info").await;
    let reported: Vec<&Value> =
        info["models"].as_array().unwrap().iter().map(|model| &model["image_size"]).collect();
    assert_eq!(reported, [&json!(64), &json!(sizes[0]), &json!(sizes[sizes.len() - 1])]);
    // Twice, so that the second time the features come from the cache.
    for _ in 0..2 {
        for case in cases.iter().filter(|case| case["checkpoint"] == "caption-varied") {
            let model = format!("at-{}", case["image_size"]);
            let photo = image(case["photo"].as_str().unwrap());
            let request =
                json!({"model": model, "image": photo, "max_new_tokens": case["max_new_tokens"]});
            let answer = server.ask("/caption", &request).await;
            assert_eq!(answer["captions"][0]["text"], case["text"], "{model} {}", case["photo"]);
        }
    }
    server.stop().await;
}
