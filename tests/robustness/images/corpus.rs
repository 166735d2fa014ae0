//! Files that are nearly pictures: valid ones of every variant, each damaged in one of a dozen ways. The file of a
//! number is always the same.

use std::path::Path;

use image::ImageFormat;

use super::super::bombs::png;
use super::super::random::Random;
use crate::support::inputs::picture;

/// Valid files and how to damage them.
pub(super) struct Corpus {
    /// Name and content.
    pub(super) seeds: Vec<(String, Vec<u8>)>,
}

/// Values at which lengths, sides and counts go wrong.
const EDGES: [u32; 12] =
    [0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];

impl Corpus {
    /// The pictures among the fixtures (every variant that the decoders know) and larger ones.
    pub(super) fn load() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let is_picture = |path: &std::path::PathBuf| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("jpg" | "png" | "gif" | "webp" | "bmp"))
        };
        let mut seeds: Vec<_> = files
            .filter(is_picture)
            .map(|path| {
                (
                    path.file_name().unwrap().to_string_lossy().into_owned(),
                    std::fs::read(path).unwrap(),
                )
            })
            .collect();
        let formats = [
            ImageFormat::Jpeg,
            ImageFormat::Png,
            ImageFormat::Gif,
            ImageFormat::WebP,
            ImageFormat::Bmp,
        ];
        for format in formats {
            // The WebP decoder takes a side of 16,384 for none.
            let long = if format == ImageFormat::WebP { 16_383 } else { 16_384 };
            for (width, height) in [(1, 1), (1, long), (long, 1), (97, 61)] {
                seeds.push((
                    format!("{format:?} {width}x{height}"),
                    picture(9, width, height, format),
                ));
            }
        }
        // Folders are read in no particular order.
        seeds.sort();
        Self { seeds }
    }

    /// The damaged file of a number.
    pub(super) fn file(&self, number: u64) -> Vec<u8> {
        let mut random = Random::new(0xc0de, number);
        let mut file = random.pick(&self.seeds).1.clone();
        for _ in 0..=random.below(3) {
            let other = &random.pick(&self.seeds).1;
            file = damaged(file, other, &mut random);
        }
        if random.below(2) == 0 {
            repair_checksums(&mut file);
        }
        file
    }
}

/// A file damaged in one way; `other` is what splices take the other half from.
pub(crate) fn damaged(mut file: Vec<u8>, other: &[u8], random: &mut Random) -> Vec<u8> {
    if file.is_empty() {
        return other.to_vec();
    }
    let length = file.len();
    // Headers are short and decide most, so half of the places are there.
    let place =
        if random.below(2) == 0 { random.below(length.min(64)) } else { random.below(length) };
    let end = (place + 1 + random.below(64)).min(length);
    match random.below(13) {
        0 => file.truncate(length * random.below(100) / 100),
        1 => (0..=random.below(8)).for_each(|_| {
            let at = random.below(length);
            file[at] ^= 1 << random.below(8);
        }),
        2 => file[place] = *random.pick(&EDGES) as u8,
        3 => overwrite(&mut file, place, &random.pick(&EDGES).to_be_bytes()),
        4 => overwrite(&mut file, place, &random.pick(&EDGES).to_le_bytes()),
        5 => overwrite(&mut file, place, &(*random.pick(&EDGES) as u16).to_be_bytes()),
        6 => overwrite(&mut file, place, &(*random.pick(&EDGES) as u16).to_le_bytes()),
        // A block again, away, elsewhere.
        7 => {
            let block = file[place..end].repeat(1 + random.below(20));
            file.splice(place..place, block);
        }
        8 => drop(file.drain(place..end)),
        9 => {
            let block: Vec<u8> = file.drain(place..end).collect();
            let at = random.below(file.len() + 1);
            file.splice(at..at, block);
        }
        // The beginning of one and the end of another: of other formats, too.
        10 => {
            let at = random.below(other.len());
            file.truncate(place);
            file.extend_from_slice(&other[at..]);
        }
        // One whole file inside or behind another.
        11 => {
            let at = if random.below(2) == 0 { length } else { place };
            file.splice(at..at, other.iter().copied());
        }
        _ => {
            let count = random.below(64);
            let noise = random.bytes(count);
            overwrite(&mut file, place, &noise);
        }
    }
    file
}

fn overwrite(file: &mut [u8], place: usize, with: &[u8]) {
    let end = (place + with.len()).min(file.len());
    file[place..end].copy_from_slice(&with[..end - place]);
}

/// Gives every chunk of a PNG the checksum of what it holds, so that damage gets past it.
fn repair_checksums(file: &mut [u8]) {
    let mut at = 8;
    while file.starts_with(b"\x89PNG")
        && let Some(head) = file.get(at..at + 4)
    {
        let length = u32::from_be_bytes(head.try_into().unwrap()) as usize;
        let Some(end) = at.checked_add(8 + length).filter(|end| end + 4 <= file.len()) else {
            return;
        };
        let sum = png::crc(&file[at + 4..end]).to_be_bytes();
        file[end..end + 4].copy_from_slice(&sum);
        at = end + 4;
    }
}
