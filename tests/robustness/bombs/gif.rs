//! GIF files that promise much and hold little.

use super::{Bomb, decoded, image, too_large, undecodable};

/// Screen of these sides and a palette of two colours.
fn screen((width, height): (u16, u16)) -> Vec<u8> {
    let sides = [width.to_le_bytes(), height.to_le_bytes()].concat();
    [b"GIF89a", &sides[..], b"\x80\0\0\0\0\0\xff\xff\xff"].concat()
}

/// A frame of these sides with the data of one pixel.
fn frame((width, height): (u16, u16)) -> Vec<u8> {
    let sides = [width.to_le_bytes(), height.to_le_bytes()].concat();
    [b"\x2c\0\0\0\0", &sides[..], b"\0\x02\x02\x4c\x01\0"].concat()
}

/// A frame of these sides and one colour, as uncompressed codes: a clear code every hundred pixels.
fn filled(width: u16, height: u16) -> Vec<u8> {
    let mut bits = super::bits::LowFirst::default();
    // Code size 7: codes of 8 bits, which the clear code (128) keeps from growing.
    for pixel in 0..u32::from(width) * u32::from(height) {
        if pixel % 100 == 0 {
            bits.put(128, 8);
        }
        bits.put(0, 8);
    }
    bits.put(129, 8);
    let mut file =
        [b"\x2c\0\0\0\0", &width.to_le_bytes()[..], &height.to_le_bytes(), b"\0\x07"].concat();
    for block in bits.finish().chunks(255) {
        file.push(block.len() as u8);
        file.extend_from_slice(block);
    }
    file.push(0);
    file
}

pub(super) fn bombs() -> Vec<Bomb> {
    let whole = |sides, frames: &[u8]| [&screen(sides), frames, b"\x3b"].concat();
    let comment = b"\x21\xfe\x01x\0".repeat(1_000_000);
    let controls = b"\x21\xf9\x04\x01\0\0\x00\0".repeat(500_000);
    vec![
        image("gif screen of 65,535 a side", whole((65_535, 65_535), &frame((1, 1))), too_large()),
        image(
            "gif frame of 65,535 a side on a small screen",
            whole((1, 1), &frame((65_535, 65_535))),
            too_large(),
        ),
        image("gif 10,000 frames", whole((16, 16), &frame((1, 1)).repeat(10_000)), decoded()),
        image(
            "gif 10,000 frames, the screen at the cap",
            whole((16_384, 3000), &frame((1, 1)).repeat(10_000)),
            decoded(),
        ),
        image(
            "gif frame at the cap in twelve bytes",
            whole((16_384, 3000), &frame((16_384, 3000))),
            &[200, 422],
        ),
        image(
            "gif 9 megapixels pixel by pixel",
            whole((3000, 3000), &filled(3000, 3000)),
            decoded(),
        ),
        image(
            "gif 1,000,000 comments",
            whole((8, 8), &[comment, frame((8, 8))].concat()),
            &[200, 422],
        ),
        image(
            "gif 500,000 control blocks",
            whole((8, 8), &[controls, frame((8, 8))].concat()),
            &[200, 422],
        ),
        image("gif without pixels", whole((0, 0), &frame((0, 0))), undecodable()),
        image(
            "gif sub-blocks without an end",
            [
                screen((8, 8)),
                b"\x21\xfe".to_vec(),
                [&[255_u8][..], &[7; 255]].concat().repeat(30_000),
            ]
            .concat(),
            undecodable(),
        ),
        image(
            "gif of 10 MiB without a block",
            [screen((8, 8)), vec![1; 10_000_000]].concat(),
            undecodable(),
        ),
    ]
}
