//! Two readings of one request: lengths, chunks and heads that a proxy in front could take for something else. Each is
//! refused, or answered once; a request hidden in a body is never answered.

use std::net::SocketAddr;
use std::time::Duration;

use super::random::Random;
use super::wire::{exchange, statuses};
use crate::support::TestServer;

/// Far above the timeouts of [`server`].
const PATIENCE: Duration = Duration::from_secs(20);

/// What is hidden: its answer alone begins like this.
const HIDDEN: &str = "GET /health/live HTTP/1.1\r\nhost: hidden\r\n\r\n";

/// Heads that announce a body twice or badly. `HIDDEN` follows each, so that whoever reads less than was meant finds a
/// request.
fn bodies() -> Vec<String> {
    let mut heads: Vec<String> = [
        // Two lengths.
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 6\r\ncontent-length: 5",
        "content-length: 5, 6",
        "content-length: 0\r\ncontent-length: 44",
        "content-length: 44\r\ncontent-length: 0",
        "content-length: 5,",
        "content-length: ,5",
        // Lengths that are none.
        "content-length: -1",
        "content-length: +5",
        "content-length: 0x5",
        "content-length: 5 5",
        "content-length: 5e0",
        "content-length: 5.0",
        "content-length: ",
        "content-length: five",
        "content-length: \"5\"",
        "content-length: 5;",
        "content-length: 18446744073709551616",
        "content-length: 99999999999999999999999999",
        "content-length: 5\u{b}",
        "content-length: 1_0",
        "content-length:\u{c}5",
        "content-length: \u{665}",
        "content-length: 5\t6",
        // A length that is no field of this name.
        "content-length : 5",
        "content-length\t: 5",
        " content-length: 5",
        "content_length: 5\r\ncontent-length: -5",
        "content-length\0: 5",
        "content-length: 5\0",
        "x: y\rcontent-length: 5",
        "x: y\ncontent-length: -5",
        // Transfer encodings that do not end in chunked, or not plainly.
        "transfer-encoding: identity",
        "transfer-encoding: gzip",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: chunked, gzip",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunkedx",
        "transfer-encoding: chunked;",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding: identity\r\ntransfer-encoding: identity",
        "transfer-encoding: chunk",
        "transfer-encoding: ",
        "transfer-encoding: chunked\0",
        "transfer-encoding: \u{b}chunked",
        "transfer-encoding : chunked",
        "transfer-encoding\t: chunked",
        " transfer-encoding: chunked",
        "transfer-encoding: ,identity",
        "transfer-encoding: cow\r\ntransfer-encoding: chunked, x",
        "transfer-encoding:\n chunked",
        "x: y\ntransfer-encoding: identity",
        "x: y\rtransfer-encoding: chunked",
        // Folded lines.
        "x: y\r\n content-length: 5",
        "x: y\r\n\ttransfer-encoding: chunked",
        "content-length:\r\n 5",
        "transfer-encoding:\r\n chunked",
        // Both.
        "content-length: 5\r\ntransfer-encoding: identity",
        "transfer-encoding: gzip\r\ncontent-length: 5",
        "content-length: 5\r\ntransfer-encoding: xchunked",
        "content-length: 5\r\ntransfer-encoding: chunked, identity",
    ]
    .map(|fields| format!("POST /caption HTTP/1.1\r\nhost: x\r\n{fields}\r\n\r\n"))
    .to_vec();
    // Names that are no tokens.
    for name in ["a b", "a(b", "a\"b", "a/b", "a\u{7f}b", "", "a@b", "a[b", "a{b"] {
        heads.push(format!(
            "POST /caption HTTP/1.1\r\nhost: x\r\n{name}: y\r\ncontent-length: -1\r\n\r\n"
        ));
    }
    heads.into_iter().map(|head| head + HIDDEN).collect()
}

