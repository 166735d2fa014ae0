//! Bodies in chunks of one byte: neither does memory grow with their number, nor are more taken than the setting.

use std::time::Duration;

use super::memory::{growth_mib, resident_bytes};
use super::wire::{exchange, statuses};
use crate::support::TestServer;

const PATIENCE: Duration = Duration::from_secs(60);

/// A caption's request whose body of so many bytes comes byte by byte.
fn request(chunks: usize) -> Vec<u8> {
    let head = "POST /caption HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    [head.as_bytes(), &b"1\r\n \r\n".repeat(chunks), b"0\r\n\r\n"].concat()
}

/// Sends so many chunks so often; the growth of this process over all rounds but the first, in MiB.
async fn send(rounds: usize, chunks: usize, status: u16) -> f64 {
    let server = TestServer::start(|_| ()).await;
    let request = request(chunks);
    let mut before = 0;
    for round in 0..rounds {
        let answer = exchange(server.address, &request, PATIENCE).await;
        assert_eq!(statuses(&answer.bytes), Ok(vec![status]));
        if round == 0 {
            before = resident_bytes();
        }
    }
    let growth = growth_mib(before);
    server.stop().await;
    growth
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_a_byte_are_read_up_to_their_number_and_refused_above_it() {
    // White space is no JSON: read to its end, then refused for what it is.
    send(2, 60_000, 400).await;
    send(3, 1_000_000, 413).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long"]
async fn long() {
    let read = send(100, 60_000, 400).await;
    eprintln!("100 x 60,000 chunks, all read: {read:.2} MiB of growth");
    let refused = send(100, 1_000_000, 413).await;
    eprintln!("100 x 1,000,000 chunks, refused: {refused:.2} MiB of growth");
    assert!(read < 1.0 && refused < 1.0, "{read} {refused}");
}
