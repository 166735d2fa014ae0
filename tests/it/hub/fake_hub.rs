//! A hub on loopback: two ports (the hub and its storage host), a repository in memory, and faults on demand.
//! It keeps a record of every request, which is what most tests look at.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use futures_util::stream;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The commit that every revision of the fake is.
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The token that opens a private repository.
pub(super) const TOKEN: &str = "hf_right";

/// What was asked of one of the two hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) host: Host,
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) range: Option<String>,
    pub(super) authorized: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Host {
    Hub,
    Storage,
}

/// How the fake behaves; the default is a good hub.
#[derive(Debug, Clone, Default)]
pub(super) struct Behaviour {
    /// 401 without [`TOKEN`].
    pub(super) private: bool,
    /// The first so many storage downloads end after this many bytes.
    pub(super) cuts: Vec<usize>,
    /// The announced SHA-256 belongs to other bytes.
    pub(super) wrong_checksum: bool,
    /// What the etag of a small file is.
    pub(super) small_etag: SmallEtag,
    /// This small file arrives with its last byte changed.
    pub(super) damaged: Option<&'static str>,
    /// The storage host answers every range request with the whole file.
    pub(super) ignores_ranges: bool,
    /// So many requests in a row are answered with 503 first.
    pub(super) unavailable: usize,
}

/// The etag of a small file.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum SmallEtag {
    /// The hub's own: the name of git's blob.
    #[default]
    Git,
    /// Of some mirrors: the SHA-1 of its bytes.
    Sha1,
}

/// A running fake hub; its threads end with the test's runtime.
pub(super) struct FakeHub {
    shared: Arc<Shared>,
    pub(super) endpoint: String,
}

struct Shared {
    files: BTreeMap<String, Vec<u8>>,
    behaviour: Mutex<Behaviour>,
    seen: Mutex<Vec<Seen>>,
    storage: String,
}

impl FakeHub {
    /// Serves `files` as the repository `owner/tiny`. Names ending in `.safetensors` and `.bin` live on the storage host.
    pub(super) async fn start(files: &[(&str, &[u8])], behaviour: Behaviour) -> Self {
        let hub = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let storage = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = Arc::new(Shared {
            files: files.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect(),
            behaviour: Mutex::new(behaviour),
            seen: Mutex::default(),
            storage: format!("http://{}", storage.local_addr().unwrap()),
        });
        let endpoint = format!("http://{}", hub.local_addr().unwrap());
        let hub_app = Router::new().fallback(answer_as_hub).with_state(Arc::clone(&shared));
        let storage_app = Router::new().fallback(answer_as_storage).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(hub, hub_app).await });
        tokio::spawn(async move { axum::serve(storage, storage_app).await });
        Self { shared, endpoint }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Requests of one method whose path ends so.
    pub(super) fn count(&self, method: &Method, end: &str) -> usize {
        self.seen().iter().filter(|seen| seen.method == method && seen.path.ends_with(end)).count()
    }

    pub(super) fn behave(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().unwrap() = behaviour;
    }

    pub(super) fn forget(&self) {
        self.shared.seen.lock().unwrap().clear();
    }
}

