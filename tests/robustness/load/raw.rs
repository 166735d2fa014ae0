//! Bare connections, for clients that do what no client should.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection.
pub(crate) async fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).await.expect("a connection");
    stream.set_nodelay(true).expect("an open connection");
    stream
}

/// Ends a connection: with a reset, or with an ordinary close.
pub(crate) fn abandon(stream: TcpStream, reset: bool) {
    if reset {
        // What ended already cannot be reset.
        let _ = stream.set_zero_linger();
    }
    drop(stream);
}

/// A whole answer's status and body, or `None` when the connection ended before the answer's end. Only for answers
/// with a length.
pub(crate) async fn read_answer(stream: &mut TcpStream) -> Option<(u16, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    loop {
        if let Some(answer) = whole(&bytes) {
            return Some(answer);
        }
        match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => bytes.extend_from_slice(&buffer[..read]),
            _ => return None,
        }
    }
}

/// The status and body of an answer that is all there.
fn whole(bytes: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).ok()?.to_ascii_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"))?;
    let length: usize = length.trim().parse().ok()?;
    let body = bytes.get(end..end + length)?;
    Some((status, body.to_vec()))
}

/// Writes `bytes` one by one, with this pause between them, until the server ends the connection.
pub(crate) async fn trickle(stream: &mut TcpStream, bytes: &[u8], pause: Duration) {
    let (mut reader, mut writer) = stream.split();
    let writing = async {
        for byte in bytes {
            // Once nobody listens, what the reader sees decides.
            if writer.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        std::future::pending::<()>().await;
    };
    let reading = async {
        let mut buffer = vec![0; 4096];
        while reader.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
}
