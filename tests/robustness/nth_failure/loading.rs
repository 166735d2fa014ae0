//! System calls that fail while a server loads a checkpoint, a settings file, a file of API keys and a certificate. It
//! has to end with an exit code and a message that names the file at fault, or to serve as if nothing had failed.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use super::control::{COUNT, Control, Fault, Seen};
use super::errors::{self, LOADING};
use super::requests::{Call, Outcome, Reply, exchange};
use super::server::{End, Launch, PATIENCE, Server};
use super::tally::Tally;

const KEY: &str = "sixteen-letters-or-more";

/// A server that does not answer because it ends has ended after this time.
const END_LIMIT: Duration = Duration::from_secs(5);

/// The files of a server, and what a client needs.
pub(super) struct Site {
    launch: Launch,
    client: Arc<ClientConfig>,
    call: Call,
    /// What every file of the site begins with.
    places: [String; 2],
    _directory: tempfile::TempDir,
}

impl Site {
    /// A tiny checkpoint, with settings, keys and certificate in files.
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let write = |name: &str, content: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, content).unwrap();
            path.display().to_string()
        };
        let certificate = write("certificate.pem", &made.cert.pem());
        let key = write("key.pem", &made.signing_key.serialize_pem());
        let keys = write("keys", &format!("a:{KEY}\n"));
        let checkpoint =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/caption-varied");
        let checkpoint = checkpoint.display().to_string();
        let settings = write(
            "settings.toml",
            &format!(
                "[server]\ntls_certificate = '{certificate}'\ntls_key = '{key}'\n[auth]\nkeys_file = '{keys}'\n\
                 [compute]\ndtype = 'f32'\n[[models]]\nname = 'tiny'\nsource = '{checkpoint}'\n"
            ),
        );
        let launch = Launch::with(&["serve", "--config", &settings], &[]);
        let client = client(made.cert.der().clone());
        let places = [directory.path().display().to_string(), checkpoint];
        Self { launch, client, call: call(), places, _directory: directory }
    }

    fn ask(&self, server: &Server) -> Reply {
        let Ok(stream) = server.connect() else { return Reply::Closed };
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(Arc::clone(&self.client), name).unwrap();
        exchange(&mut StreamOwned::new(connection, stream), &self.call.request)
    }

    /// The right answer, and how often each kind is called until the server listens.
    fn undisturbed(&self) -> (Value, Seen) {
        let server = Server::try_start(&self.launch, Control::new(), Some(COUNT));
        let server = server.unwrap_or_else(|(_, end)| panic!("it does not start: {end:?}"));
        let seen = server.control.disarm();
        let right = self.ask(&server).content().unwrap();
        server.stop();
        (right, seen)
    }
}

fn client(trusted: CertificateDer<'static>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

fn call() -> Call {
    let photo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/photos/rocket.png");
    let photo = std::fs::read(photo).unwrap();
    let head = format!(
        "POST /caption HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\ncontent-type: image/png\r\n\
         content-length: {}\r\n\r\n",
        photo.len()
    );
    Call { name: "caption".to_owned(), request: [head.as_bytes(), &photo].concat() }
}

/// Each call of each kind fails in turn with each of its errors. `stride` is 1, or more to leave cases out.
pub(super) fn run(site: &Site, stride: usize, tally: &mut Tally) {
    let (right, counted) = site.undisturbed();
    let mut case = 0;
    for (kind, actions) in LOADING {
        for action in actions {
            for nth in 1..=counted.count(kind) {
                case += 1;
                if case % stride == 0 {
                    let fault = Fault { kind, nth, action: *action, min_bytes: u64::MAX };
                    one(site, &right, fault, tally);
                }
            }
        }
    }
}

fn one(site: &Site, right: &Value, fault: Fault, tally: &mut Tally) {
    let (seen, result) = match Server::try_start(&site.launch, Control::new(), Some(fault)) {
        Ok(server) => {
            let seen = server.control.disarm();
            let result = serves(site, server, right, &seen);
            (seen, result)
        }
        Err((control, end)) => {
            let seen = control.disarm();
            let checked = check_end(site, &end, &seen);
            (seen, checked)
        }
    };
    if !seen.hit {
        return;
    }
    let kind = format!("{} {}", fault.kind, errors::name(fault.action));
    match result {
        Ok(outcome) => tally.add(&kind, &outcome),
        Err(why) => {
            let case = format!("call {} of {} ({}) fails", fault.nth, kind, seen.place);
            tally.add_wrong(&kind, &case, &why);
        }
    }
}

fn serves(site: &Site, mut server: Server, right: &Value, seen: &Seen) -> Result<String, String> {
    let start = Instant::now();
    let is_loading = |outcome: &Outcome| *outcome == Outcome::Refused("not_ready".to_owned());
    for _ in 0..2 {
        let mut outcome = site.ask(&server).judge(right)?;
        while is_loading(&outcome) && start.elapsed() < PATIENCE {
            outcome = site.ask(&server).judge(right)?;
        }
        if outcome != Outcome::Right {
            // The call may have failed just as the server began to listen, and ended it.
            return match server.end_within(END_LIMIT) {
                Some(end) => check_end(site, &end, seen),
                None => Err(format!("it serves with {outcome:?}:\n{}", server.log())),
            };
        }
    }
    server.stop();
    Ok("serves".to_owned())
}

/// It says what failed, and ended neither by a panic nor by a signal.
fn check_end(site: &Site, end: &End, seen: &Seen) -> Result<String, String> {
    // std starts no thread without a stack for its signal handler: it panics where nothing catches the panic, and aborts.
    // If the server's own hook is set by then, the second message stands alone.
    let of_std = ["failed to allocate an alternative stack", "failed to initiate panic"];
    if seen.place == "map anonymous" && of_std.iter().any(|text| end.log.contains(text)) {
        return Ok("abort by std".to_owned());
    }
    let told = end.log.lines().rev().find(|line| line.starts_with("blip-server: "));
    let Some(code @ (1 | 70 | 78)) = end.status.code() else {
        return Err(format!("it ended with {:?}:\n{}", end.status, end.log));
    };
    let Some(told) = told else {
        return Err(format!("exit {code} without a message:\n{}", end.log));
    };
    if end.log.contains("panicked") {
        return Err(format!("exit {code} after a panic:\n{}", end.log));
    }
    let path = seen.place.split_once(' ').map_or("", |(_, path)| path);
    let of_site = site.places.iter().any(|place| path.starts_with(&**place));
    if of_site && !told.contains(path) {
        return Err(format!("exit {code}, and the message does not name {path}: {told}"));
    }
    Ok(format!("exit {code}"))
}
