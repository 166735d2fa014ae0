//! Bodies that cost more than they weigh: multipart, JSON, query strings, chunks, lengths.

use super::{Bomb, body, raw};
use crate::support::base64;
use crate::support::inputs::BOUNDARY;

const JSON: &str = "application/json";

fn multipart_type() -> String {
    format!("multipart/form-data; boundary={BOUNDARY}")
}

fn part(disposition: &str, extra_head: &str, data: &[u8]) -> Vec<u8> {
    let head = format!(
        "--{BOUNDARY}\r\ncontent-disposition: form-data; {disposition}\r\n{extra_head}\r\n"
    );
    [head.as_bytes(), data, b"\r\n"].concat()
}

fn multipart_bombs() -> Vec<Bomb> {
    let end = format!("--{BOUNDARY}--\r\n").into_bytes();
    let multipart = |name, data: Vec<u8>, expected| {
        body(name, "/caption", &multipart_type(), [data, end.clone()].concat(), expected)
    };
    let near_miss = format!("\r\n--{}", &BOUNDARY[..BOUNDARY.len() - 1]).repeat(200_000);
    vec![
        multipart(
            "multipart of 100,000 texts",
            part("name=\"prompt\"", "", b"a").repeat(100_000),
            &[422],
        ),
        multipart(
            "multipart of 100,000 files",
            part("name=\"images\"; filename=\"a\"", "", b"a").repeat(100_000),
            &[400],
        ),
        multipart(
            "multipart of 100,000 nameless parts",
            part("x=\"y\"", "", b"a").repeat(100_000),
            &[400],
        ),
        multipart(
            "multipart field name of 1 MB",
            part(&format!("name=\"{}\"", "n".repeat(1 << 20)), "", b"a"),
            &[400],
        ),
        multipart(
            "multipart part head of 30 MB",
            part("name=\"prompt\"", &format!("x: {}\r\n", "y".repeat(30_000_000)), b"a"),
            &[400],
        ),
        multipart(
            "multipart of 10,000 head fields",
            part("name=\"prompt\"", &"x: y\r\n".repeat(10_000), b"a"),
            &[400],
        ),
        multipart("multipart preamble of 30 MB", vec![b'x'; 30_000_000], &[400]),
        multipart(
            "multipart padding of 30 MB",
            [format!("--{BOUNDARY}").into_bytes(), vec![b' '; 30_000_000]].concat(),
            &[400],
        ),
        multipart(
            "multipart boundaries that nearly are",
            part("name=\"image\"; filename=\"a\"", "", near_miss.as_bytes()),
            &[415],
        ),
        multipart(
            "multipart text of 20 MB",
            part("name=\"prompt\"", "", &vec![b'a'; 20_000_000]),
            &[422],
        ),
        multipart(
            "multipart file of 31 MB",
            part("name=\"image\"; filename=\"a\"", "", &vec![0; 31_000_000]),
            &[413],
        ),
        multipart(
            "multipart epilogue of 30 MB",
            [part("name=\"prompt\"", "", b"a"), end.clone(), vec![b'x'; 30_000_000]].concat(),
            &[400],
        ),
        body(
            "multipart boundary of 1 KB",
            "/caption",
            &format!("multipart/form-data; boundary={}", "b".repeat(1000)),
            b"--b".to_vec(),
            &[400],
        ),
    ]
}

fn json_bombs() -> Vec<Bomb> {
    let json =
        |name, text: String, expected| body(name, "/caption", JSON, text.into_bytes(), expected);
    let batch = |name, text: String, expected| {
        body(name, "/caption/batch", JSON, text.into_bytes(), expected)
    };
    vec![
        json("json 100,000 lists deep", "[".repeat(100_000), &[400]),
        json("json 15,000,000 lists deep", "[".repeat(30_000_000), &[400]),
        json(
            "json 100,000 objects deep in a field",
            format!("{{\"image\": {}", "{\"a\":".repeat(100_000)),
            &[400],
        ),
        batch(
            "json 100,000 lists deep in an input",
            format!("{{\"inputs\": [{}", "[".repeat(100_000)),
            &[400],
        ),
        batch(
            "json deep behind what is kept of a list",
            format!("{{\"inputs\": [{}{}", "{},".repeat(2000), "[".repeat(1_000_000)),
            &[400],
        ),
        batch(
            "json of 10,000,000 inputs",
            format!("{{\"inputs\": [{}{{}}]}}", "{},".repeat(10_000_000)),
            &[422],
        ),
        json(
            "json of 1,000,000 unknown fields",
            format!("{{{}\"z\": 1}}", "\"a\": 1,".repeat(1_000_000)),
            &[400],
        ),
        json(
            "json of 1,000,000 times one field",
            format!("{{{}\"seed\": 1}}", "\"seed\": 1,".repeat(1_000_000)),
            &[400],
        ),
        json(
            "json number of 1,000,000 digits",
            format!("{{\"seed\": {}}}", "9".repeat(1_000_000)),
            &[400],
        ),
        json("json number of 1e999999999", "{\"temperature\": 1e999999999}".to_owned(), &[400]),
        json(
            "json text of 5,000,000 escapes",
            format!("{{\"prompt\": \"{}\"}}", "\\u0041".repeat(5_000_000)),
            &[400, 422],
        ),
        json(
            "json text of 30 MB",
            format!(
                "{{\"image\": \"{}\", \"prompt\": \"{}\"}}",
                base64(b"x"),
                "a ".repeat(15_000_000)
            ),
            &[422],
        ),
        json("json of 30 MB of white space", " ".repeat(30_000_000), &[400]),
        json(
            "json that is not UTF-8 somewhere",
            format!("{{\"prompt\": \"{}\\ud800\"}}", "a".repeat(1000)),
            &[400],
        ),
    ]
}

