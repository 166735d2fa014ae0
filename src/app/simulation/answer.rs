//! Parses the answers that clients receive.

/// One answer, complete.
pub(super) struct Answer {
    pub(super) status: u16,
    /// The code of an error: the member `code` of a problem document, or of the error in the OpenAI API. Empty in other
    /// answers.
    pub(super) code: String,
    pub(super) body: Vec<u8>,
    /// True if the server closes the connection after this answer.
    pub(super) closes: bool,
}

/// What the bytes received so far are.
pub(super) enum Parsed {
    /// An answer and its length in bytes.
    Complete(Answer, usize),
    /// The beginning of an answer.
    Incomplete,
    /// Not HTTP; says why.
    Malformed(String),
}

/// Parses the answer at the start of `bytes`.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let Some(head_length) = find(bytes, b"\r\n\r\n").map(|place| place + 4) else {
        return Parsed::Incomplete;
    };
    let head = String::from_utf8_lossy(&bytes[..head_length]).to_ascii_lowercase();
    let Some(status) = head.strip_prefix("http/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok())
    else {
        return Parsed::Malformed(format!("not a status line: {head}"));
    };
    let rest = &bytes[head_length..];
    let body = match field(&head, "content-length").map(str::parse::<usize>) {
        Some(Ok(length)) => rest.get(..length).map(|body| (body.to_vec(), length)),
        Some(Err(_)) => return Parsed::Malformed("a content-length that is no number".to_owned()),
        None if field(&head, "transfer-encoding") == Some("chunked") => match chunks(rest) {
            Ok(body) => body,
            Err(problem) => return Parsed::Malformed(problem),
        },
        None => return Parsed::Malformed(format!("neither a length nor chunks: {head}")),
    };
    let Some((body, length)) = body else { return Parsed::Incomplete };
    let error: Option<serde_json::Value> =
        (status >= 400).then(|| serde_json::from_slice(&body).unwrap_or_default());
    let code = error.and_then(|error| {
        let code = error["code"].as_str().or_else(|| error["error"]["code"].as_str());
        Some(code?.to_owned())
    });
    let closes = field(&head, "connection") == Some("close");
    let answer = Answer { status, code: code.unwrap_or_default(), body, closes };
    Parsed::Complete(answer, head_length + length)
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':');
    head.lines().find_map(value).map(str::trim)
}

/// Joins the chunks of a body. Returns the body and its length in chunks; `None` if the last chunk has not arrived.
fn chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, String> {
    let (mut body, mut place) = (Vec::new(), 0);
    loop {
        let Some(line) = find(&bytes[place..], b"\r\n") else { return Ok(None) };
        let size = std::str::from_utf8(&bytes[place..place + line]).unwrap_or_default();
        let size = usize::from_str_radix(size, 16).map_err(|_| format!("chunk size {size:?}"))?;
        let start = place + line + 2;
        let Some(chunk) = bytes.get(start..start + size + 2) else { return Ok(None) };
        if !chunk.ends_with(b"\r\n") {
            return Err("a chunk without its end".to_owned());
        }
        body.extend_from_slice(&chunk[..size]);
        place = start + size + 2;
        if size == 0 {
            return Ok(Some((body, place)));
        }
    }
}
