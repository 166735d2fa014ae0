//! Estimates the cost of decoding from the scan headers.
//!
//! Scan headers are found by searching the rest of the file for the bytes of an SOS marker. Every scan that the decoder
//! reads begins with these bytes, so none is missed. False matches can only make the file look more expensive.

use super::frame::{Component, Frame};
use super::header::Scan;
use super::scan::{is_multi_scan, scan_cost, work_of_scan};
use super::source::marker;

/// Number of bytes that are searched for 0xFF together. Vector instructions compare all bytes of a chunk at once, and
/// the many chunks without 0xFF are skipped.
const CHUNK: usize = 64;
/// Cost of traversing a block without data; the unit is one pixel of a plain JPEG (see `ImageHeader::work`). Measured
/// at 50 megapixels: 11 ns per pixel, and for 781,250 blocks 28 ms (DC refinement), 150 ms (AC refinement), 80 ms
/// (arithmetic coding), 100 ms (lossless).
const PIXELS_PER_BLOCK: u64 = 4;
/// Cost of decoding a byte of Huffman-coded data; the unit is one pixel of a plain JPEG.
const PIXELS_PER_BYTE: u64 = 3;
/// Cost of decoding a byte of arithmetic-coded data; the unit is one pixel of a plain JPEG.
const PIXELS_PER_ARITHMETIC_BYTE: u64 = 8;

/// Returns the estimated cost of decoding; the unit is one pixel of a plain JPEG. `rest` is the part of the file after
/// the header of the first scan.
pub(super) fn estimate(frame: &Frame, first_scan: &Scan, rest: &[u8]) -> u64 {
    let pixels = (frame.width * frame.height) as u64;
    let per_byte =
        if frame.process.arithmetic { PIXELS_PER_ARITHMETIC_BYTE } else { PIXELS_PER_BYTE };
    // Each pixel costs an IDCT and a colour conversion. In a multi-scan file, its coefficients are also stored.
    let (times, later) =
        if is_multi_scan(frame, first_scan) { (2, later_scans(frame, rest)) } else { (1, 0) };
    let blocks = work_of_scan(frame, first_scan).saturating_add(later);
    (pixels * times)
        .saturating_add(blocks.saturating_mul(PIXELS_PER_BLOCK))
        .saturating_add(rest.len() as u64 * per_byte)
}

/// Returns the work of all scans after the first one, in blocks (see `scan::work_of_scan`).
fn later_scans(frame: &Frame, rest: &[u8]) -> u64 {
    let mut total = 0_u64;
    for (index, chunk) in rest.chunks(CHUNK).enumerate() {
        // There is no early exit, so that the compiler can use vector instructions.
        if chunk.iter().map(|&byte| u8::from(byte == 0xff)).sum::<u8>() == 0 {
            continue;
        }
        for (place, _) in chunk.iter().enumerate().filter(|(_, byte)| **byte == 0xff) {
            let behind = &rest[index * CHUNK + place + 1..];
            total = total.saturating_add(scan_work(frame, behind).unwrap_or(0));
        }
    }
    total
}

/// Returns the work of the scan whose header is at the start of `found`. `found` begins after the 0xFF of the SOS
/// marker. Returns `None` if `found` does not begin with a scan header.
fn scan_work(frame: &Frame, found: &[u8]) -> Option<u64> {
    let (&[code, _, _, count], behind) = found.split_first_chunk()?;
    if code != marker::SOS || !(1..=4).contains(&count) {
        return None;
    }
    let (listed, parameters) = behind.split_at_checked(usize::from(count) * 2)?;
    let &[first, last, approximation] = parameters.first_chunk()?;
    // Several components may have the same id. The largest of these components gives an upper bound.
    let largest = |id| {
        let named = frame.components.iter().filter(|component| component.id == id);
        named.map(blocks).max().unwrap_or(0)
    };
    let walked = listed.as_chunks::<2>().0.iter().map(|&[id, _]| largest(id)).sum();
    Some(scan_cost(frame.process, walked, (first, last, approximation >> 4)))
}

fn blocks(component: &Component) -> u64 {
    (component.padded_width * component.padded_height) as u64
}

#[cfg(test)]
mod tests {
    use super::super::decode::read_header;

    fn segment(marker: u8, data: &[u8]) -> Vec<u8> {
        [&[0xff, marker][..], &(data.len() as u16 + 2).to_be_bytes(), data].concat()
    }

    /// Returns the estimated work of a file of 64 x 64 pixels with three components. `frame` is the SOF marker; each
    /// item of `scans` lists the components of one scan.
    fn work(frame: u8, scans: &[&[u8]]) -> u64 {
        let mut file = b"\xff\xd8".to_vec();
        file.extend(segment(frame, b"\x08\0\x40\0\x40\x03\x01\x22\0\x02\x11\0\x03\x11\0"));
        for components in scans {
            let listed: Vec<u8> = components.iter().flat_map(|&id| [id, 0]).collect();
            let head = [&[components.len() as u8][..], &listed, &[0, 63, 0]].concat();
            // Entropy-coded data with byte stuffing, longer than two chunks.
            file.extend([segment(0xda, &head), b"\xff\0".repeat(70)].concat());
        }
        file.extend(b"\xff\xd9");
        read_header(&file).unwrap().work
    }

    #[test]
    fn every_scan_that_is_read_counts_by_what_it_walks_over() {
        let pixels = 64 * 64;
        // Number of bytes after the header of the first scan: the data of all scans, the other scan headers, and EOI.
        let bytes = |scans: u64, listed: u64| 140 * scans + 2 + 8 * (scans - 1) + 2 * listed;
        // Luma has 64 blocks, each chroma component 16; each scan costs 256 more.
        let all = 96 + 256;
        assert_eq!(work(0xc0, &[&[1, 2, 3]]), pixels + 4 * all + 3 * bytes(1, 0));
        // If the first scan has all components, a second scan is not decoded.
        let twice = work(0xc0, &[&[1, 2, 3], &[1, 2, 3]]);
        assert_eq!(twice, pixels + 4 * all + 3 * bytes(2, 3));
        let apart = work(0xc0, &[&[1], &[2], &[3]]);
        assert_eq!(apart, 2 * pixels + 4 * (all + 512) + 3 * bytes(3, 2));
        let progressive = work(0xc2, &[&[1, 2, 3], &[1], &[1]]);
        assert_eq!(progressive, 2 * pixels + 4 * (all + 2 * (64 + 256)) + 3 * bytes(3, 2));
        let arithmetic = work(0xca, &[&[1, 2, 3]]);
        assert_eq!(arithmetic, 2 * pixels + 4 * (2 * 96 + 256) + 8 * bytes(1, 0));
    }
}
