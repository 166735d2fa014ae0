//! The inputs that fuzzing has kept, replayed without a fuzzer: what was found once stays found. `tests/fuzz` holds the
//! fuzzing programs, their targets and the inputs.

#[path = "../fuzz/targets/mod.rs"]
pub(crate) mod targets;

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use self::targets::{allocations, bodies, checkpoint, claims, decode, text};
use super::images::corpus::damaged;
use super::random::Random;

/// Counts what decoding allocates, for `decode_claims`.
#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

/// What a fuzzer calls with its bytes.
type Target = fn(&[u8]);

/// Every target by its name, as `cargo fuzz` knows it.
const TARGETS: [(&str, Target); 16] = [
    ("decode_jpeg", decode::jpeg),
    ("decode_png", decode::png),
    ("decode_webp", decode::webp),
    ("decode_gif", decode::gif),
    ("decode_bmp", decode::bmp),
    ("decode_claims", claims::claims),
    ("image_value", text::image_value),
    ("prompt", text::prompt),
    ("json", bodies::json),
    ("multipart", bodies::multipart),
    ("query", bodies::query),
    ("compatible", bodies::compatible),
    ("bulk", bodies::bulk),
    ("checkpoint", checkpoint::checkpoint),
    ("pickle", checkpoint::pickle),
    ("h5", checkpoint::h5),
];

/// The kept inputs of a target, for those of pictures the fixtures too, and for `decode_claims` those of every format.
fn inputs(name: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut inputs = files(&root.join("fuzz/corpus").join(name));
    assert!(!inputs.is_empty(), "{name} has no inputs");
    if name.starts_with("decode") {
        inputs.extend(files(&root.join("fixtures/images")));
    }
    if name == "decode_claims" {
        let formats = TARGETS.iter().map(|(other, _)| *other).filter(|other| *other != name);
        let formats = formats.filter(|other| other.starts_with("decode"));
        inputs.extend(formats.flat_map(|other| files(&root.join("fuzz/corpus").join(other))));
    }
    inputs.sort();
    inputs
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect()
}

#[test]
fn every_kept_input_passes_its_target() {
    for (name, target) in TARGETS {
        for input in inputs(name) {
            // The name of a failing input stands before its panic.
            eprintln!("{name} {}", input.display());
            target(&std::fs::read(&input).unwrap());
        }
    }
}

#[test]
fn every_target_has_its_program_and_its_dictionary() {
    let manifest = include_str!("../fuzz/Cargo.toml");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/dictionaries");
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        // `decode_claims` takes those of all formats.
        let dictionary = folder.join(format!("{name}.dict"));
        assert!(name == "decode_claims" || dictionary.is_file(), "{}", dictionary.display());
    }
}

/// Damages the kept inputs at random: no coverage guides it, but it needs no other toolchain.
#[test]
#[ignore = "long"]
fn long() {
    const ROUNDS: u64 = 50_000;
    for (name, target) in TARGETS {
        let read = |path: &PathBuf| std::fs::read(path).unwrap();
        let kept: Vec<Vec<u8>> = inputs(name).iter().map(read).collect();
        let (start, mut slowest) = (Instant::now(), Duration::ZERO);
        for round in 0..ROUNDS {
            let mut random = Random::new(0xf022, round);
            let mut input = random.pick(&kept).clone();
            for _ in 0..=random.below(4) {
                let other: &Vec<u8> = random.pick(&kept);
                input = damaged(input, other, &mut random);
            }
            let began = Instant::now();
            let outcome = catch_unwind(|| target(&input));
            assert!(outcome.is_ok(), "{name}, round {round}: {:?}", &input[..input.len().min(200)]);
            slowest = slowest.max(began.elapsed());
        }
        eprintln!("{name}: {ROUNDS} rounds in {:?}, slowest {slowest:?}", start.elapsed());
    }
}
