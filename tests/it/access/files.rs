//! The file of keys changes while requests are answered.

use std::path::{Path, PathBuf};
use std::time::Duration;

use blip_server::http::{AuthSettings, KeysFile};

use super::{A, B, get};
use crate::support::{TestApp, TestServer};

const SOON: Duration = Duration::from_secs(20);

async fn start(path: &Path) -> TestServer {
    let keys_file = Some(KeysFile::load(path).unwrap());
    TestServer::start(|config| {
        config.http.auth =
            Some(AuthSettings { keys: Vec::new(), keys_file, failed_attempts_per_minute: 0 });
        config.http.file_check_interval = Duration::from_millis(5);
    })
    .await
}

fn file(content: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    std::fs::write(&path, content).unwrap();
    (directory, path)
}

fn reloads(app: &TestApp, result: &str) -> u64 {
    app.metrics.file_reloads_total.with_label_values(&["keys", result]).get()
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

async fn status(app: &TestApp, secret: &str) -> u16 {
    get(app, "/info", secret).await.status.as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_changed_file_are_taken_and_those_of_a_broken_one_are_not() {
    let (_directory, path) = file(&format!("a:{A}\n"));
    let server = start(&path).await;
    let app = &server.app;
    assert_eq!((status(app, A).await, status(app, B).await), (200, 401));

    std::fs::write(&path, format!("# now b\nb:{B}\n")).unwrap();
    until("b is let in", async || status(app, B).await == 200).await;
    assert_eq!(status(app, A).await, 401);

    for (count, broken) in ["", "# none\n", "b:short\n", "#\nb:short\n"].into_iter().enumerate() {
        std::fs::write(&path, broken).unwrap();
        until("the failure is counted", async || reloads(app, "failed") > count as u64).await;
        assert_eq!((status(app, B).await, status(app, A).await), (200, 401), "{broken:?}");
    }
    std::fs::remove_file(&path).unwrap();
    until("the loss is counted", async || reloads(app, "failed") >= 5).await;
    assert_eq!(status(app, B).await, 200);

    std::fs::write(&path, format!("a:{A}\nb:{B}\n")).unwrap();
    until("a is let in again", async || status(app, A).await == 200).await;
    assert_eq!(status(app, B).await, 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_while_the_file_changes() {
    let (_directory, path) = file(&format!("a:{A}\n"));
    let server = start(&path).await;
    let app = &server.app;
    let mut answered = 0;
    for round in 0..10_u64 {
        // Replaced as editors and orchestrators do it: a new file takes the name.
        let new = path.with_extension("new");
        std::fs::write(&new, format!("a:{A}\nx{round}:{B}-{round}\n")).unwrap();
        std::fs::rename(&new, &path).unwrap();
        until("the change is counted", async || {
            assert_eq!(status(app, A).await, 200, "round {round}");
            reloads(app, "ok") > round
        })
        .await;
        answered += 1;
    }
    assert_eq!(answered, 10);
    server.stop().await;
}
