//! Checks that the result of `decode` matches the header that `inspect` returns: the picture has the size in the
//! header, and decoding needs no more memory than the header says. The inputs are valid files of every format, files
//! built so that two parsers could read them differently, and thousands of damaged and spliced files. All inputs are
//! the same in every run.

use image::codecs::{gif::GifEncoder, jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder};
use image::{ExtendedColorType, ImageEncoder};
use safetensors::SafeTensors;
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

use super::memory::tally;
use super::{ImageHeader, InputError, InputSettings, Stop, decode, inspect};
use crate::task::Pixels;

/// Returns small limits, because each of thousands of damaged files may claim the largest picture that the limits
/// allow.
fn settings() -> InputSettings {
    let (max_pixels, max_side, max_decoded_bytes) = (1 << 17, 4096, 1 << 21);
    InputSettings { max_pixels, max_side, max_decoded_bytes, ..InputSettings::default() }
}

const NEVER: Stop<'static> = &|| false;

/// Inspects and decodes a file. Returns three values: the header; the result of decoding; and the peak memory of
/// decoding in bytes. Returns `None` if `inspect` rejects the file.
fn read(file: &[u8]) -> Option<(ImageHeader, Result<Pixels, InputError>, u64)> {
    let header = inspect(file, &settings()).ok()?;
    let (peak, picture) = tally::peak(|| decode(file, &header, &settings(), NEVER));
    Some((header, picture, peak))
}

/// Memory in bytes that a decoder may take beyond what is announced: its small buffers, which a budget of many megabytes
/// does not need to count.
const SMALL_BUFFERS: u64 = 4 << 10;

/// Returns a description of how the result of decoding a file contradicts its header, or `None` if they agree.
fn disagreement(file: &[u8]) -> Option<String> {
    let (header, picture, peak) = read(file)?;
    if peak > header.working_bytes + SMALL_BUFFERS {
        return Some(format!("{peak} bytes, {header:?} announced"));
    }
    let picture = picture.ok()?;
    let (size, stored) = ((picture.width(), picture.height()), (header.width, header.height));
    let turned = (size.1, size.0);
    (stored != size && stored != turned).then(|| format!("{size:?}, {header:?} announced"))
}

/// Deterministic pseudo-random numbers (`SplitMix64`).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bits = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) % end.max(1) as u64) as usize
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Returns every file of the JPEG goldens.
fn jpegs() -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    for name in ["files.safetensors", "lossless.safetensors"] {
        let bytes = fs::read(fixtures().join("jpeg").join(name)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        files.extend(tensors.tensors().into_iter().map(|(_, file)| file.data().to_vec()));
    }
    files
}

/// Returns the image fixtures, the stored fuzzing corpus of the formats other than JPEG, and a few encoded pictures.
/// Files of 64 KiB or more are left out.
fn others() -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    let corpus = fixtures().with_file_name("fuzz").join("corpus");
    let formats = ["decode_png", "decode_webp", "decode_gif", "decode_bmp"];
    let folders = formats.map(|name| corpus.join(name)).into_iter();
    for folder in folders.chain([fixtures().join("images")]) {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut paths: Vec<_> = entries.filter(|path| path.is_file()).collect();
        paths.sort();
        files.extend(paths.iter().map(|path| fs::read(path).unwrap()));
    }
    files.extend(encoded((40, 30)));
    files.retain(|file| file.len() < 1 << 16);
    files
}

/// Encodes a colourful RGBA picture of this size as PNG, lossless WebP and GIF.
fn encoded((width, height): (u32, u32)) -> Vec<Vec<u8>> {
    let pixels: Vec<u8> = (0..width * height)
        .flat_map(|at| {
            [at % 251, at / 7 % 256, at * 13 % 256, at % 2 * 255].map(|value| value as u8)
        })
        .collect();
    let mut files = vec![Vec::new(); 3];
    let colour = ExtendedColorType::Rgba8;
    PngEncoder::new(&mut files[0]).write_image(&pixels, width, height, colour).unwrap();
    WebPEncoder::new_lossless(&mut files[1]).write_image(&pixels, width, height, colour).unwrap();
    GifEncoder::new(&mut files[2]).encode(&pixels, width, height, colour).unwrap();
    files
}

fn jpeg((width, height): (u32, u32)) -> Vec<u8> {
    let pixels: Vec<u8> = (0..width * height * 3).map(|at| (at * 31 % 253) as u8).collect();
    let mut file = Vec::new();
    JpegEncoder::new(&mut file)
        .write_image(&pixels, width, height, ExtendedColorType::Rgb8)
        .unwrap();
    file
}

fn segment(marker: u8, data: &[u8]) -> Vec<u8> {
    [&[0xff, marker][..], &(data.len() as u16 + 2).to_be_bytes(), data].concat()
}

