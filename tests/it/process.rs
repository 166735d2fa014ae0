//! The server as a process: a log that nobody reads, signals, the limit of file descriptors.

use std::io::{Read, Write};
use std::net::TcpStream;

use rustix::process::Signal;

use crate::support::ServerProcess;
use crate::support::process::{PATIENCE, get, get_with, read, send};

/// Each log line of a request has about 300 bytes and a pipe holds 64 KiB: far more than it takes to fill one.
const REQUESTS: usize = 600;

const OLD_KEY: &str = "the-key-before-the-change";
const NEW_KEY: &str = "the-key-after-the-change";

fn info(address: &str, key: &str) -> String {
    get_with(address, "/info", &format!("authorization: Bearer {key}\r\n"))
}

#[test]
fn a_log_that_nobody_reads_stops_neither_requests_nor_the_end() {
    let mut server = ServerProcess::start(&[], &[]);
    let address = server.public_address();
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for number in 0..REQUESTS {
        stream.write_all(b"GET /info HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
        while !answer.ends_with(b"}") {
            let read = stream.read(&mut piece);
            let read = read.unwrap_or_else(|error| panic!("request {number}: {error}"));
            assert!(read > 0, "request {number}: the connection ended");
            answer.extend_from_slice(&piece[..read]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "request {number}");
    }
    server.terminate();
    assert_eq!(server.end_unread(), Some(0));
}

#[test]
fn a_log_that_is_read_late_is_complete_to_its_last_line() {
    let mut server = ServerProcess::start(&[], &[]);
    let address = server.public_address();
    for _ in 0..REQUESTS / 2 {
        assert!(get(&address, "/info").starts_with("HTTP/1.1 200"));
    }
    server.terminate();
    let (log, code) = server.end();
    assert_eq!(code, Some(0));
    assert_eq!(log.matches("request answered").count(), REQUESTS / 2);
    assert!(log.trim_end().ends_with("stopped"), "{log}");
}

#[test]
fn a_hangup_reads_key_files_again_and_the_server_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    std::fs::write(&path, OLD_KEY).unwrap();
    let settings = [("AUTH__KEYS_FILE", path.to_str().unwrap())];
    let mut server = ServerProcess::start(&[], &settings);
    let address = server.public_address();
    assert!(info(&address, OLD_KEY).starts_with("HTTP/1.1 200"));

    std::fs::write(&path, NEW_KEY).unwrap();
    server.signal(Signal::HUP);
    server.line_with("keys reloaded");
    assert!(info(&address, NEW_KEY).starts_with("HTTP/1.1 200"));
    assert!(info(&address, OLD_KEY).starts_with("HTTP/1.1 401"));

    // What cannot be used is told each time somebody asks for it.
    for content in ["", "# none\n"] {
        std::fs::write(&path, content).unwrap();
        server.signal(Signal::HUP);
        let line = server.line_with("keeping the current ones");
        assert!(line.contains("WARN") && line.contains("no key"), "{line}");
    }
    std::fs::remove_file(&path).unwrap();
    server.signal(Signal::HUP);
    let line = server.line_with("keeping the current ones");
    assert!(line.contains("No such file"), "{line}");
    assert!(info(&address, NEW_KEY).starts_with("HTTP/1.1 200"));

    server.terminate();
    assert_eq!(server.end().1, Some(0));
}

#[test]
fn a_hangup_without_files_changes_nothing() {
    let mut server = ServerProcess::start(&[], &[]);
    let address = server.public_address();
    server.signal(Signal::HUP);
    server.line_with("SIGHUP");
    assert!(get(&address, "/health").starts_with("HTTP/1.1 200"));
    server.terminate();
    assert_eq!(server.end().1, Some(0));
}

fn descriptor_limit(server: &ServerProcess) -> u64 {
    let limits = server.proc_file("limits");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap()
}

#[test]
fn a_low_limit_of_descriptors_is_raised_to_the_hard_limit() {
    let mut server = ServerProcess::start_limited("ulimit -Sn 200", &[], &[]);
    let address = server.public_address();
    // The hard limit is the machine's own, and above what the default settings need.
    assert!(descriptor_limit(&server) > 1024);
    assert!(get(&address, "/health").starts_with("HTTP/1.1 200"));
    server.terminate();
    assert!(!server.end().0.contains("file descriptors"));
}

#[test]
fn a_hard_limit_of_descriptors_that_is_too_low_is_reported_with_advice() {
    let mut server = ServerProcess::start_limited("ulimit -n 300", &[], &[]);
    let line = server.line_with("file descriptors");
    assert!(line.contains("WARN") && line.contains("300"), "{line}");
    assert!(line.contains("server.max_connections") && line.contains("ulimit -n"), "{line}");
    server.public_address();
    assert_eq!(descriptor_limit(&server), 300);
    server.terminate();
    assert_eq!(server.end().1, Some(0));

    let few = [("SERVER__MAX_CONNECTIONS", "20"), ("FETCH__MAX_CONCURRENT", "4")];
    let mut server = ServerProcess::start_limited("ulimit -n 300", &[], &few);
    server.public_address();
    server.terminate();
    assert!(!server.end().0.contains("file descriptors"));
}

#[test]
fn a_head_that_is_no_request_is_one_line_of_the_log_with_its_reason() {
    let settings = [("LOG__CLIENT_IP", "true")];
    let mut server = ServerProcess::start(&[], &settings);
    let address = server.public_address();
    let answer = read(send(&address, "no request\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let line = server.line_with("malformed");
    for words in ["WARN", "status=400", "invalid_request", "127.0.0.1", "problem="] {
        assert!(line.contains(words), "{words}: {line}");
    }
    server.terminate();
    assert_eq!(server.end().0.matches("malformed").count(), 0);
}

#[test]
fn the_lines_of_a_bulk_request_are_spread_over_all_workers() {
    let mut server = ServerProcess::start(&["--workers", "2"], &[]);
    let address = server.public_address();
    let mut lines = String::new();
    for line in 0..16 {
        let line = format!(r#"{{"id":"{line}","task":"embeddings","text":"text {line}"}}"#);
        lines += &(line + "\n");
    }
    let head = format!(
        "POST /bulk HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/x-ndjson\r\n\
         content-length: {}\r\n\r\n",
        lines.len()
    );
    let answer = read(send(&address, &(head + &lines)));
    assert!(answer.contains(r#"{"done":16,"failed":0}"#), "{answer}");
    let info = get(&address, "/info");
    let workers = r#""workers":[{"worker":0,"device":"cpu"},{"worker":1,"device":"cpu"}]"#;
    assert!(info.contains(workers), "{info}");
    let metrics = get(&address, "/metrics");
    for worker in [0, 1] {
        let busy = format!("blip_worker_busy_seconds_total{{worker=\"{worker}\"}} ");
        let (_, value) = metrics.split_once(&busy).unwrap_or_else(|| panic!("{busy}: {metrics}"));
        assert!(!value.starts_with("0\n"), "worker {worker} was idle");
    }
    server.terminate();
    assert_eq!(server.end().1, Some(0));
}
