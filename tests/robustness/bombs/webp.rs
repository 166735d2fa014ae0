//! WebP files that promise much and hold little.

use super::bits::LowFirst;
use super::{Bomb, decoded, image, too_large, undecodable};

fn riff(chunks: &[u8]) -> Vec<u8> {
    let size = (chunks.len() as u32 + 4).to_le_bytes();
    [b"RIFF", &size[..], b"WEBP", chunks].concat()
}

fn chunk(name: [u8; 4], data: &[u8]) -> Vec<u8> {
    let padding = &[0][..data.len() % 2];
    [&name, &(data.len() as u32).to_le_bytes()[..], data, padding].concat()
}

/// The beginning of a lossless bitstream, up to where transforms may stand.
fn lossless_head((width, height): (u32, u32)) -> LowFirst {
    let mut bits = LowFirst::default();
    bits.put(0x2f, 8);
    bits.put(width - 1, 14);
    bits.put(height - 1, 14);
    bits.put(0, 1 + 3);
    bits
}

/// A code of one symbol, which takes no bits of data.
fn single(bits: &mut LowFirst, symbol: u32) {
    bits.put(0b101, 3);
    bits.put(symbol, 8);
}

/// A picture of one colour: no transform, no colour cache, one group of codes, no data.
fn lossless(sides: (u32, u32)) -> Vec<u8> {
    let mut bits = lossless_head(sides);
    bits.put(0b000, 3);
    (0..5).for_each(|_| single(&mut bits, 0));
    bits.put(0, 32);
    bits.finish()
}

/// One pixel, and before it 65,536 groups of codes, of which the first has 2,048 symbols of 11 bits each: 82 bits of
/// the file become some 50 KB of tables.
fn groups_of_codes() -> Vec<u8> {
    let mut bits = lossless_head((1, 1));
    // No transform; a colour cache of 2^11 entries makes the first alphabet large; an entropy image of one pixel.
    bits.put(0, 1);
    bits.put(1, 1);
    bits.put(11, 4);
    bits.put(1, 1);
    bits.put(0, 3);
    bits.put(0, 1);
    // Green and red 255: the group 65,535, so 65,536 of them follow.
    for symbol in [255, 255, 0, 0, 0] {
        single(&mut bits, symbol);
    }
    for _ in 0..65_536 {
        // Not simple, 15 lengths of code lengths, the last (of length 11) alone has a code, so it takes no bits.
        bits.put(0, 1);
        bits.put(11, 4);
        bits.put(0, 30);
        bits.put(0, 12);
        bits.put(1, 3);
        // 2,048 symbols.
        bits.put(1, 1);
        bits.put(5, 3);
        bits.put(2046, 12);
        (0..4).for_each(|_| bits.put(0b0001, 4));
    }
    bits.put(0, 32);
    bits.finish()
}

/// Compressed transparency: its head, then a prediction image of whatever size whose every pixel is a copy that takes
/// no bits.
const COPIES: [u8; 17] =
    [0x01, 0x01, 0x80, 0x20, 0xd1, 0xff, 0xb5, 0x88, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];

/// A picture that begins with such an image; its stream's head ends with a byte.
fn copies(sides: (u32, u32)) -> Vec<u8> {
    chunk(*b"VP8L", &[&lossless_head(sides).finish(), &COPIES[1..]].concat())
}

/// The same transform again and again, each with an image without bits.
fn transforms(sides: (u32, u32), count: usize) -> Vec<u8> {
    let mut bits = lossless_head(sides);
    for _ in 0..count {
        bits.put(0b000_001, 6);
        bits.put(0, 1);
        (0..5).for_each(|_| single(&mut bits, 0));
    }
    bits.put(0, 32);
    chunk(*b"VP8L", &bits.finish())
}

/// A frame of 2^24 a side, and its transparency.
fn frame_without_bits() -> Vec<u8> {
    let place = [&[0; 6][..], &[0xff; 6], &[0; 4]].concat();
    chunk(*b"ANMF", &[place, chunk(*b"ALPH", &COPIES), lossy((8, 8))].concat())
}

fn extended(flags: u8, (width, height): (u32, u32), chunks: &[u8]) -> Vec<u8> {
    let side = |side: u32| (side - 1).to_le_bytes()[..3].to_vec();
    let head = [&[flags, 0, 0, 0][..], &side(width), &side(height)].concat();
    riff(&[chunk(*b"VP8X", &head), chunks.to_vec()].concat())
}