/// Splits a valid JPEG. Returns its segments from the first one after SOI to the first SOS, and the bytes after them.
fn segments(file: &[u8]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut found = Vec::new();
    let mut at = 2;
    while let Some(&[0xff, code, high, low]) = file.get(at..).and_then(|rest| rest.first_chunk()) {
        let end = at + 2 + usize::from(u16::from_be_bytes([high, low]));
        let Some(whole) = file.get(at..end) else { break };
        found.push(whole.to_vec());
        at = end;
        if code == 0xda {
            break;
        }
    }
    (found, file[at.min(file.len())..].to_vec())
}

fn is_frame(segment: &[u8]) -> bool {
    matches!(segment, [0xff, 0xc0..=0xc3 | 0xc9..=0xcb, ..])
}

/// Codes of the markers that have no segment, and one code without a meaning (0x02).
const ALONE: [u8; 12] = [0x01, 0xd0, 0xd1, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0x02];

#[test]
fn a_frame_hidden_behind_a_marker_changes_neither_size_nor_memory() {
    let (small, large) = (jpeg((16, 8)), jpeg((64, 48)));
    let frame = |file: &[u8]| {
        segments(file).0.into_iter().find(|segment| is_frame(segment)).expect("it has a frame")
    };
    let mut seen = 0;
    for (decoy, file) in [(&small, &large), (&large, &small)] {
        let decoy_frame = frame(decoy);
        let (parts, rest) = segments(file);
        let size = {
            let header = inspect(file, &settings()).unwrap();
            (header.width, header.height)
        };
        // A DNL segment (define number of lines) with the height of the decoy frame.
        let lines = segment(0xdc, &decoy_frame[5..7]);
        let mut hidden: Vec<Vec<u8>> = ALONE
            .iter()
            .flat_map(|&code| {
                let alone = vec![0xff, code];
                let length = ((decoy_frame.len() + 2) as u16).to_be_bytes().to_vec();
                // The decoy frame is hidden in three ways: directly after the stand-alone marker; after the same marker
                // inside an APP5 segment; and after the marker plus two length bytes. A reader that expects a length
                // after every marker would take those two bytes and the frame for a segment.
                [
                    [alone.clone(), decoy_frame.clone()].concat(),
                    segment(0xe5, &[alone.clone(), decoy_frame.clone()].concat()),
                    [alone, length, decoy_frame.clone()].concat(),
                ]
            })
            .collect();
        hidden.push(decoy_frame.clone());
        hidden.push(lines.clone());
        hidden.push(segment(0xe1, &[b"Exif\0\0", &decoy[..]].concat()));
        hidden.push(segment(0xfe, decoy));
        hidden.push(segment(0xc8, &decoy_frame));
        hidden.push(segment(0xf0, &decoy_frame));
        for hidden in hidden {
            for place in 0..=parts.len() {
                let (before, after) = parts.split_at(place);
                let file =
                    [b"\xff\xd8", &before.concat()[..], &hidden, &after.concat(), &rest].concat();
                assert_eq!(disagreement(&file), None, "{hidden:x?} at {place}");
                let Some((header, picture, _)) = read(&file) else { continue };
                if picture.is_ok() {
                    seen += 1;
                    let decoy_wins = place < parts.len() && (header.width, header.height) != size;
                    assert!(!decoy_wins, "{hidden:x?} at {place}: {header:?}");
                }
            }
        }
    }
    assert!(seen > 100, "{seen} files were read");
}

#[test]
fn what_a_jpeg_is_announced_to_take_is_what_it_takes() {
    let mut exact = 0;
    for (index, file) in jpegs().iter().enumerate() {
        assert_eq!(disagreement(file), None, "{index}");
        let Some((header, Ok(picture), peak)) = read(file) else { continue };
        let rgb = picture.as_bytes().len() as u64;
        // The header counts memory for applying the orientation, for metadata and for smoothing even if the file does
        // not need it.
        let others = (rgb * 2).max(file.len() as u64 * 3);
        let close = peak >= header.working_bytes * 3 / 4;
        assert!(close || header.working_bytes == others, "{index}: {peak}, {header:?}");
        exact += u32::from(peak == header.working_bytes);
    }
    assert!(exact > 150, "{exact} files took what was announced");
}

