//! Downloads against a fake hub on loopback: the cache layout, resuming, checksums, refusals, tokens, offline.

mod convert;
mod fake_hub;

use std::path::Path;
use std::time::Duration;

use axum::http::Method;
use blip_server::hub::{
    CheckpointFiles, DownloadProgress, HubError, HubSettings, HubSource, Retry, Token, WeightFiles,
    fetch,
};
use fake_hub::{Behaviour, COMMIT, FakeHub, Host, SmallEtag, TOKEN, git_sha1, sha256};

const SMALL: [(&str, &[u8]); 4] = [
    ("config.json", br#"{"architectures": ["BlipModel"]}"#),
    ("preprocessor_config.json", b"{}"),
    ("tokenizer.json", br#"{"version": "1.0"}"#),
    ("README.md", b"not needed"),
];

/// Larger than one chunk of any buffer on the way.
fn weights() -> Vec<u8> {
    (0..300_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn with<'a>(more: &[(&'a str, &'a [u8])]) -> Vec<(&'a str, &'a [u8])> {
    [SMALL.as_slice(), more].concat()
}

fn settings(hub: &FakeHub, cache: &Path) -> HubSettings {
    HubSettings {
        endpoint: hub.endpoint.clone(),
        cache: cache.to_owned(),
        token: None,
        offline: false,
        use_system_proxy: false,
        retry: Retry { attempts: 3, first_pause: Duration::ZERO },
    }
}

fn tiny(revision: Option<&str>) -> HubSource {
    HubSource { id: "owner/tiny".to_owned(), revision: revision.map(str::to_owned) }
}

async fn fetch_tiny(settings: &HubSettings) -> Result<CheckpointFiles, HubError> {
    fetch(&tiny(None), settings, &DownloadProgress::Log).await
}

#[tokio::test]
async fn a_checkpoint_lands_in_the_hubs_cache_layout() {
    let weights = weights();
    let hub = FakeHub::start(&with(&[("model.safetensors", &weights)]), Behaviour::default()).await;
    let cache = tempfile::tempdir().unwrap();
    let files = fetch_tiny(&settings(&hub, cache.path())).await.unwrap();

    let root = cache.path().join("models--owner--tiny");
    assert_eq!(files.directory, root.join("snapshots").join(COMMIT));
    assert_eq!(files.revision.as_deref(), Some(COMMIT));
    assert_eq!(std::fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    let path = files.directory.join("model.safetensors");
    assert_eq!(files.weights, WeightFiles::Safetensors(vec![path.clone()]));
    assert_eq!(std::fs::read_link(&path).unwrap(), Path::new("../../blobs").join(sha256(&weights)));
    assert_eq!(std::fs::read(&path).unwrap(), weights);
    assert_eq!(std::fs::read(&files.config).unwrap(), SMALL[0].1);
    assert!(!files.directory.join("README.md").exists(), "only what serving needs is downloaded");
    let unfinished = std::fs::read_dir(root.join("blobs")).unwrap().filter(|entry| {
        entry.as_ref().unwrap().file_name().to_string_lossy().contains("incomplete")
    });
    assert_eq!(unfinished.count(), 0);
}

#[tokio::test]
async fn a_cut_download_resumes_where_it_ended() {
    let weights = weights();
    let behaviour = Behaviour { cuts: vec![500_000, 400_000], ..Behaviour::default() };
    let hub = FakeHub::start(&with(&[("model.safetensors", &weights)]), behaviour).await;
    let cache = tempfile::tempdir().unwrap();
    let files = fetch_tiny(&settings(&hub, cache.path())).await.unwrap();

    assert_eq!(std::fs::read(files.directory.join("model.safetensors")).unwrap(), weights);
    let starts: Vec<u64> = hub
        .seen()
        .iter()
        .filter(|seen| seen.host == Host::Storage)
        .map(|seen| {
            seen.range.as_ref().map_or(0, |range| range[6..range.len() - 1].parse().unwrap())
        })
        .collect();
    assert_eq!(starts.len(), 3, "{starts:?}");
    assert_eq!(starts[0], 0);
    // What arrived before a cut depends on the network's buffers; it is never asked for again.
    assert!(starts.is_sorted() && starts[2] <= 900_000, "{starts:?}");
    assert!(starts[1] > 0 || starts[2] > 0, "nothing was resumed: {starts:?}");
}

#[tokio::test]
async fn a_new_process_resumes_the_partial_file_of_an_old_one() {
    let weights = weights();
    let hub = FakeHub::start(&with(&[("model.safetensors", &weights)]), Behaviour::default()).await;
    let cache = tempfile::tempdir().unwrap();
    let blobs = cache.path().join("models--owner--tiny/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(format!("{}.incomplete", sha256(&weights))), &weights[..123_456])
        .unwrap();

    let files = fetch_tiny(&settings(&hub, cache.path())).await.unwrap();
    assert_eq!(std::fs::read(files.directory.join("model.safetensors")).unwrap(), weights);
    let ranges: Vec<_> = hub.seen().into_iter().filter_map(|seen| seen.range).collect();
    assert!(ranges.contains(&"bytes=123456-".to_owned()), "{ranges:?}");
}

#[tokio::test]
async fn a_storage_host_without_ranges_starts_again_and_the_file_is_whole() {
    let weights = weights();
    let behaviour = Behaviour { ignores_ranges: true, ..Behaviour::default() };
    let hub = FakeHub::start(&with(&[("model.safetensors", &weights)]), behaviour).await;
    let cache = tempfile::tempdir().unwrap();
    let blobs = cache.path().join("models--owner--tiny/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(format!("{}.incomplete", sha256(&weights))), &weights[..1000])
        .unwrap();

    let files = fetch_tiny(&settings(&hub, cache.path())).await.unwrap();
    assert_eq!(std::fs::read(files.directory.join("model.safetensors")).unwrap(), weights);
}

#[tokio::test]
async fn a_wrong_checksum_is_an_error_and_leaves_nothing_behind() {
    let weights = weights();
    let behaviour = Behaviour { wrong_checksum: true, ..Behaviour::default() };
    let hub = FakeHub::start(&with(&[("model.safetensors", &weights)]), behaviour).await;
    let cache = tempfile::tempdir().unwrap();
    let error = fetch_tiny(&settings(&hub, cache.path())).await.unwrap_err();

    let HubError::WrongChecksum { expected, actual, .. } = &error else { panic!("{error}") };
    assert_eq!(actual, &sha256(&weights));
    assert_eq!(expected, &sha256(b"something else"));
    let blobs = cache.path().join("models--owner--tiny/blobs");
    assert!(!blobs.join(format!("{expected}.incomplete")).exists());
    assert!(!blobs.join(expected).exists());
    assert!(!cache.path().join("models--owner--tiny/refs/main").exists());
}

#[test]
fn the_fake_hub_names_small_files_as_git_does() {
    // `printf 'hello\n' | git hash-object --stdin`
    assert_eq!(git_sha1(b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
}

#[tokio::test]
async fn a_small_file_with_changed_bytes_is_refused_by_name_and_leaves_nothing_behind() {
    for file in ["config.json", "tokenizer.json"] {
        let damaged = Behaviour { damaged: Some(file), ..Behaviour::default() };
        let hub = FakeHub::start(&with(&[("model.safetensors", b"x")]), damaged).await;
        let cache = tempfile::tempdir().unwrap();
        let settings = settings(&hub, cache.path());
        let error = fetch_tiny(&settings).await.unwrap_err();

        let HubError::WrongChecksum { expected, .. } = &error else { panic!("{error}") };
        let text = error.to_string();
        assert!(text.starts_with(&format!("{file} of owner/tiny@")), "{text}");
        assert!(text.contains("git SHA-1") && text.contains("has been deleted"), "{text}");
        let root = cache.path().join("models--owner--tiny");
        assert!(!root.join("blobs").join(format!("{expected}.incomplete")).exists());
        assert!(!root.join("blobs").join(expected).exists());
        assert!(!root.join("snapshots").join(COMMIT).join(file).exists());
        assert!(!root.join("refs/main").exists());

        hub.behave(Behaviour::default());
        let files = fetch_tiny(&settings).await.unwrap();
        let whole = SMALL.iter().find(|(name, _)| *name == file).unwrap().1;
        assert_eq!(std::fs::read(files.directory.join(file)).unwrap(), whole);
    }
}

#[tokio::test]
async fn a_mirror_may_announce_the_sha1_of_the_bytes() {
    for (damaged, good) in [(None, true), (Some("tokenizer.json"), false)] {
        let behaviour = Behaviour { small_etag: SmallEtag::Sha1, damaged, ..Behaviour::default() };
        let hub = FakeHub::start(&with(&[("model.safetensors", b"x")]), behaviour).await;
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(fetch_tiny(&settings(&hub, cache.path())).await.is_ok(), good, "{damaged:?}");
    }
}

/// Each place of the cache that a download writes, and what a planted link in it must not change.
#[tokio::test]
async fn a_planted_link_in_the_cache_is_refused_and_nothing_is_written_through_it() {
    let weights = weights();
    let (large, small) = (sha256(&weights), git_sha1(SMALL[0].1));
    let hub = FakeHub::start(&with(&[("model.safetensors", &weights)]), Behaviour::default()).await;
    for place in [
        format!("models--owner--tiny/blobs/{large}.incomplete"),
        format!("models--owner--tiny/blobs/{small}.incomplete"),
        format!(".locks/models--owner--tiny/{small}.lock"),
        "models--owner--tiny/refs/main".to_owned(),
    ] {
        let (cache, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let target = elsewhere.path().join("precious");
        for precious in [None, Some("precious")] {
            let link = cache.path().join(&place);
            std::fs::create_dir_all(link.parent().unwrap()).unwrap();
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(&target, &link).unwrap();
            if let Some(content) = precious {
                std::fs::write(&target, content).unwrap();
            }
            let fetched = fetch_tiny(&settings(&hub, cache.path())).await;
            let found = std::fs::read_to_string(&target).ok();
            assert_eq!(found.as_deref(), precious, "written through {place}");
            let HubError::Io { path, source, .. } = fetched.unwrap_err() else { panic!("{place}") };
            assert_eq!(path, link);
            assert!(source.to_string().contains("symbolic link"), "{source}");
        }
        // A second name of another file, and a pipe, are refused as well; neither is changed or waited for.
        let planted = cache.path().join(&place);
        std::fs::remove_file(&planted).unwrap();
        std::fs::hard_link(&target, &planted).unwrap();
        let refused = fetch_tiny(&settings(&hub, cache.path())).await.unwrap_err();
        let HubError::Io { path, source, .. } = refused else { panic!("{place}: {refused}") };
        assert!(path == planted && source.to_string().contains("hard link"), "{place}: {source}");
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious", "{place}");
        std::fs::remove_file(&planted).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&planted).status().expect("mkfifo");
        assert!(made.success());
        let refused = fetch_tiny(&settings(&hub, cache.path())).await.unwrap_err();
        let HubError::Io { path, source, .. } = refused else { panic!("{place}: {refused}") };
        assert!(path == planted && source.to_string().contains("not a file"), "{place}: {source}");
        std::fs::remove_file(&planted).unwrap();
        fetch_tiny(&settings(&hub, cache.path())).await.unwrap();
    }
}

#[tokio::test]
async fn a_second_fetch_downloads_nothing_and_a_commit_asks_nothing() {
    let weights = weights();
    let hub = FakeHub::start(&with(&[("model.safetensors", &weights)]), Behaviour::default()).await;
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&hub, cache.path());
    let first = fetch_tiny(&settings).await.unwrap();
    hub.forget();
    assert_eq!(fetch_tiny(&settings).await.unwrap(), first);
    assert_eq!(hub.seen().len(), 1, "only the revision is looked up: {:?}", hub.seen());
    hub.forget();
    assert_eq!(fetch(&tiny(Some(COMMIT)), &settings, &DownloadProgress::Log).await.unwrap(), first);
    assert_eq!(hub.seen(), []);
}

#[tokio::test]
async fn offline_serves_from_the_cache_and_says_what_to_do_without_it() {
    let hub = FakeHub::start(&with(&[("model.safetensors", b"x")]), Behaviour::default()).await;
    let cache = tempfile::tempdir().unwrap();
    let online = settings(&hub, cache.path());
    let offline = HubSettings { offline: true, ..online.clone() };
    let error = fetch_tiny(&offline).await.unwrap_err();
    assert!(matches!(error, HubError::NotCached { .. }), "{error}");
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    assert_eq!(hub.seen(), [], "offline means no request");

    let files = fetch_tiny(&online).await.unwrap();
    hub.forget();
    assert_eq!(fetch_tiny(&offline).await.unwrap(), files);
    assert_eq!(hub.seen(), []);

    std::fs::remove_file(&files.config).unwrap();
    let error = fetch_tiny(&offline).await.unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
}

#[tokio::test]
async fn safetensors_are_preferred_then_pickles_then_tensorflow() {
    let all: [(&str, &[u8]); 3] = [
        ("tf_model.h5", b"hdf5"),
        ("pytorch_model.bin", b"pickle"),
        ("model.safetensors", b"safe"),
    ];
    let hub = FakeHub::start(&with(&all), Behaviour::default()).await;
    let cache = tempfile::tempdir().unwrap();
    let files = fetch_tiny(&settings(&hub, cache.path())).await.unwrap();
    assert!(matches!(files.weights, WeightFiles::Safetensors(_)));
    assert_eq!(hub.count(&Method::GET, "pytorch_model.bin"), 0);

    let hub = FakeHub::start(&with(&all[..2]), Behaviour::default()).await;
    let cache = tempfile::tempdir().unwrap();
    let files = fetch_tiny(&settings(&hub, cache.path())).await.unwrap();
    assert!(matches!(files.weights, WeightFiles::Pickle(_)));
    assert_eq!(hub.count(&Method::GET, "tf_model.h5"), 0);

    let hub = FakeHub::start(&with(&all[..1]), Behaviour::default()).await;
    let cache = tempfile::tempdir().unwrap();
    let files = fetch_tiny(&settings(&hub, cache.path())).await.unwrap();
    let WeightFiles::TensorFlow(path) = files.weights else { panic!("{:?}", files.weights) };
    assert_eq!(std::fs::read(path).unwrap(), b"hdf5");
}

#[tokio::test]
async fn every_shard_of_an_index_is_downloaded() {
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    let sharded: [(&str, &[u8]); 3] = [
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", b"one"),
        ("model-2.safetensors", b"two"),
    ];
    let hub = FakeHub::start(&with(&sharded), Behaviour::default()).await;
    let cache = tempfile::tempdir().unwrap();
    let files = fetch_tiny(&settings(&hub, cache.path())).await.unwrap();
    let WeightFiles::Safetensors(shards) = &files.weights else { panic!("{:?}", files.weights) };
    let contents: Vec<_> = shards.iter().map(|shard| std::fs::read(shard).unwrap()).collect();
    assert_eq!(contents, [b"one", b"two"]);
}

#[tokio::test]
async fn a_private_repository_names_the_variable_and_opens_with_the_token() {
    let behaviour = Behaviour { private: true, ..Behaviour::default() };
    let hub = FakeHub::start(&with(&[("model.safetensors", b"x")]), behaviour).await;
    let cache = tempfile::tempdir().unwrap();
    let without = settings(&hub, cache.path());
    let error = fetch_tiny(&without).await.unwrap_err();
    assert!(matches!(error, HubError::Refused { status: 401, token_sent: false, .. }), "{error}");
    assert!(error.to_string().contains("set HF_TOKEN"), "{error}");
    assert_eq!(hub.seen().len(), 1, "a refusal is not tried again");

    let wrong = HubSettings { token: Token::new("hf_wrong"), ..without.clone() };
    let error = fetch_tiny(&wrong).await.unwrap_err().to_string();
    assert!(error.contains("has no read access") && !error.contains("hf_wrong"), "{error}");

    hub.forget();
    let right = HubSettings { token: Token::new(TOKEN), ..without };
    fetch_tiny(&right).await.unwrap();
    let (hub_requests, storage): (Vec<_>, Vec<_>) =
        hub.seen().into_iter().partition(|seen| seen.host == Host::Hub);
    assert!(hub_requests.iter().all(|seen| seen.authorized));
    assert!(!storage.is_empty(), "the weights come from the storage host");
    assert!(storage.iter().all(|seen| !seen.authorized), "the token left the hub: {storage:?}");
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let hub = FakeHub::start(&with(&[("model.safetensors", b"x")]), Behaviour::default()).await;
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&hub, cache.path());
    let other = HubSource { id: "owner/other".to_owned(), revision: None };
    let error = fetch(&other, &settings, &DownloadProgress::Log).await.unwrap_err().to_string();
    assert!(error.contains("repository owner/other"), "{error}");
    let error =
        fetch(&tiny(Some("v9")), &settings, &DownloadProgress::Log).await.unwrap_err().to_string();
    assert!(error.contains("owner/tiny@v9"), "{error}");

    let hub = FakeHub::start(&SMALL, Behaviour::default()).await;
    let settings = HubSettings { endpoint: hub.endpoint.clone(), ..settings };
    let error = fetch_tiny(&settings).await.unwrap_err();
    assert!(matches!(error, HubError::MissingInRepository { .. }), "{error}");
    assert_eq!(hub.seen().len(), 1, "nothing is downloaded of what cannot be served");
}

#[tokio::test]
async fn a_revision_with_slashes_is_one_segment_of_the_address() {
    let hub = FakeHub::start(&with(&[("model.safetensors", b"x")]), Behaviour::default()).await;
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&hub, cache.path());
    let source = tiny(Some("refs/pr/5"));
    let files = fetch(&source, &settings, &DownloadProgress::Log).await.unwrap();
    assert_eq!(files.revision.as_deref(), Some(COMMIT));
    let offline = HubSettings { offline: true, ..settings };
    assert_eq!(fetch(&source, &offline, &DownloadProgress::Log).await.unwrap(), files);
}

#[tokio::test]
async fn a_busy_hub_is_asked_again_and_given_up_after_the_last_attempt() {
    let behaviour = Behaviour { unavailable: 2, ..Behaviour::default() };
    let hub = FakeHub::start(&with(&[("model.safetensors", b"x")]), behaviour).await;
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&hub, cache.path());
    let files = fetch_tiny(&settings).await.unwrap();

    let down =
        FakeHub::start(&[], Behaviour { unavailable: usize::MAX, ..Behaviour::default() }).await;
    let down_settings = HubSettings { endpoint: down.endpoint.clone(), ..settings.clone() };
    assert_eq!(fetch_tiny(&down_settings).await.unwrap(), files, "the cached revision stands in");
    assert_eq!(down.seen().len(), 3);

    let empty = tempfile::tempdir().unwrap();
    let nothing = HubSettings { cache: empty.path().to_owned(), ..down_settings };
    let error = fetch_tiny(&nothing).await.unwrap_err();
    assert!(matches!(error, HubError::UnexpectedStatus { status: 503, .. }), "{error}");
}

#[tokio::test]
async fn two_fetches_at_once_download_each_file_once() {
    let weights = weights();
    let hub = FakeHub::start(&with(&[("model.safetensors", &weights)]), Behaviour::default()).await;
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&hub, cache.path());
    let (one, two) = tokio::join!(fetch_tiny(&settings), fetch_tiny(&settings));
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!(
        hub.count(&Method::GET, "/model.safetensors"),
        2,
        "one on the hub, one on its storage"
    );
}
