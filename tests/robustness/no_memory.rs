//! A process that the system gives no more memory: a picture that needs it is refused, and nothing else happens.

use std::time::Duration;

use super::bombs::png::deepest;
use super::load::process::Process;
use super::wire::{exchange, statuses};

const PATIENCE: Duration = Duration::from_secs(120);
/// Enough for a small picture and everything around it, too little for 384 MB of pixels.
const LEFT_BYTES: u64 = 200 << 20;

/// A caption's request for a picture file.
fn request(file: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /caption HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/octet-stream\r\ncontent-length: {}\r\n\r\n",
        file.len()
    );
    [head.as_bytes(), file].concat()
}

/// A BMP of one pixel in this shade.
fn small(shade: u8) -> Vec<u8> {
    let head = [58_u32, 0, 54, 40, 1, 1].map(u32::to_le_bytes).concat();
    let more = [1_u32 | 24 << 16, 0, 4, 0, 0, 0, 0].map(u32::to_le_bytes).concat();
    [b"BM", &head[..], &more, &[shade, shade, shade, 0]].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_that_no_memory_holds_is_refused_and_the_process_lives() {
    let server = Process::mock(&[], &[]);
    let address = server.address();
    let answer = async |file: &[u8]| exchange(address, &request(file), PATIENCE).await;
    assert_eq!(statuses(&answer(&small(1)).await.bytes), Ok(vec![200]));
    server.limit_address_space(LEFT_BYTES);
    let deepest = deepest();
    for round in 2..5 {
        let refused = answer(&deepest).await;
        let told = String::from_utf8_lossy(&refused.bytes).into_owned();
        assert_eq!(statuses(&refused.bytes), Ok(vec![503]), "{told}");
        assert!(told.contains("\"overloaded\"") && told.contains("retry-after"), "{told}");
        // Another picture, so that no cache answers.
        let answered = answer(&small(round)).await;
        let told = String::from_utf8_lossy(&answered.bytes).into_owned();
        assert_eq!(statuses(&answered.bytes), Ok(vec![200]), "{told}");
    }
    server.stop().await;
}
