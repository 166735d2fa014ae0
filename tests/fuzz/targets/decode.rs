//! Picture files, one target a format.

use blip_server::input::{InputSettings, ResizeOrder, decode, inspect, resize, sniff_format};
use blip_server::task::{ImageFormat, Preprocessing};

pub(crate) fn jpeg(data: &[u8]) {
    file(ImageFormat::Jpeg, data);
}

pub(crate) fn png(data: &[u8]) {
    file(ImageFormat::Png, data);
}

pub(crate) fn webp(data: &[u8]) {
    file(ImageFormat::WebP, data);
}

pub(crate) fn gif(data: &[u8]) {
    file(ImageFormat::Gif, data);
}

pub(crate) fn bmp(data: &[u8]) {
    file(ImageFormat::Bmp, data);
}

/// Small limits, so that what a file may cost stays far below what a fuzzer allows.
fn settings() -> InputSettings {
    let (max_pixels, max_side, max_decoded_bytes) = (1 << 20, 4096, 16 << 20);
    InputSettings { max_pixels, max_side, max_decoded_bytes, ..InputSettings::default() }
}

/// A file that is refused is refused with an error; a picture has the size that its header said.
fn file(format: ImageFormat, data: &[u8]) {
    let settings = settings();
    if sniff_format(data) != Ok(format) {
        return;
    }
    let Ok(header) = inspect(data, &settings) else { return };
    assert_eq!(header.format, format);
    let pixels = u64::from(header.width) * u64::from(header.height);
    assert!((1..=settings.max_pixels).contains(&pixels), "{header:?}");
    let Ok(picture) = decode(data, &header, &settings, &|| false) else { return };
    let (width, height) = (picture.width(), picture.height());
    assert!([(width, height), (height, width)].contains(&(header.width, header.height)));
    assert_eq!(picture.as_bytes().len() as u64, pixels * 3);
    let pixels = resize(&picture, Preprocessing::bicubic(8, 8), ResizeOrder::Pillow13).unwrap();
    assert_eq!(pixels.as_bytes().len(), 8 * 8 * 3);
}
