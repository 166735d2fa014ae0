//! BMP files, and files of other formats.

use super::bits::zlib_zeros;
use super::{Bomb, decoded, image, too_large, undecodable, unsupported};

/// Both headers: sides, bits a pixel, compression, colours of the palette.
fn head((width, height): (i32, i32), depth: u16, compression: u32, colours: u32) -> Vec<u8> {
    let offset = 54_u32 + if depth <= 8 { 4 << depth } else { 0 };
    [
        b"BM",
        &[0; 8][..],
        &offset.to_le_bytes(),
        &40_u32.to_le_bytes(),
        &width.to_le_bytes(),
        &height.to_le_bytes(),
        &1_u16.to_le_bytes(),
        &depth.to_le_bytes(),
        &compression.to_le_bytes(),
        &[0; 12],
        &colours.to_le_bytes(),
        &[0; 4],
    ]
    .concat()
}

pub(super) fn bombs() -> Vec<Bomb> {
    let palette = vec![0; 1024];
    let rle = |sides, data: &[u8]| [&head(sides, 8, 1, 0), &palette[..], data].concat();
    let cap = (16_384, 3000);
    let mut far = head((8, 8), 24, 0, 0);
    far[10..14].copy_from_slice(&[0xff; 4]);
    let gzip = [&b"\x1f\x8b\x08\0\0\0\0\0\0\x03"[..], &zlib_zeros(1 << 26)[2..]].concat();
    let entity = |name: u8, of: u8| {
        format!(
            "<!ENTITY {0} \"{1}\">",
            char::from(name),
            format!("&{};", char::from(of)).repeat(10)
        )
    };
    let laughs: String = (b'b'..=b'j').map(|name| entity(name, name - 1)).collect();
    vec![
        image("bmp 40 bits a pixel", [head((64, 64), 40, 0, 0), vec![0; 64 * 64 * 5]].concat(), undecodable()),
        image("bmp 65,535 bits a pixel", [head((64, 64), u16::MAX, 0, 0), vec![0; 4096]].concat(), undecodable()),
        image("bmp runs that end at once, at the cap", rle(cap, b"\0\x01"), &[200, 422]),
        image("bmp runs that jump about", rle((1000, 1000), &b"\0\x02\xff\xff".repeat(100_000)), &[200, 422]),
        image("bmp runs of nothing", rle((1000, 1000), &b"\0\0".repeat(4_000_000)), &[200, 422]),
        image("bmp at the cap without data", head(cap, 24, 0, 0), undecodable()),
        image("bmp 2^31-1 a side", head((i32::MAX, i32::MAX), 24, 0, 0), too_large()),
        image("bmp of height -2^31", head((1, i32::MIN), 24, 0, 0), &[422]),
        image("bmp of negative width", head((-8, 8), 24, 0, 0), undecodable()),
        image("bmp palette of 2^32-1 colours", [head((8, 8), 8, 0, u32::MAX), vec![0; 2000]].concat(), undecodable()),
        image("bmp pixels 4 GiB away", far, undecodable()),
        image("bmp one pixel", [head((1, 1), 24, 0, 0), vec![0; 4]].concat(), decoded()),
        image("svg of a billion laughs", format!("<?xml version=\"1.0\"?><!DOCTYPE svg [<!ENTITY a \"ha\">{laughs}]><svg xmlns=\"http://www.w3.org/2000/svg\">&j;</svg>").into_bytes(), unsupported()),
        image("gzip where an image is wanted", gzip, unsupported()),
        image("pdf", b"%PDF-1.7\n1 0 obj".to_vec(), unsupported()),
        image("tiff of width 2^31-1", b"II*\0\x08\0\0\0\x01\0\0\x01\x04\0\x01\0\0\0\xff\xff\xff\x7f".to_vec(), unsupported()),
        image("nothing but zeros", vec![0; 10 << 20], unsupported()),
        image("an image of one byte more than is taken", vec![0; (10 << 20) + 1], &[413]),
    ]
}