/// Chunked bodies that are wrong somewhere; `HIDDEN` stands where a lenient reader would find a request.
fn chunks() -> Vec<String> {
    let bodies = [
        "-1\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "g\r\n",
        "\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n",
        "10000000000000000\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhellox\r\n0\r\n\r\n",
        "5\r\nhell\r\n0\r\n\r\n",
        "5\nhello\n0\n\n",
        "5\rhello\r0\r\r",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\r\nhello\r\n0\r\n\r\n",
        "5\0\r\nhello\r\n0\r\n\r\n",
        "\u{a0}5\r\nhello\r\n0\r\n\r\n",
        "5.\r\nhello\r\n0\r\n\r\n",
        "5,\r\nhello\r\n0\r\n\r\n",
        "5;a=\"\nGET\"\r\nhello\r\n0\r\n\r\n",
        "5;\rx\r\nhello\r\n0\r\n\r\n",
        "0\n\n",
        "0\r\nbad trailer\r\n\r\n",
        "0\r\n x: y\r\n\r\n",
        "00000000000000000000\n",
        "0_5\r\nhello\r\n0\r\n\r\n",
        "\t5\r\nhello\r\n0\r\n\r\n",
    ];
    let head = "POST /caption HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    bodies.iter().map(|body| format!("{head}{body}{HIDDEN}")).collect()
}

