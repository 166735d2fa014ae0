//! A fuzzing target that cannot fail finds nothing. `decode_claims` must contradict each claim of `inspect` that is
//! falsified here, and must accept the true one.

use std::fs;
use std::path::Path;
use std::time::Duration;

use blip_server::input::ImageHeader;
use blip_server::task::{ImageFormat, Pixels};
use image::codecs::{
    bmp::BmpEncoder, gif::GifEncoder, jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder,
};
use image::{ExtendedColorType, ImageEncoder};

use super::bombs::png;
use super::fuzz::targets::claims;

fn fixture(name: &str) -> Vec<u8> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images");
    fs::read(images.join(name)).unwrap()
}

fn header_of(file: &[u8]) -> ImageHeader {
    let header = claims::accepted(file).unwrap();
    assert_eq!(claims::contradiction(file, &header), None, "{header:?}");
    header
}

#[test]
fn a_false_format_size_or_amount_of_work_is_contradicted() {
    for name in ["exif-6.jpg", "rgba-16bit.png", "lossless-alpha.webp", "still.gif", "rgb.bmp"] {
        let file = fixture(name);
        let header = header_of(&file);
        let ImageHeader { format, width, height, work, .. } = header;
        let other = if format == ImageFormat::Bmp { ImageFormat::Gif } else { ImageFormat::Bmp };
        for falsified in [
            ImageHeader { format: other, ..header },
            ImageHeader { width: width - 1, ..header },
            ImageHeader { height: height + 1, ..header },
            ImageHeader { width: height * 2, height: width, ..header },
            ImageHeader { work: u64::from(width * height) - 1, ..header },
        ] {
            assert!(claims::contradiction(&file, &falsified).is_some(), "{name}: {falsified:?}");
        }
        let allowed = Duration::from_micros(work * 2).max(claims::SHORT);
        assert_eq!(claims::slower_than_announced(&header, allowed), None, "{name}");
        assert!(claims::slower_than_announced(&header, allowed * 2).is_some(), "{name}");
    }
}

/// Returns a picture of nearly the largest size that the target reads, in every format.
fn large_pictures() -> Vec<Vec<u8>> {
    let (width, height) = (400, 300);
    let pixels: Vec<u8> = (0..width * height * 4).map(|at| (at * 31 % 253) as u8).collect();
    let opaque: Vec<u8> = pixels.chunks(4).flat_map(|pixel| pixel[..3].to_vec()).collect();
    let mut files = vec![Vec::new(); 5];
    let (rgba, rgb) = (ExtendedColorType::Rgba8, ExtendedColorType::Rgb8);
    PngEncoder::new(&mut files[0]).write_image(&pixels, width, height, rgba).unwrap();
    WebPEncoder::new_lossless(&mut files[1]).write_image(&pixels, width, height, rgba).unwrap();
    GifEncoder::new(&mut files[2]).encode(&pixels, width, height, rgba).unwrap();
    JpegEncoder::new(&mut files[3]).write_image(&opaque, width, height, rgb).unwrap();
    BmpEncoder::new(&mut files[4]).encode(&opaque, width, height, rgb).unwrap();
    files
}

#[test]
fn less_memory_than_a_picture_takes_is_contradicted() {
    for file in large_pictures() {
        let header = header_of(&file);
        let falsified = ImageHeader { working_bytes: header.working_bytes / 4, ..header };
        let found = claims::contradiction(&file, &falsified).unwrap_or_default();
        assert!(found.starts_with("decoding took"), "{found}, {falsified:?}");
    }
}

/// The decoder of PNGs keeps the texts before the pixels, as UTF-8. The decoder of WebP files copies compressed data.
#[test]
fn memory_for_metadata_and_compressed_data_is_announced() {
    let text = png::chunk(*b"tEXt", &[&b"key\0"[..], &vec![0xe9; 600_000]].concat());
    let plain = fixture("rgb.png");
    let (start, rest) = plain.split_at(8 + 25);
    header_of(&[start, &text, rest].concat());

    let mut lossy = fixture("lossy.webp");
    lossy.resize(lossy.len().next_multiple_of(2) + 600_000, 0);
    let size = (lossy.len() as u32 - 8).to_le_bytes();
    lossy[4..8].copy_from_slice(&size);
    let place = lossy.windows(4).position(|name| name == b"VP8 ").unwrap() + 4;
    let size = ((lossy.len() - place - 4) as u32).to_le_bytes();
    lossy[place..place + 4].copy_from_slice(&size);
    header_of(&lossy);
}

#[test]
fn another_orientation_or_another_picture_is_contradicted() {
    let names =
        ["exif-2.jpg", "exif-3.jpg", "exif-6.jpg", "exif-6.png", "exif-6.webp", "exif-8.jpg"];
    for name in names {
        let file = fixture(name);
        let header = header_of(&file);
        let picture = claims::picture(&file, &header).unwrap();
        assert_eq!(claims::wrong_orientation(&file, &header, &picture), None, "{name}");
        let mut pixels = picture.as_bytes().to_vec();
        pixels.reverse();
        let other = Pixels::new(picture.width(), picture.height(), pixels);
        assert!(claims::wrong_orientation(&file, &header, &other).is_some(), "{name}");
        // A byte after the end of the file changes nothing.
        let (end, longer) = (file.len(), [&file[..], &[0]].concat());
        assert_eq!(claims::cut_differently(&longer, end, &picture), None, "{name}");
        assert!(claims::cut_differently(&longer, end, &other).is_some(), "{name}");
    }
}