/// Returns one of `files` with one to three markers, segments or scans inserted and some bytes changed. The inserted
/// parts may come from another file or be nested in a segment.
fn spliced(files: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let file = &files[random.below(files.len())];
    let other = &files[random.below(files.len())];
    let (mut parts, mut rest) = segments(file);
    let (others, other_rest) = segments(other);
    for _ in 0..=random.below(3) {
        let place = random.below(parts.len() + 1);
        let foreign = others.get(random.below(others.len())).cloned().unwrap_or_default();
        let part = match random.below(8) {
            0 => vec![0xff, ALONE[random.below(ALONE.len())]],
            1 => [vec![0xff, ALONE[random.below(ALONE.len())]], foreign].concat(),
            2 => segment(0xe0 + random.below(32) as u8, &foreign),
            3 => segment(0xdc, &[random.below(3) as u8, random.below(256) as u8]),
            4 => others.iter().find(|part| is_frame(part)).cloned().unwrap_or_default(),
            5 => {
                // At most 4,096 bytes: the start of another file, or of that file's data after its first SOS segment.
                let whole = if random.below(2) == 0 { other } else { &other_rest };
                whole[..whole.len().min(4096)].to_vec()
            }
            6 => vec![0xff; random.below(5)],
            _ => foreign,
        };
        parts.insert(place, part);
    }
    if random.below(4) == 0 {
        rest = other_rest;
    }
    let mut file = [b"\xff\xd8", &parts.concat()[..], &rest].concat();
    damage(&mut file, random);
    file
}

/// Changes up to three bytes, mostly in the header, and sometimes truncates the file.
fn damage(file: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..random.below(4) {
        let end = if random.below(3) > 0 { file.len().min(400) } else { file.len() };
        let at = random.below(end);
        if let Some(byte) = file.get_mut(at) {
            *byte = match random.below(3) {
                0 => *byte ^ (1 << random.below(8)),
                1 => [0, 1, 2, 0x11, 0x22, 0x44, 0x7f, 0xff][random.below(8)],
                _ => random.below(256) as u8,
            };
        }
    }
    if random.below(20) == 0 {
        file.truncate(random.below(file.len()));
    }
}

#[test]
fn thousands_of_spliced_jpegs_are_read_as_announced() {
    let files = jpegs();
    let (mut read_through, mut announced) = (0, 0);
    for round in 0..6000 {
        let file = spliced(&files, &mut Random(round));
        let difference = disagreement(&file);
        assert_eq!(difference, None, "round {round}: {:x?}", &file[..file.len().min(600)]);
        if round % 8 == 0
            && let Some((_, picture, _)) = read(&file)
        {
            announced += 1;
            read_through += u32::from(picture.is_ok());
        }
    }
    assert!(announced > 100 && read_through > 50, "{announced} announced, {read_through} read");
}

#[test]
fn thousands_of_damaged_files_of_other_formats_are_read_as_announced() {
    let files = others();
    let mut announced = 0;
    for round in 0..6000 {
        let random = &mut Random(round);
        let mut file = files[random.below(files.len())].clone();
        if random.below(5) == 0 {
            let other = &files[random.below(files.len())];
            let at = random.below(file.len() + 1);
            file.splice(at..at, other.iter().copied());
        }
        damage(&mut file, random);
        let outcome = std::panic::catch_unwind(|| (disagreement(&file), read(&file).is_some()));
        // A decoder may panic on a damaged file. In production, `images` catches the panic.
        let Ok((difference, read)) = outcome else { continue };
        assert_eq!(difference, None, "round {round}: {:x?}", &file[..file.len().min(600)]);
        announced += u32::from(read);
    }
    assert!(announced > 300, "{announced} announced");
}

/// Encodes a 16-bit RGBA PNG of this size and inserts a chunk after IHDR.
fn deep_png((width, height): (u32, u32), name: [u8; 4], data: &[u8]) -> Vec<u8> {
    let pixels: Vec<u8> = (0..width * height * 8).map(|at| (at * 7 % 256) as u8).collect();
    let mut file = Vec::new();
    PngEncoder::new(&mut file)
        .write_image(&pixels, width, height, ExtendedColorType::Rgba16)
        .unwrap();
    let named = [&name, data].concat();
    let crc = !named.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
        })
    });
    let chunk = [&(data.len() as u32).to_be_bytes()[..], &named, &crc.to_be_bytes()].concat();
    file.splice(33..33, chunk);
    file
}

