//! Mutations for files with checksums. Without them, a decoder rejects nearly every changed PNG at its first chunk.

use std::sync::LazyLock;

use libfuzzer_sys::fuzzer_mutate;

/// Size in bytes of the signature of a PNG.
const SIGNATURE: usize = 8;

/// Changes a picture file as libFuzzer does. In most PNGs, then writes correct checksums.
pub(crate) fn picture(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let size = fuzzer_mutate(data, size, max_size);
    if data.starts_with(b"\x89PNG") && seed % 16 != 0 {
        write_checksums(&mut data[..size]);
    }
    size
}

/// Writes the checksum of each chunk whose length the file contains.
fn write_checksums(file: &mut [u8]) {
    let mut at = SIGNATURE;
    while let Some(length) = file.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        let end = (at + 8).saturating_add(u32::from_be_bytes(*length) as usize);
        let Some(chunk) = file.get(at + 4..end) else { return };
        let checksum = crc32(chunk).to_be_bytes();
        let Some(place) = file.get_mut(end..end + 4) else { return };
        place.copy_from_slice(&checksum);
        at = end + 4;
    }
}

/// CRC-32 of ISO 3309, as PNG and zlib use it.
fn crc32(data: &[u8]) -> u32 {
    static TABLE: LazyLock<[u32; 256]> = LazyLock::new(|| {
        std::array::from_fn(|byte| {
            (0..8).fold(byte as u32, |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
        })
    });
    !data.iter().fold(!0, |crc, &byte| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)])
}
