//! Checks that variants of containers and headers are read as Pillow 13 and transformers 5.23 read them. Each case is a
//! file with either the digest of its upright RGB pixels or the error that Pillow raises
//! (`tests/fixtures/make/containers.py`).

use super::{InputSettings, decode, image_id, inspect};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::fs;
use std::path::Path;

#[derive(Deserialize)]
struct ContainerGoldens {
    cases: Vec<ContainerCase>,
}

#[derive(Deserialize)]
struct ContainerCase {
    name: String,
    /// The file in base64; absent if `name` is the name of a fixture file.
    file: Option<String>,
    #[serde(flatten)]
    seen: PillowResult,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PillowResult {
    Picture { width: u32, height: u32, sha256: String },
    Refused { refused: String },
}

/// Names of the cases that are accepted here although Pillow raises an error: damaged metadata is no reason to reject a
/// picture, and a GIF with transparency and a local grey palette is valid.
const READ_ALL_THE_SAME: [&str; 2] =
    ["png/profile-damaged-stream", "gif/local-grey-table-transparent"];

fn fixture(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// Returns a description of how the result of a case differs from the expected one, or `None` if they agree.
fn difference(case: &ContainerCase) -> Option<String> {
    let file = case.file.as_ref().map(|file| STANDARD.decode(file).unwrap());
    let file = file.unwrap_or_else(|| fs::read(fixture("images").join(&case.name)).unwrap());
    let settings = InputSettings::default();
    let result = inspect(&file, &settings).and_then(|header| {
        let picture = decode(&file, &header, &settings, &|| false)?;
        Ok((header, picture))
    });
    match (result, &case.seen) {
        (Ok((_, picture)), PillowResult::Picture { width, height, sha256 }) => {
            let size = (picture.width(), picture.height());
            if size != (*width, *height) {
                return Some(format!("{size:?}, expected {width} x {height}"));
            }
            let digest = image_id(picture.as_bytes()).to_string();
            // Other goldens cover JPEG pixels, so for this file, only the width and height of the picture are compared.
            let exact = case.name != "field/exif-orientation-long.jpg";
            (exact && digest != format!("sha256:{sha256}")).then(|| "other pixels".to_owned())
        }
        (Ok(_), PillowResult::Refused { refused }) => {
            Some(format!("read, but Pillow raises {refused}"))
        }
        (Err(error), PillowResult::Picture { .. }) => Some(format!("refused: {error}")),
        (Err(_), PillowResult::Refused { .. }) => None,
    }
}

#[test]
fn every_container_is_read_as_pillow_reads_it() {
    let goldens = fs::read(fixture("images/containers.json")).unwrap();
    let goldens: ContainerGoldens = serde_json::from_slice(&goldens).unwrap();
    assert!(goldens.cases.len() >= 400);
    let mut wrong = Vec::new();
    for case in &goldens.cases {
        let name = &*case.name;
        let difference = difference(case);
        let known = READ_ALL_THE_SAME.contains(&name);
        match difference {
            Some(difference) if !known => wrong.push(format!("{name}: {difference}")),
            None if known => wrong.push(format!("{name}: equal, so no difference any more")),
            Some(_) | None => {}
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