/// Request lines, versions and upgrades.
fn lines() -> Vec<String> {
    [
        "GET /health\r\n\r\n",
        "GET /health HTTP/0.9\r\n\r\n",
        "GET /health HTTP/2.0\r\n\r\n",
        "GET /health HTTP/1.2\r\n\r\n",
        "GET /health HTTP/1.1.1\r\n\r\n",
        "GET /health http/1.1\r\n\r\n",
        "GET  /health HTTP/1.1\r\n\r\n",
        "GET /health  HTTP/1.1\r\n\r\n",
        "GET\t/health\tHTTP/1.1\r\n\r\n",
        "GET /health HTTP/1.1 \r\n\r\n",
        "GET /he alth HTTP/1.1\r\n\r\n",
        "GET /health\0 HTTP/1.1\r\n\r\n",
        "G\0T /health HTTP/1.1\r\n\r\n",
        "GET /health HTTP/1.1\r\nhost: x\r\nx\r\n\r\n",
        "GET /health HTTP/1.1\r\n: y\r\n\r\n",
        "GET /health HTTP/1.1\r\n\0\r\n\r\n",
        "GET /health HTTP/1.1\rhost: x\r\r",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}",
        "GET /a\u{7f} HTTP/1.1\r\n\r\n",
        "GET http:// HTTP/1.1\r\n\r\n",
        "GET http://[ HTTP/1.1\r\n\r\n",
        "CONNECT  HTTP/1.1\r\n\r\n",
        "{\"a\": 1}\r\n\r\n",
        "POST /caption HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// One whole request in an unusual form: one answer, whatever it says.
fn unusual() -> Vec<String> {
    [
        "OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "GET http://elsewhere/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        "GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n",
        "GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n\r\n",
        "CONNECT elsewhere:443 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "GET /health HTTP/1.0\r\n\r\n",
        "GET //health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "GET /%2e%2e/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        "POST /caption HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        "POST /caption HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "TRACE /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "GET /health HTTP/1.1\nhost: x\nconnection: close\n\n",
    ]
    .map(str::to_owned)
    .to_vec()
}

async fn server() -> TestServer {
    TestServer::start(|config| {
        let connections = &mut config.http.connections;
        let short = Duration::from_millis(300);
        connections.header_read_timeout = short;
        connections.keep_alive = short;
        connections.body_idle_timeout = short;
        connections.body_total_timeout = Duration::from_secs(2);
    })
    .await
}

/// What is wrong with how a request was answered; nothing where it is refused, or answered once.
async fn fault(address: SocketAddr, request: &[u8], refused: bool) -> Option<String> {
    let answer = exchange(address, request, PATIENCE).await;
    let told = String::from_utf8_lossy(&answer.bytes);
    let seen = statuses(&answer.bytes);
    let shown = || format!("{:?}: {seen:?} {told}", String::from_utf8_lossy(request));
    let held = match &seen {
        _ if answer.timed_out => false,
        Err(_) => false,
        Ok(statuses) if statuses.len() > 1 => false,
        Ok(statuses) if refused => statuses.iter().all(|status| (400..500).contains(status)),
        Ok(statuses) => statuses.len() == 1 && statuses[0] < 500,
    };
    (!held).then(shown)
}

/// Answers of the route that hidden requests ask for.
fn hidden_answers(server: &TestServer) -> u64 {
    let labels = ["/health/live", "GET", "200", "ok"];
    server.app.metrics.http_requests_total.with_label_values(&labels).get()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_read_in_two_ways_and_what_is_hidden_in_a_body_is_never_answered() {
    let server = server().await;
    let refused: Vec<String> = [bodies(), chunks(), lines()].concat();
    let answered = unusual();
    assert!(refused.len() + answered.len() >= 100, "{}", refused.len() + answered.len());
    let all = refused.iter().map(|r| (r, true)).chain(answered.iter().map(|r| (r, false)));
    let address = server.address;
    let checks = all.map(|(request, refused)| fault(address, request.as_bytes(), refused));
    let faults: Vec<String> =
        futures_util::future::join_all(checks).await.into_iter().flatten().collect();
    assert!(faults.is_empty(), "{faults:#?}");
    assert_eq!(hidden_answers(&server), 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_one_after_the_other_are_answered_one_after_the_other() {
    let server = server().await;
    let request = "POST /caption HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    let answer = exchange(server.address, format!("{request}{HIDDEN}").as_bytes(), PATIENCE).await;
    assert_eq!(
        statuses(&answer.bytes),
        Ok(vec![400, 200]),
        "{}",
        String::from_utf8_lossy(&answer.bytes)
    );
    assert_eq!(hidden_answers(&server), 1);
    server.stop().await;
}

/// A head of what heads are made of, in any order, with damage.
fn head(random: &mut Random) -> Vec<u8> {
    let pieces: [&[u8]; 30] = [
        b"GET ",
        b"POST ",
        b"/caption",
        b"/health",
        b" HTTP/1.1",
        b" HTTP/1.0",
        b"\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b"\0",
        b"host: x",
        b"content-length: ",
        b"5",
        b"0",
        b"transfer-encoding: ",
        b"chunked",
        b"identity",
        b", ",
        b": ",
        b" ",
        b"\t",
        b"expect: 100-continue",
        b"connection: close",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"\xff\xfe",
        b"x",
        b"upgrade: h2c",
    ];
    let mut head = b"POST /caption HTTP/1.1\r\nhost: x\r\n".to_vec();
    if random.below(4) == 0 {
        head.clear();
    }
    for _ in 0..random.below(14) {
        if random.below(12) == 0 {
            let count = random.below(9);
            head.extend(random.bytes(count));
        } else {
            let piece: &&[u8] = random.pick(&pieces);
            head.extend_from_slice(piece);
        }
    }
    head.extend_from_slice(b"\r\n\r\n");
    head
}

/// Sends random heads, so many at one time; none is answered by a failure, and every answer is whole.
async fn random_heads(server: &TestServer, heads: u64, at_once: u64) -> usize {
    let mut answers = 0;
    for first in (0..heads).step_by(at_once as usize) {
        let sent = (first..(first + at_once).min(heads)).map(|index| async move {
            let request = head(&mut Random::new(0x5eed, index));
            let answer = exchange(server.address, &request, PATIENCE).await;
            let shown = String::from_utf8_lossy(&request).into_owned();
            let seen = statuses(&answer.bytes)
                .unwrap_or_else(|error| panic!("{index} {shown:?}: {error}"));
            assert!(seen.iter().all(|status| *status < 500), "{index} {shown:?}: {seen:?}");
            assert!(!answer.timed_out, "{index} {shown:?}: the connection did not end");
            // No more answers than request lines, and a refusal of what follows them.
            let lines = request.windows(8).filter(|window| *window == b" HTTP/1.").count();
            assert!(seen.len() <= lines + 1, "{index} {shown:?}: {seen:?}");
            seen.len()
        });
        answers += futures_util::future::join_all(sent).await.into_iter().sum::<usize>();
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn random_heads_are_refused_or_answered_whole() {
    let server = server().await;
    random_heads(&server, 500, 250).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long"]
async fn long() {
    let server = server().await;
    let start = std::time::Instant::now();
    let answers = random_heads(&server, 100_000, 500).await;
    eprintln!("100,000 random heads, {answers} answers, {:?}", start.elapsed());
    server.stop().await;
}
