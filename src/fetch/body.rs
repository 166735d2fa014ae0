//! The answer of a host, bounded: nothing but a 200 with plain bytes, and no more of them than an image file may have.

use bytes::Bytes;
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use reqwest::{Response, StatusCode};

use super::error::Failure;

/// Most pieces that a file may arrive in: 160 bytes each for the largest one. Tiny ones cost far more than they bring.
const MAX_PIECES: usize = 65_536;

/// Reads the image file. The announced length is believed only where it refuses.
pub(super) async fn read(mut response: Response, max_bytes: usize) -> Result<Bytes, Failure> {
    check_head(&response, max_bytes)?;
    let (mut body, mut pieces) = (Vec::<u8>::new(), 0);
    // Copied together: one-byte pieces, each in a buffer of its own, would take many times the limit.
    while let Some(piece) = response.chunk().await.map_err(|_| Failure::Unreachable)? {
        pieces += 1;
        let length = body.len() + piece.len();
        if length > max_bytes || pieces > MAX_PIECES {
            return Err(Failure::TooLarge);
        }
        if length > body.capacity() {
            // Doubled, but never above the largest file.
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
    // It was asked for as it is; a bomb in gzip is not unpacked.
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