impl Shared {
    /// Notes the request; `Some` when it is refused whatever it asks for.
    fn note(&self, host: Host, request: &Request) -> Option<Response<Body>> {
        let text = |name| {
            let value = request.headers().get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        let token = text(header::AUTHORIZATION);
        self.seen.lock().unwrap().push(Seen {
            host,
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            range: text(header::RANGE),
            authorized: token.is_some(),
        });
        let mut behaviour = self.behaviour.lock().unwrap();
        if behaviour.unavailable > 0 {
            behaviour.unavailable -= 1;
            return Some(status(StatusCode::SERVICE_UNAVAILABLE));
        }
        let refused = host == Host::Hub
            && behaviour.private
            && token.as_deref() != Some(&format!("Bearer {TOKEN}"));
        refused.then(|| status(StatusCode::UNAUTHORIZED))
    }
}

async fn answer_as_hub(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    if let Some(refusal) = shared.note(Host::Hub, &request) {
        return refusal;
    }
    let path = request.uri().path();
    if let Some(revision) = path.strip_prefix("/api/models/owner/tiny/revision/") {
        return match revision {
            "main" | "refs%2Fpr%2F5" | COMMIT => listing(&shared),
            _ => not_found("RevisionNotFound"),
        };
    }
    let Some(name) = path.strip_prefix(&format!("/owner/tiny/resolve/{COMMIT}/")) else {
        return not_found("RepoNotFound");
    };
    let Some(bytes) = shared.files.get(name) else { return not_found("EntryNotFound") };
    if !is_large(name) {
        let mut content = bytes.clone();
        let behaviour = shared.behaviour.lock().unwrap();
        if behaviour.damaged == Some(name) {
            *content.last_mut().unwrap() ^= 1;
        }
        let etag = match behaviour.small_etag {
            SmallEtag::Git => git_sha1(bytes),
            SmallEtag::Sha1 => digits(&Sha1::digest(bytes)),
        };
        return Response::builder()
            .header(header::ETAG, format!("\"{etag}\""))
            .body(Body::from(content))
            .unwrap();
    }
    let announced = if shared.behaviour.lock().unwrap().wrong_checksum {
        sha256(b"something else")
    } else {
        sha256(bytes)
    };
    Response::builder()
        .status(StatusCode::FOUND)
        .header("x-linked-etag", format!("\"{announced}\""))
        .header("x-linked-size", bytes.len())
        .header(header::LOCATION, format!("{}/{name}?signature=secret", shared.storage))
        .body(Body::empty())
        .unwrap()
}

async fn answer_as_storage(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    if let Some(refusal) = shared.note(Host::Storage, &request) {
        return refusal;
    }
    let Some(bytes) = shared.files.get(request.uri().path().trim_start_matches('/')) else {
        return not_found("EntryNotFound");
    };
    let (cut, ignores_ranges) = {
        let mut behaviour = shared.behaviour.lock().unwrap();
        let cut = (!behaviour.cuts.is_empty()).then(|| behaviour.cuts.remove(0));
        (cut, behaviour.ignores_ranges)
    };
    let from = if ignores_ranges { 0 } else { first_byte(request.headers()) };
    let rest = bytes[from..].to_vec();
    let mut response = Response::builder().header(header::CONTENT_LENGTH, rest.len());
    if from > 0 {
        let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
        response =
            response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, range);
    }
    response.body(cut_body(rest, cut)).unwrap()
}

/// The whole of `bytes`, or its first `cut` bytes and then a broken connection.
fn cut_body(bytes: Vec<u8>, cut: Option<usize>) -> Body {
    let Some(cut) = cut else { return Body::from(bytes) };
    let chunks = [Ok(Bytes::from(bytes[..cut].to_vec())), Err(std::io::Error::other("cut"))];
    Body::from_stream(stream::iter(chunks))
}

fn first_byte(headers: &HeaderMap) -> usize {
    let Some(range) = headers.get(header::RANGE) else { return 0 };
    let range = range.to_str().unwrap().strip_prefix("bytes=").unwrap();
    range.strip_suffix('-').unwrap().parse().unwrap()
}

fn listing(shared: &Shared) -> Response<Body> {
    let siblings: Vec<_> =
        shared.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
    let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings, "likes": 3 });
    Response::new(Body::from(body.to_string()))
}

fn not_found(code: &str) -> Response<Body> {
    let response = Response::builder().status(StatusCode::NOT_FOUND).header("x-error-code", code);
    response.body(Body::empty()).unwrap()
}

fn status(status: StatusCode) -> Response<Body> {
    Response::builder().status(status).body(Body::empty()).unwrap()
}

fn is_large(name: &str) -> bool {
    let extension = std::path::Path::new(name).extension();
    extension.is_some_and(|extension| extension == "safetensors" || extension == "bin")
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    digits(&Sha256::digest(bytes))
}

/// The name of git's blob, as the hub's etag of a small file: `git hash-object FILE`.
pub(super) fn git_sha1(bytes: &[u8]) -> String {
    let header = format!("blob {}\0", bytes.len());
    digits(&Sha1::new_with_prefix(header).chain_update(bytes).finalize())
}

fn digits(hash: &[u8]) -> String {
    hash.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
