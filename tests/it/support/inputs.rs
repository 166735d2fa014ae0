//! What tests send: pictures, base64, multipart bodies, a vocabulary.

use std::io::Cursor;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, Rgb, RgbImage};

/// The boundary of every [`Multipart`].
pub(crate) const BOUNDARY: &str = "----blip-test-boundary";

/// A 4 x 3 PNG of one colour whose red is `mark`: the scripted backend knows images by that byte.
pub(crate) fn png(mark: u8) -> Vec<u8> {
    picture(mark, 4, 3, ImageFormat::Png)
}

/// A picture of one colour.
pub(crate) fn picture(mark: u8, width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let image = RgbImage::from_pixel(width, height, Rgb([mark, 20, 30]));
    let mut file = Cursor::new(Vec::new());
    image.write_to(&mut file, format).expect("an encoder for every accepted format");
    file.into_inner()
}

/// Bytes as an image value.
pub(crate) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The id that a client computes for a file.
pub(crate) fn image_id(file: &[u8]) -> String {
    blip_server::input::image_id(file).to_string()
}

/// A multipart body under construction.
#[derive(Default)]
pub(crate) struct Multipart(Vec<u8>);

impl Multipart {
    /// Adds a text part.
    pub(crate) fn text(self, name: &str, value: &str) -> Self {
        self.part(&format!("name=\"{name}\""), value.as_bytes())
    }

    /// Adds a part with a file name.
    pub(crate) fn file(self, name: &str, bytes: &[u8]) -> Self {
        self.part(&format!("name=\"{name}\"; filename=\"x.bin\""), bytes)
    }

    fn part(mut self, disposition: &str, bytes: &[u8]) -> Self {
        let head = format!("--{BOUNDARY}\r\ncontent-disposition: form-data; {disposition}\r\n\r\n");
        self.0.extend_from_slice(head.as_bytes());
        self.0.extend_from_slice(bytes);
        self.0.extend_from_slice(b"\r\n");
        self
    }

    /// The body with its end.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
        self.0
    }
}

/// Writes a vocabulary laid out as the official one (`[CLS]` 101, `[SEP]` 102), with every letter and digit, and
/// words at 1000..2000, where the scripted backend takes its tokens from; every tenth is the end of a word.
pub(crate) fn write_vocabulary(directory: &Path) {
    let special = |id: usize| match id {
        0 => "[PAD]".to_owned(),
        100 => "[UNK]".to_owned(),
        101 => "[CLS]".to_owned(),
        102 => "[SEP]".to_owned(),
        103 => "[MASK]".to_owned(),
        other => format!("[unused{other}]"),
    };
    let mut lines: Vec<String> = (0..104).map(special).collect();
    let characters = ('a'..='z').chain('0'..='9').chain("?.,'!-".chars());
    lines.extend(characters.clone().map(String::from));
    lines.extend(characters.map(|c| format!("##{c}")));
    lines.extend((lines.len()..1000).map(|id| format!("[unused{id}]")));
    let word =
        |id: usize| if id.is_multiple_of(10) { format!("##s{id}") } else { format!("word{id}") };
    lines.extend((1000..2000).map(word));
    std::fs::write(directory.join("vocab.txt"), lines.join("\n")).expect("a writable directory");
}
