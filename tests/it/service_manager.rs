//! The server under a service manager: what it sends to the socket `NOTIFY_SOCKET`, seen by a receiver in the place of
//! systemd.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::support::ServerProcess;
use crate::support::process::{PATIENCE, get};

/// Interval of the watchdog; the server sends twice as often.
const WATCHDOG: Duration = Duration::from_millis(200);

/// A service manager that only listens.
struct Manager {
    directory: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { directory, socket }
    }

    fn start(&self, arguments: &[&str], settings: &[(&str, &str)]) -> ServerProcess {
        let path = self.directory.path().join("notify");
        let microseconds = WATCHDOG.as_micros().to_string();
        let variables =
            [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", &microseconds)];
        ServerProcess::start_with(&variables, arguments, settings)
    }

    fn receive(&self) -> String {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("a message of the server");
        String::from_utf8(message[..length].to_vec()).unwrap()
    }

    /// Receives messages up to the first with this line; all of them.
    fn until(&self, line: &str) -> Vec<String> {
        let mut messages = Vec::new();
        loop {
            messages.push(self.receive());
            if messages.last().unwrap().lines().any(|found| found == line) {
                return messages;
            }
        }
    }

    /// The messages that have arrived and were not received yet.
    fn rest(&self) -> Vec<String> {
        self.socket.set_nonblocking(true).unwrap();
        let mut message = [0; 4096];
        let mut messages = Vec::new();
        while let Ok(length) = self.socket.recv(&mut message) {
            messages.push(String::from_utf8(message[..length].to_vec()).unwrap());
        }
        messages
    }
}

#[test]
fn systemd_is_notified_of_loading_ready_stopping_and_liveness() {
    let manager = Manager::new();
    let mut server = manager.start(&[], &[("SERVER__DRAIN_TIMEOUT_MS", "7000")]);
    let loading = manager.receive();
    assert!(loading.contains("STATUS=loading the models"), "{loading}");
    assert!(loading.contains("EXTEND_TIMEOUT_USEC=60000000"), "{loading}");
    assert!(!loading.contains("READY=1"), "{loading}");

    let ready = manager.until("READY=1");
    assert!(ready.last().unwrap().contains("STATUS=ready"), "{ready:?}");
    let address = server.public_address();
    assert!(get(&address, "/health/ready").starts_with("HTTP/1.1 200"));

    // Without requests nothing changes, so these messages are signs of life and nothing else.
    let start = Instant::now();
    for _ in 0..5 {
        assert_eq!(manager.receive(), "WATCHDOG=1");
    }
    // The first may have waited in the socket.
    assert!(start.elapsed() >= WATCHDOG / 2 * 3, "more often than at half the interval");

    server.terminate();
    let stopping = manager.until("STOPPING=1");
    let stopping = stopping.last().unwrap();
    assert!(stopping.contains("STATUS=shutting down"), "{stopping}");
    // The drain timeout, two seconds for the last work unit and three for the last responses.
    assert!(stopping.contains("EXTEND_TIMEOUT_USEC=12000000"), "{stopping}");
    assert_eq!(server.end().1, Some(0));
    assert!(!manager.rest().iter().any(|message| message.contains("READY")));
}

#[test]
fn a_worker_that_hangs_gives_no_sign_of_life() {
    let manager = Manager::new();
    // The limit is the lowest that the settings accept. A step takes 20 ms per token: the warm-up has a few tokens per
    // step, but the prompt below takes nine seconds.
    let settings = [("ENGINE__WORKER_HANG_LIMIT_MS", "5000"), ("SERVER__DEADLINE_MS", "60000")];
    let mut server = manager.start(&["--token-us", "20000"], &settings);
    let address = server.public_address();
    manager.until("READY=1");
    let picture = include_bytes!("../../demo/scenes/two-cats.png");
    let mut stream = TcpStream::connect(&address).unwrap();
    let prompt = ["a"; 450].join("+");
    write!(
        stream,
        "POST /caption?prompt={prompt} HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n\
         content-length: {}\r\n\r\n",
        picture.len()
    )
    .unwrap();
    stream.write_all(picture).unwrap();

    let messages = manager.until("STATUS=failed: a worker has ended or hangs");
    let (last, before) = messages.split_last().unwrap();
    assert!(before.iter().all(|message| message == "WATCHDOG=1"), "{before:?}");
    assert!(!last.contains("WATCHDOG"), "{last}");
    assert_eq!(server.end().1, Some(70));
    let rest = manager.rest();
    assert!(!rest.iter().any(|message| message.contains("WATCHDOG")), "{rest:?}");
}

#[test]
fn a_notify_socket_without_a_reader_does_not_keep_the_server_from_working() {
    let variables = [("NOTIFY_SOCKET", "/nonexistent/notify")];
    let mut server = ServerProcess::start_with(&variables, &[], &[]);
    server.line_with("cannot notify the service manager");
    let address = server.public_address();
    assert!(get(&address, "/health/ready").starts_with("HTTP/1.1 200"));
    server.terminate();
    assert_eq!(server.end().1, Some(0));
}
