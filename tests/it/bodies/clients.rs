//! Requests as real clients wrote them, recorded by `tests/fixtures/make_bodies.py`.

use std::path::Path;

use super::{Sent, all_answer_alike, json, typed};
use crate::support::{TestApp, base64};

/// A recorded request: head, empty line, body.
fn recorded(request: &[u8]) -> Sent {
    let end = request.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(request[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let path = lines.next().unwrap().split(' ').nth(1).unwrap();
    let content_type = lines.find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-type").then_some(value)
    });
    typed(path, content_type.unwrap_or_default(), &request[end + 4..])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_real_clients_write_is_understood() {
    let app = TestApp::start();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let picture = base64(&std::fs::read(fixtures.join("images/one-pixel.png")).unwrap());
    let mut files: Vec<_> = std::fs::read_dir(fixtures.join("bodies"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "http"))
        .collect();
    files.sort();
    assert!(files.len() >= 19, "{} recordings", files.len());
    let names: Vec<_> =
        files.iter().map(|path| path.file_stem().unwrap().to_string_lossy()).collect();
    let plain = format!(r#"{{"image": "{picture}", "prompt": "a cat", "num_beams": 2}}"#);
    let mut cases = vec![("JSON", json("/caption", &plain))];
    for (name, path) in names.iter().zip(&files) {
        cases.push((&**name, recorded(&std::fs::read(path).unwrap())));
    }
    all_answer_alike(&app, cases).await;
}