fn animation(screen: (u32, u32), frame: (u32, u32), frames: usize) -> Vec<u8> {
    let side = |side: u32| (side - 1).to_le_bytes()[..3].to_vec();
    let place = [&[0; 6][..], &side(frame.0), &side(frame.1), &[1, 0, 0, 0]].concat();
    let frame = chunk(*b"ANMF", &[place, chunk(*b"VP8L", &lossless(frame))].concat());
    extended(2, screen, &[chunk(*b"ANIM", &[0; 6]), frame.repeat(frames)].concat())
}

/// A key frame of these sides whose data are zeros.
fn lossy((width, height): (u16, u16)) -> Vec<u8> {
    let sides = [width.to_le_bytes(), height.to_le_bytes()].concat();
    chunk(*b"VP8 ", &[b"\x10\x02\0\x9d\x01\x2a", &sides[..], &[0; 300]].concat())
}

pub(super) fn bombs() -> Vec<Bomb> {
    let mut lie = riff(&chunk(*b"VP8L", &lossless((8, 8))));
    lie[4..8].copy_from_slice(&[0xff; 4]);
    let mut long_chunk = riff(&chunk(*b"VP8L", &lossless((8, 8))));
    long_chunk[16..20].copy_from_slice(&[0xff; 4]);
    let pixel = chunk(*b"VP8L", &lossless((8, 8)));
    vec![
        image(
            "webp lossless 16,383 a side",
            riff(&chunk(*b"VP8L", &lossless((16_383, 16_383)))),
            too_large(),
        ),
        image(
            "webp lossless at the pixel cap",
            riff(&chunk(*b"VP8L", &lossless((8000, 6250)))),
            decoded(),
        ),
        image(
            "webp 65,536 groups of codes",
            riff(&chunk(*b"VP8L", &groups_of_codes())),
            too_large(),
        ),
        image(
            "webp 65,536 groups of codes in a frame",
            {
                let place = [&[0; 6][..], &[0; 6], &[1, 0, 0, 0]].concat();
                let frame = chunk(*b"ANMF", &[place, chunk(*b"VP8L", &groups_of_codes())].concat());
                extended(2, (1, 1), &[chunk(*b"ANIM", &[0; 6]), frame].concat())
            },
            too_large(),
        ),
        image("webp canvas of 2^24 a side", extended(0, (1 << 24, 1 << 24), &pixel), &[422]),
        image(
            "webp canvas of 16,384 x 3,000 around 8 x 8",
            extended(0, (16_384, 3000), &pixel),
            undecodable(),
        ),
        image("webp animation of 10,000 frames", animation((8, 8), (8, 8), 10_000), decoded()),
        image(
            "webp animation, canvas at the cap",
            animation((16_384, 3000), (8, 8), 100),
            decoded(),
        ),
        image("webp frame beyond its canvas", animation((8, 8), (16_384, 3000), 1), undecodable()),
        image("webp lossy frame of 16,383 a side", riff(&lossy((16_383, 16_383))), too_large()),
        image(
            "webp lossy frame beyond its canvas",
            extended(0, (8, 8), &lossy((16_383, 16_383))),
            undecodable(),
        ),
        image(
            "webp lossy frame at the cap without data",
            riff(&lossy((16_383, 3000))),
            &[200, 422],
        ),
        image(
            "webp of 500,000 unknown chunks",
            extended(0, (8, 8), &[chunk(*b"blip", b"").repeat(500_000), pixel.clone()].concat()),
            &[200, 422],
        ),
        image("webp of 2^32-1 bytes", lie, undecodable()),
        image("webp chunk of 2^32-1 bytes", long_chunk, &[200, 422]),
        image(
            "webp without a frame",
            extended(0, (8, 8), &chunk(*b"EXIF", &[0; 100])),
            undecodable(),
        ),
        image("webp copies without bits", riff(&copies((8000, 6250))), undecodable()),
        image("webp 100,000 transforms", riff(&transforms((8000, 6250), 100_000)), undecodable()),
        image(
            "webp frame of 2^24 a side behind a picture",
            riff(&[pixel.clone(), frame_without_bits()].concat()),
            decoded(),
        ),
        image(
            "webp animation of a frame of 2^24 a side",
            extended(2, (8, 8), &[chunk(*b"ANIM", &[0; 6]), frame_without_bits()].concat()),
            undecodable(),
        ),
        image(
            "webp ten pictures of 65,536 groups behind one",
            extended(
                0,
                (8, 8),
                &[pixel.clone(), chunk(*b"VP8L", &groups_of_codes()).repeat(10)].concat(),
            ),
            undecodable(),
        ),
    ]
}
