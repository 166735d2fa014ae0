//! Bytes to a server and what comes back, without a client's good manners.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What came back on one connection.
pub(crate) struct Exchange {
    /// Every byte.
    pub(crate) bytes: Vec<u8>,
    /// The server had not ended the connection when the time was over.
    pub(crate) timed_out: bool,
}

/// Sends `request` on a connection of its own and reads until the server ends it. Sending and reading go on side by
/// side: a refusal may come before the end of what is sent.
pub(crate) async fn exchange(address: SocketAddr, request: &[u8], patience: Duration) -> Exchange {
    let stream = TcpStream::connect(address).await.expect("a connection");
    stream.set_nodelay(true).expect("a socket option");
    let (mut reader, mut writer) = stream.into_split();
    let mut bytes = Vec::new();
    let read = async {
        let send = async {
            // The server may hang up before it has read everything.
            let _ = writer.write_all(request).await;
            // Kept open: an end of stream would tell the server that nothing follows.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = send => {}
            // A reset is an end as well: what came before it is what counts.
            _ = reader.read_to_end(&mut bytes) => {}
        }
    };
    let timed_out = tokio::time::timeout(patience, read).await.is_err();
    Exchange { bytes, timed_out }
}

/// The statuses of the answers that these bytes are, one after the other; interim answers (100) are left out.
///
/// # Errors
/// The words say what is not an answer.
pub(crate) fn statuses(mut bytes: &[u8]) -> Result<Vec<u16>, String> {
    let mut statuses = Vec::new();
    while !bytes.is_empty() {
        let (status, length) = answer(bytes)?;
        if status >= 200 {
            statuses.push(status);
        }
        bytes = &bytes[length..];
    }
    Ok(statuses)
}

/// The status and the whole length of the answer at the beginning of `bytes`.
pub(crate) fn answer(bytes: &[u8]) -> Result<(u16, usize), String> {
    let shown = || String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    let end = find(bytes, b"\r\n\r\n").ok_or_else(|| format!("no head: {:?}", shown()))? + 4;
    let head = std::str::from_utf8(&bytes[..end]).map_err(|error| error.to_string())?;
    let mut lines = head.split("\r\n");
    let status =
        lines.next().and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok());
    let status: u16 = status.ok_or_else(|| format!("no status line: {:?}", shown()))?;
    let header = |name: &str| {
        head.split("\r\n").skip(1).find_map(|line| {
            let (given, value) = line.split_once(':')?;
            given.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    if status < 200 || status == 204 || status == 304 {
        return Ok((status, end));
    }
    if header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        let last = find(&bytes[end..], b"\r\n0\r\n\r\n").ok_or("chunks without an end")?;
        return Ok((status, end + last + 7));
    }
    let length: usize = header("content-length")
        .and_then(|value| value.parse().ok())
        .ok_or_else(|| format!("an answer without a length: {:?}", shown()))?;
    if bytes.len() < end + length {
        return Err(format!("a body cut short: {:?}", shown()));
    }
    Ok((status, end + length))
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

/// A client that keeps its connection where the server does.
pub(crate) struct Client {
    address: SocketAddr,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, stream: None, buffer: Vec::new() }
    }

    /// A POST, and the status of its answer; the answer's body is in [`body`](Self::body).
    ///
    /// # Errors
    /// Anything but one whole answer: resets, ends of stream, bytes that are no answer.
    pub(crate) async fn post(
        &mut self,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> Result<u16, String> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let request = [head.as_bytes(), body].concat();
        self.send(&request).await
    }

    /// A whole request, and the status of its answer.
    ///
    /// # Errors
    /// As [`post`](Self::post).
    pub(crate) async fn send(&mut self, request: &[u8]) -> Result<u16, String> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => TcpStream::connect(self.address).await.map_err(|error| error.to_string())?,
        };
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        self.buffer.clear();
        let (mut reader, mut writer) = stream.split();
        let mut sent = false;
        let send = writer.write_all(request);
        let mut send = std::pin::pin!(send);
        let status = loop {
            if let Ok((status, length)) = answer(&self.buffer) {
                if length < self.buffer.len() {
                    return Err("more than one answer".to_owned());
                }
                break status;
            }
            tokio::select! {
                written = &mut send, if !sent => {
                    written.map_err(|error| format!("sending: {error}"))?;
                    sent = true;
                }
                read = reader.read_buf(&mut self.buffer) => {
                    let read = read.map_err(|error| format!("reading: {error}"))?;
                    if read == 0 {
                        return Err(format!("the connection ended after {} bytes", self.buffer.len()));
                    }
                }
            }
        };
        if sent && !self.closes() {
            self.stream = Some(stream);
        }
        Ok(status)
    }

    /// The last answer's body, as text.
    pub(crate) fn body(&self) -> String {
        let start = find(&self.buffer, b"\r\n\r\n").map_or(0, |end| end + 4);
        String::from_utf8_lossy(&self.buffer[start..]).into_owned()
    }

    fn closes(&self) -> bool {
        let end = find(&self.buffer, b"\r\n\r\n").unwrap_or(0);
        String::from_utf8_lossy(&self.buffer[..end]).to_lowercase().contains("connection: close")
    }
}
