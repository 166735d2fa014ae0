//! PNG files that promise much and hold little.

use super::bits::zlib_zeros;
use super::{Bomb, decoded, image, too_large, undecodable};

pub(super) const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A chunk with its checksum.
pub(crate) fn chunk(name: [u8; 4], data: &[u8]) -> Vec<u8> {
    let named = [&name, data].concat();
    let length = (data.len() as u32).to_be_bytes();
    [&length[..], &named, &crc(&named).to_be_bytes()].concat()
}

/// CRC-32 of PNG and zip.
pub(crate) fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

/// Sides, bit depth, colour type, interlacing.
fn header((width, height): (u32, u32), depth: u8, colour: u8, interlaced: u8) -> Vec<u8> {
    let sides = [width.to_be_bytes(), height.to_be_bytes()].concat();
    chunk(*b"IHDR", &[&sides[..], &[depth, colour, 0, 0, interlaced]].concat())
}

fn file(parts: &[&[u8]]) -> Vec<u8> {
    [SIGNATURE, &parts.concat(), &chunk(*b"IEND", b"")].concat()
}

/// A picture of one colour whose `raw_bytes` are all there.
fn whole(header: &[u8], raw_bytes: u64) -> Vec<u8> {
    file(&[header, &chunk(*b"IDAT", &zlib_zeros(raw_bytes))])
}

/// 8 x 8 grey pixels and chunks before them.
fn with(extra: &[u8]) -> Vec<u8> {
    file(&[&header((8, 8), 8, 0, 0), extra, &chunk(*b"IDAT", &zlib_zeros(72))])
}

/// 48 megapixels of 8 bytes.
pub(crate) fn deepest() -> Vec<u8> {
    whole(&header((8000, 6000), 16, 6, 0), 384_006_000)
}

fn animated(frames: u32) -> Vec<u8> {
    let mut extra = chunk(*b"acTL", &[frames.to_be_bytes(), 0_u32.to_be_bytes()].concat());
    let control = |sequence: u32| {
        let fields = [sequence, 8, 8, 0, 0].map(u32::to_be_bytes).concat();
        chunk(*b"fcTL", &[&fields[..], &[0, 1, 0, 1, 0, 0]].concat())
    };
    extra.extend(control(0));
    let mut after = Vec::new();
    for frame in 0..frames {
        after.extend(control(frame * 2 + 1));
        let data = [&(frame * 2 + 2).to_be_bytes()[..], &zlib_zeros(72)].concat();
        after.extend(chunk(*b"fdAT", &data));
    }
    file(&[&header((8, 8), 8, 0, 0), &extra, &chunk(*b"IDAT", &zlib_zeros(72)), &after])
}

pub(super) fn bombs() -> Vec<Bomb> {
    let small = zlib_zeros(100);
    let gibibyte = 1 << 30;
    let profile = [b"bomb\0\0", &zlib_zeros(gibibyte)[..]].concat();
    let international = [b"bomb\0\x01\0\0\0", &zlib_zeros(gibibyte)[..]].concat();
    let lying_length = |name: &[u8; 4], length: u32| {
        [SIGNATURE, &header((8, 8), 8, 0, 0), &length.to_be_bytes(), name, &small].concat()
    };
    let tiny: Vec<u8> = zlib_zeros(72).iter().flat_map(|&byte| chunk(*b"IDAT", &[byte])).collect();
    vec![
        image(
            "png 50,000 x 50,000 of 1 bit",
            whole(&header((50_000, 50_000), 1, 0, 0), 1000),
            too_large(),
        ),
        image(
            "png 2^31-1 a side",
            whole(&header((0x7fff_ffff, 0x7fff_ffff), 8, 6, 0), 1000),
            too_large(),
        ),
        image(
            "png 2^32-1 a side",
            whole(&header((u32::MAX, u32::MAX), 8, 6, 0), 1000),
            undecodable(),
        ),
        image("png without pixels", whole(&header((0, 0), 8, 6, 0), 1000), undecodable()),
        image("png without a width", whole(&header((0, 100), 8, 6, 0), 1000), undecodable()),
        image("png one side too long", whole(&header((16_385, 1), 8, 0, 0), 16_386), too_large()),
        image("png colour profile of 1 GiB", with(&chunk(*b"iCCP", &profile)), &[200, 422]),
        image("png text of 1 GiB", with(&chunk(*b"zTXt", &profile)), &[200, 422]),
        image(
            "png international text of 1 GiB",
            with(&chunk(*b"iTXt", &international)),
            &[200, 422],
        ),
        image(
            "png 16-bit RGBA above the memory cap",
            whole(&header((8000, 6250), 16, 6, 0), 1000),
            too_large(),
        ),
        // 384 MB of the 403 that one picture may take.
        image("png 16-bit RGBA at the memory cap", deepest(), decoded()),
        image(
            "png interlaced grey of 16,384 x 3,000",
            whole(&header((16_384, 3000), 8, 0, 1), 49_300_000),
            &[200, 422],
        ),
        image(
            "png 50 megapixels in an IDAT of bytes",
            whole(&header((8000, 6250), 8, 2, 0), 1000),
            undecodable(),
        ),
        image(
            "png 1 bit at the pixel cap",
            whole(&header((8000, 6250), 1, 0, 0), 6_256_250),
            decoded(),
        ),
        image(
            "png profile of 5,000,000 line breaks",
            [
                SIGNATURE,
                &header((8, 8), 8, 0, 0),
                &chunk(*b"IDAT", &zlib_zeros(72)),
                &chunk(
                    *b"tEXt",
                    &[&b"Raw profile type exif\0"[..], &b"\n".repeat(5_000_000)].concat(),
                ),
                &chunk(*b"IEND", b""),
            ]
            .concat(),
            decoded(),
        ),
        image("png IDAT byte by byte", file(&[&header((8, 8), 8, 0, 0), &tiny]), decoded()),
        image(
            "png 100,000 text chunks",
            with(&chunk(*b"tEXt", b"a\0b").repeat(100_000)),
            &[200, 422],
        ),
        image(
            "png 500,000 empty unknown chunks",
            with(&chunk(*b"blIp", b"").repeat(500_000)),
            decoded(),
        ),
        image("png animation of 10,000 frames", animated(10_000), decoded()),
        image(
            "png animation of 2^31 frames and none",
            with(&chunk(*b"acTL", &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0])),
            &[200, 422],
        ),
        image("png chunk of 2^31-1 bytes", lying_length(b"IDAT", 0x7fff_ffff), undecodable()),
        image("png chunk of 2^32-1 bytes", lying_length(b"tEXt", u32::MAX), undecodable()),
        image("png palette of 2^24 bytes", lying_length(b"PLTE", 1 << 24), undecodable()),
    ]
}
