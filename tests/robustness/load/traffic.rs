//! What is asked: every kind of call, with pictures that come again and pictures that nobody has seen, and calls that
//! are wrong on purpose.

use std::io::Cursor;

use bytes::Bytes;
use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};

use super::chance::Chance;
use crate::support::inputs::picture;

/// Pictures that come again and again.
const KNOWN: u8 = 16;
/// One in so many requests is wrong on purpose.
const WRONG: u64 = 25;
/// Statuses of requests that are wrong on purpose.
pub(crate) const WRONG_STATUSES: [u16; 4] = [400, 404, 415, 422];

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) method: &'static str,
    pub(crate) target: String,
    pub(crate) content_type: Option<&'static str>,
    pub(crate) body: Bytes,
}

impl Ask {
    /// A GET.
    pub(crate) fn get(target: &str) -> Self {
        Self { method: "GET", target: target.to_owned(), content_type: None, body: Bytes::new() }
    }

    /// A picture as the body of a POST.
    pub(crate) fn picture(target: &str, picture: Bytes) -> Self {
        Self {
            method: "POST",
            target: target.to_owned(),
            content_type: Some("application/octet-stream"),
            body: picture,
        }
    }

    /// A POST of JSON.
    pub(crate) fn json(target: &str, body: &str) -> Self {
        Self {
            method: "POST",
            target: target.to_owned(),
            content_type: Some("application/json"),
            body: Bytes::copy_from_slice(body.as_bytes()),
        }
    }

    /// Its bytes on the wire; `id` names it in the server's log.
    pub(crate) fn to_bytes(&self, id: &str) -> Vec<u8> {
        let content_type = self.content_type.map(|value| format!("content-type: {value}\r\n"));
        let head = format!(
            "{} {} HTTP/1.1\r\nhost: x\r\nx-request-id: {id}\r\n{}content-length: {}\r\n\r\n",
            self.method,
            self.target,
            content_type.unwrap_or_default(),
            self.body.len()
        );
        [head.as_bytes(), &self.body].concat()
    }
}

/// The pictures, drawn once.
#[derive(Debug, Clone)]
pub(crate) struct Traffic {
    known: Vec<Bytes>,
}

impl Traffic {
    /// Draws the pictures.
    pub(crate) fn new() -> Self {
        let known = (0..KNOWN).map(|mark| picture(mark, 64, 48, image::ImageFormat::Png).into());
        Self { known: known.collect() }
    }

    /// The `index`-th request: all endpoints take turns, one in twenty-five is wrong on purpose.
    pub(crate) fn mixed(&self, index: u64) -> Ask {
        if index % WRONG == WRONG - 1 { self.wrong(index / WRONG) } else { self.right(index) }
    }

    /// The `index`-th request of those that are right.
    pub(crate) fn right(&self, index: u64) -> Ask {
        let known = self.known[index as usize % self.known.len()].clone();
        match index % 8 {
            0 | 1 => Ask::picture("/caption", known),
            2 => Ask::picture("/caption", self.unseen(index)),
            3 => Ask::picture("/vqa?question=what%20is%20it", known),
            4 => Ask::picture("/similarity?texts=a%20cat&texts=a%20dog", known),
            5 => Ask::picture("/embeddings", self.unseen(index)),
            6 => Ask::json("/embeddings", r#"{"text": "two cats"}"#),
            _ => Ask::json("/embeddings/batch", r#"{"inputs": [{"text": "a"}, {"text": "b"}]}"#),
        }
    }

    /// A picture that no other index gives: the text chunk behind its end is its own.
    pub(crate) fn unseen(&self, index: u64) -> Bytes {
        let mut file = self.known[index as usize % self.known.len()].to_vec();
        let chunk = text_chunk(&format!("number\0{index}"));
        // Before the last chunk, IEND, which takes twelve bytes.
        let place = file.len() - 12;
        file.splice(place..place, chunk);
        file.into()
    }

    fn wrong(&self, index: u64) -> Ask {
        match index % 5 {
            0 => Ask::json("/caption", "{\"image\": "),
            1 => Ask::json("/embeddings", r#"{"text": "a", "colour": "red"}"#),
            2 => Ask::picture("/caption", Bytes::from_static(b"no picture at all")),
            3 => Ask::json("/nowhere", "{}"),
            _ => Ask::picture("/caption", self.known[0].slice(..self.known[0].len() / 2)),
        }
    }
}

/// A picture of this size, as cameras make them: 12 megapixels are some megabytes.
pub(crate) fn photograph((width, height): (u32, u32)) -> Bytes {
    let mut chance = Chance::new(6);
    let picture = RgbImage::from_fn(width, height, |x, y| {
        let grain = chance.next();
        let light =
            |shift: u32| ((x / 16 + y / 12) as u8 / 2).wrapping_add((grain >> shift) as u8 & 15);
        Rgb([light(8), light(16), light(24)])
    });
    let mut file = Cursor::new(Vec::new());
    JpegEncoder::new_with_quality(&mut file, 85).encode_image(&picture).unwrap();
    file.into_inner().into()
}

/// The photograph with a comment of its own behind the two bytes that begin a JPEG.
pub(crate) fn numbered(photograph: &[u8], number: u64) -> Bytes {
    let comment = [&[0xff, 0xfe, 0, 10][..], &number.to_be_bytes()].concat();
    [&photograph[..2], &comment, &photograph[2..]].concat().into()
}

/// A PNG text chunk.
fn text_chunk(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).expect("a short text");
    let typed = [b"tEXt", text.as_bytes()].concat();
    [&length.to_be_bytes()[..], &typed, &checksum(&typed).to_be_bytes()].concat()
}

/// CRC-32 as PNG has it.
fn checksum(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 };
        }
    }
    !sum
}

#[test]
fn unseen_pictures_differ_and_can_be_decoded() {
    let traffic = Traffic::new();
    assert_ne!(traffic.unseen(1), traffic.unseen(1 + u64::from(KNOWN)));
    image::load_from_memory(&traffic.unseen(3)).expect("a picture");
    assert_eq!(checksum(b"IEND"), 0xae42_6082);
}