/// Image values, and lists of texts.
fn value_bombs() -> Vec<Bomb> {
    let json =
        |name, text: String, expected| body(name, "/caption", JSON, text.into_bytes(), expected);
    vec![
        json("base64 of 31 MB", format!("{{\"image\": \"{}\"}}", "A".repeat(31_000_000)), &[413]),
        json(
            "base64 of nothing but padding",
            format!("{{\"image\": \"{}\"}}", "=".repeat(1_000_000)),
            &[400],
        ),
        json(
            "data URI with a type of 10 MB",
            format!("{{\"image\": \"data:{};base64,AAAA\"}}", "x".repeat(10_000_000)),
            &[415],
        ),
        json(
            "base64 inside base64",
            format!(
                "{{\"image\": \"{}\"}}",
                base64(base64(base64(b"\x89PNG\r\n\x1a\n").as_bytes()).as_bytes())
            ),
            &[415],
        ),
        body(
            "json of 1,000,000 candidates",
            "/vqa",
            JSON,
            format!(
                "{{\"image\": \"\", \"question\": \"a\", \"candidates\": [{}\"a\"]}}",
                "\"a\",".repeat(1_000_000)
            )
            .into_bytes(),
            &[422],
        ),
        body(
            "json of 1,000,000 texts",
            "/similarity",
            JSON,
            format!("{{\"image\": \"\", \"texts\": [{}\"a\"]}}", "\"a\",".repeat(1_000_000))
                .into_bytes(),
            &[422],
        ),
    ]
}

/// A POST whose head and body are as written here.
fn post(fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST /caption HTTP/1.1\r\nhost: x\r\n{fields}\r\n");
    [head.as_bytes(), body].concat()
}

fn head_bombs() -> Vec<Bomb> {
    let chunked = |chunks: Vec<u8>| post("transfer-encoding: chunked\r\n", &chunks);
    let fields = |count: usize| {
        let lines: Vec<String> = (0..count).map(|index| format!("x-{index}: y\r\n")).collect();
        lines.concat()
    };
    let query = "prompt=a&".repeat(3000);
    vec![
        raw("1,000,000 chunks of a byte", chunked(b"1\r\nx\r\n".repeat(1_000_000)), &[413]),
        raw("chunk of 2^64-1 bytes", chunked(b"ffffffffffffffff\r\nx".to_vec()), &[400, 408, 413]),
        raw("chunk of 2^68 bytes", chunked(b"fffffffffffffffff\r\nx".to_vec()), &[400]),
        raw("chunk extensions of 1 MB", chunked(format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(1 << 20)).into_bytes()), &[400]),
        raw("trailers of 1 MB", chunked(format!("1\r\nx\r\n0\r\nt: {}\r\n\r\n", "y".repeat(1 << 20)).into_bytes()), &[400, 415]),
        raw("content-length of 10^18", post("content-length: 1000000000000000000\r\n", b"x"), &[413]),
        raw("content-length of 2^64", post("content-length: 18446744073709551616\r\n", b"x"), &[400]),
        raw("100,000 bytes of head", post(&format!("x: {}\r\n", "y".repeat(100_000)), b""), &[431]),
        raw("10,000 fields of head", post(&fields(10_000), b""), &[431]),
        raw("a path of 100,000 bytes", format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(100_000)).into_bytes(), &[414, 431]),
        raw("a query of 3,000 fields", format!("POST /caption?{query} HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-type: image/png\r\n\r\nx").into_bytes(), &[422]),
        raw("gzip body of JSON", post("content-encoding: gzip\r\ncontent-type: application/json\r\ncontent-length: 3\r\n", b"\x1f\x8b\x08"), &[415]),
        raw("deflate and identity", post("content-encoding: identity\r\ncontent-encoding: deflate\r\ncontent-length: 1\r\n", b"x"), &[415]),
        raw("gzip as a transfer encoding", post("transfer-encoding: gzip, chunked\r\n", b"1\r\nx\r\n0\r\n\r\n"), &[400, 415, 501]),
        raw("a method of 100,000 letters", format!("{} / HTTP/1.1\r\n\r\n", "A".repeat(100_000)).into_bytes(), &[400, 431]),
    ]
}

pub(super) fn bombs() -> Vec<Bomb> {
    [multipart_bombs(), json_bombs(), value_bombs(), head_bombs()].into_iter().flatten().collect()
}