#[test]
fn a_turned_picture_of_the_deepest_pixels_takes_what_was_announced() {
    let exif = |orientation| {
        [b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0", &[orientation, 0, 0][..], &[0; 4]]
            .concat()
    };
    for orientation in 1..=8 {
        let file = deep_png((160, 120), *b"eXIf", &exif(orientation));
        assert_eq!(disagreement(&file), None, "{orientation}");
        let (header, picture, peak) = read(&file).unwrap();
        let picture = picture.unwrap();
        let size = if orientation > 4 { (120, 160) } else { (160, 120) };
        assert_eq!((picture.width(), picture.height()), size, "{orientation}");
        // 8 bytes per pixel for the decoded picture, and 3 for the picture with its orientation applied.
        assert_eq!(header.working_bytes, 160 * 120 * 11);
        assert!(peak >= 160 * 120 * 8, "{peak}");
    }
}

#[test]
fn a_profile_in_hexadecimal_takes_no_more_than_the_file() {
    let text = [&b"Raw profile type exif\0"[..], &b"\n".repeat(400_000)].concat();
    let file = deep_png((8, 8), *b"tEXt", &text);
    assert_eq!(disagreement(&file), None);
    let (_, picture, peak) = read(&file).unwrap();
    assert!(picture.is_ok() && peak <= file.len() as u64, "{peak}");
}

#[test]
fn a_canvas_counts_like_a_picture() {
    // A GIF with a screen of this size and a frame of one pixel in its corner.
    let gif = |width: u16, height: u16| {
        let sides = [width.to_le_bytes(), height.to_le_bytes()].concat();
        [
            b"GIF89a",
            &sides[..],
            b"\x80\0\0\0\0\0\xff\xff\xff\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x4c\x01\0\x3b",
        ]
        .concat()
    };
    let settings = InputSettings { max_decoded_bytes: 4 * 300 * 200, ..settings() };
    assert!(inspect(&gif(300, 200), &settings).is_ok());
    let refused = inspect(&gif(300, 201), &settings).unwrap_err();
    assert!(matches!(refused, InputError::DecodedImageTooLarge { .. }), "{refused}");
    assert_eq!(disagreement(&gif(300, 200)), None);
}

/// Returns one valid file for every format and coding process, each too large for the reader to fetch in a single read.
fn kinds() -> Vec<Vec<u8>> {
    let mut files = encoded((120, 90));
    files.push(jpeg((120, 90)));
    files.push(deep_png(
        (160, 120),
        *b"eXIf",
        b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
    ));
    for (archive, name) in [
        ("files.safetensors", "luma-bit-by-bit 2x2"),
        ("files.safetensors", "planes-apart 2x2 -arithmetic"),
        ("lossless.safetensors", "luma apart"),
    ] {
        let bytes = fs::read(fixtures().join("jpeg").join(archive)).unwrap();
        files.push(SafeTensors::deserialize(&bytes).unwrap().tensor(name).unwrap().data().to_vec());
    }
    // Two BMP files: one with 24 bits per pixel, and one with runs of a single colour (RLE8).
    let bmp = |depth: u16, compression: u32, data: &[u8]| {
        let head = [54_u32, 40, 64, 48].map(u32::to_le_bytes).concat();
        let more = [compression, 0, 0, 0, 2, 0].map(u32::to_le_bytes).concat();
        [b"BM\0\0\0\0\0\0\0\0", &head[..], &1_u16.to_le_bytes(), &depth.to_le_bytes(), &more, data]
            .concat()
    };
    files.push(bmp(24, 0, &[7; 64 * 48 * 3]));
    let mut runs = bmp(8, 1, &[&[9; 8][..], &[64, 1, 0, 0].repeat(48), &[0, 1]].concat());
    runs[10] = 62;
    files.push(runs);
    files
}

/// Inspects a file and decodes it with this `stop` callback.
fn decode_until(file: &[u8], stop: Stop<'_>) -> Result<Pixels, InputError> {
    let header = inspect(file, &settings()).unwrap();
    decode(file, &header, &settings(), stop)
}

#[test]
fn a_decode_stops_at_whichever_poll_tells_it_to() {
    for (index, file) in kinds().iter().enumerate() {
        let asked = Cell::new(0);
        let expected = decode_until(file, &|| {
            asked.set(asked.get() + 1);
            false
        });
        assert!(expected.is_ok(), "{index}: {expected:?}");
        let questions = asked.get();
        assert!(questions >= 3, "{index} asks {questions} times");
        for last in (1..=questions).step_by(questions / 20 + 1) {
            asked.set(0);
            let stopped = decode_until(file, &|| {
                asked.set(asked.get() + 1);
                asked.get() >= last
            });
            assert_eq!(
                stopped,
                Err(InputError::Stopped),
                "{index}: question {last} of {questions}"
            );
            assert_eq!(asked.get(), last, "{index}: it went on");
        }
    }
}

#[test]
fn whichever_buffer_cannot_be_had_the_file_is_refused_for_that() {
    for (index, file) in kinds().iter().enumerate() {
        let (buffers, whole) = tally::count(|| decode_until(file, NEVER));
        assert!(whole.is_ok() && buffers > 0, "{index}: {whole:?}");
        for which in 0..buffers {
            let refused = tally::without(which, || {
                inspect(file, &settings())
                    .and_then(|header| decode(file, &header, &settings(), NEVER))
            });
            let memory = matches!(refused, Err(InputError::OutOfMemory { bytes: 1.. }));
            assert!(memory, "{index}: buffer {which} of {buffers}: {refused:?}");
        }
    }
}
