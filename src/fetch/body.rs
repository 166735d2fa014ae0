//! Reads a host's response within bounds: status 200, no content encoding, no more bytes than an image file may have.

use bytes::Bytes;
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use reqwest::{Response, StatusCode};

use super::error::Failure;

/// Maximum number of chunks of a file. A file of the default maximum size may arrive in chunks of 160 bytes each; for
/// smaller chunks, the overhead is out of proportion to the data.
const MAX_PIECES: usize = 65_536;

/// Reads the image file. The declared length (`Content-Length`) is used only to reject a file early.
pub(super) async fn read(mut response: Response, max_bytes: usize) -> Result<Bytes, Failure> {
    check_head(&response, max_bytes)?;
    let (mut body, mut pieces) = (Vec::<u8>::new(), 0);
    // Chunks are copied into one buffer. If each chunk had its own buffer, one-byte chunks would take many times the
    // limit.
    while let Some(piece) = response.chunk().await.map_err(|_| Failure::Unreachable)? {
        pieces += 1;
        let length = body.len() + piece.len();
        if length > max_bytes || pieces > MAX_PIECES {
            return Err(Failure::TooLarge);
        }
        if length > body.capacity() {
            // Double the capacity, up to the maximum size of a file.
            let capacity = (2 * body.capacity()).clamp(length, max_bytes);
            body.reserve_exact(capacity - body.len());
        }
        body.extend_from_slice(&piece);
    }
    Ok(Bytes::from(body))
}

fn check_head(response: &Response, max_bytes: usize) -> Result<(), Failure> {
    if response.status() != StatusCode::OK {
        return Err(Failure::Status);
    }
    let headers = response.headers();
    // The request asks for no encoding. A compressed body, which may be a gzip bomb, is never decompressed.
    if headers.get_all(CONTENT_ENCODING).iter().any(|encoding| encoding != "identity") {
        return Err(Failure::Status);
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    match length.map(str::parse::<u64>) {
        Some(Ok(length)) if length > max_bytes as u64 => Err(Failure::TooLarge),
        Some(Ok(_)) | None => Ok(()),
        Some(Err(_)) => Err(Failure::Unreachable),
    }
}
