//! Compares several hundred variants of JPEG with Pillow 13: the decoder must return the same pixels as Pillow, or
//! reject the files that Pillow rejects. `jpegs.py` and `lossless_jpegs.py` of `tests/fixtures/make` write the
//! fixtures.

use super::decode::{WorkLimit, decode};
use super::error::JpegError;
use crate::input::image_id;
use safetensors::SafeTensors;
use serde::Deserialize;
use std::fs;
use std::path::Path;

#[derive(Deserialize)]
struct JpegGoldens {
    cases: Vec<JpegCase>,
}

#[derive(Deserialize)]
struct JpegCase {
    name: String,
    width: Option<u32>,
    height: Option<u32>,
    /// `None` if Pillow rejects the file.
    sha256: Option<String>,
}

fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jpeg");
    fs::read(folder.join(name)).unwrap()
}

/// Cases without EOI. Pillow accepts such a file only if its bit reader happens to have loaded the last bits already.
/// This decoder accepts all these files, because no sample is missing.
const READ_HERE: [&str; 3] =
    ["no end marker", "restarts, no end marker", "together, no end marker"];

#[test]
fn every_kind_has_the_pixels_of_pillow_or_is_refused_as_there() {
    compare("cases.json", "files.safetensors", 504);
}

#[test]
fn every_lossless_kind_has_the_pixels_of_pillow_or_is_refused_as_there() {
    compare("lossless.json", "lossless.safetensors", 156);
}

fn compare(cases: &str, files: &str, count: usize) {
    let goldens: JpegGoldens = serde_json::from_slice(&fixture(cases)).unwrap();
    let files = fixture(files);
    let files = SafeTensors::deserialize(&files).unwrap();
    assert_eq!(goldens.cases.len(), count);
    let mut wrong = Vec::new();
    for case in goldens.cases {
        let file = files.tensor(&case.name).unwrap();
        let decoded = decode(file.data(), WorkLimit { max_blocks: 1 << 20 }, &|| false);
        let right = match (&decoded, &case.sha256) {
            (Ok(decoded), Some(sha256)) => {
                (Some(decoded.width), Some(decoded.height)) == (case.width, case.height)
                    && image_id(&decoded.data).to_string() == format!("sha256:{sha256}")
            }
            (Ok(_), None) => READ_HERE.contains(&&*case.name),
            (Err(_), Some(_)) => false,
            (Err(_), None) => true,
        };
        if !right {
            wrong.push((case.name, decoded.map(|decoded| (decoded.width, decoded.height))));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_file_without_its_end_marker_is_read_as_with_it() {
    let files = fixture("files.safetensors");
    let files = SafeTensors::deserialize(&files).unwrap();
    let pixels = |name| {
        decode(files.tensor(name).unwrap().data(), WorkLimit { max_blocks: 1 << 20 }, &|| false)
            .unwrap()
            .data
    };
    assert!(pixels("no end marker") == pixels("comment"));
}

#[test]
fn a_file_cut_anywhere_is_refused_or_whole() {
    let names = ["comment", "luma-bit-by-bit 2x2", "planes-apart 2x2 -arithmetic"];
    cut_anywhere("files.safetensors", &names);
    cut_anywhere("lossless.safetensors", &["bytes behind the end", "luma apart"]);
}

fn cut_anywhere(files: &str, names: &[&str]) {
    let files = fixture(files);
    let files = SafeTensors::deserialize(&files).unwrap();
    for name in names {
        let whole = files.tensor(name).unwrap();
        let (whole, limits) = (whole.data(), WorkLimit { max_blocks: 1 << 20 });
        let pixels = decode(whole, limits, &|| false).unwrap().data;
        for length in 0..whole.len() {
            match decode(&whole[..length], limits, &|| false) {
                Ok(decoded) => assert!(decoded.data == pixels, "{name} {length}"),
                Err(error) => assert_eq!(error, JpegError::Truncated, "{name} {length}"),
            }
        }
    }
}

#[test]
fn scans_beyond_the_limit_are_refused() {
    let files = fixture("files.safetensors");
    let files = SafeTensors::deserialize(&files).unwrap();
    let file = files.tensor("luma-bit-by-bit 2x2").unwrap();
    let error = decode(file.data(), WorkLimit { max_blocks: 1000 }, &|| false).unwrap_err();
    assert_eq!(error, JpegError::TooMuchWork);
}

#[test]
fn samples_of_lossless_scans_count_by_eight() {
    let files = fixture("lossless.safetensors");
    let files = SafeTensors::deserialize(&files).unwrap();
    let file = files.tensor("larger").unwrap();
    let needed = (67_u64 * 45 * 3).div_ceil(8) + 256;
    assert!(decode(file.data(), WorkLimit { max_blocks: needed }, &|| false).is_ok());
    let error = decode(file.data(), WorkLimit { max_blocks: needed - 1 }, &|| false).unwrap_err();
    assert_eq!(error, JpegError::TooMuchWork);
}

/// Pillow reads 64 KiB at a time and stops once it has all rows of a single-scan file, so it never sees errors beyond
/// the last read.
#[test]
fn damage_behind_the_last_read_of_pillow_is_no_damage() {
    let cases = [("files.safetensors", "comment"), ("lossless.safetensors", "larger")];
    for (files, name) in cases {
        let files = fixture(files);
        let files = SafeTensors::deserialize(&files).unwrap();
        let whole = files.tensor(name).unwrap().data();
        let pixels = |gap: usize| {
            let mut file = whole[..whole.len() - 2].to_vec();
            file.resize(gap, 0);
            // The marker of a frame whose process libjpeg does not support.
            file.extend(b"\xff\xc7\xff\xd9");
            decode(&file, WorkLimit { max_blocks: 1 << 20 }, &|| false).map(|decoded| decoded.data)
        };
        let expected = decode(whole, WorkLimit { max_blocks: 1 << 20 }, &|| false).unwrap().data;
        assert!(pixels(1 << 16) == Ok(expected), "{name}");
        assert!(pixels((1 << 16) - 2).is_err(), "{name}");
    }
}
