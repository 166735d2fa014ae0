//! Finds the files of one checkpoint in a directory with the hub's layout. Checks only which files exist and how they
//! are named. Parses no file but the weight index: it names the shards, which must be inside the directory.

use std::collections::BTreeSet;
use std::fs::FileType;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::HubError;
use super::towers::Towers;
use crate::document::{self, ObjectFields};

/// The paths of all files that a loader opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointFiles {
    /// The directory that holds the files; for a hub checkpoint, its snapshot in the cache.
    pub directory: PathBuf,
    /// Path of `config.json`, which every checkpoint has.
    pub config: PathBuf,
    /// The weight files, safetensors if present.
    pub weights: WeightFiles,
    /// The file that holds the vocabulary; may be `None` only for a checkpoint without a text tower.
    pub tokenizer: Option<TokenizerFiles>,
    /// Files that define the tokenizer's class, options and added tokens, if they exist.
    pub tokenizer_options: Vec<PathBuf>,
    /// Path of `preprocessor_config.json`, if it exists.
    pub preprocessor: Option<PathBuf>,
    /// Path of `processor_config.json`, if it exists. This newer format has the fields of `preprocessor_config.json`
    /// under `image_processor`. At least one of `preprocessor` and `processor` is set, except for a checkpoint without a
    /// vision tower.
    pub processor: Option<PathBuf>,
    /// The commit of a hub checkpoint; `None` for a directory.
    pub revision: Option<String>,
}

/// The weight files of a checkpoint: at least one, ordered by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightFiles {
    /// `model.safetensors` or the shards of its index.
    Safetensors(Vec<PathBuf>),
    /// `pytorch_model.bin` or the shards of its index.
    Pickle(Vec<PathBuf>),
    /// `tf_model.h5`.
    TensorFlow(PathBuf),
}

/// The file that defines the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerFiles {
    /// A complete tokenizer in `tokenizer.json`.
    Json(PathBuf),
    /// The `vocab.txt` of a BERT tokenizer.
    Vocab(PathBuf),
}

/// One form in which weights are stored. [`WEIGHTS`] lists all forms, the preferred one first.
pub(super) struct WeightLayout {
    /// Name of the weight file, or of the index of its shards.
    pub(super) file: &'static str,
    /// Whether `file` is an index.
    pub(super) sharded: bool,
    format: WeightFormat,
}

/// The format of a weight file or of its shards.
#[derive(Clone, Copy)]
enum WeightFormat {
    Safetensors,
    Pickle,
    TensorFlow,
}

/// The layouts in order of preference, which is that of transformers. Safetensors, whether sharded or not, come before
/// pickles, because they are memory-mapped and need no pickle interpreter.
pub(super) const WEIGHTS: [WeightLayout; 5] = [
    WeightLayout::new("model.safetensors", false, WeightFormat::Safetensors),
    WeightLayout::new("model.safetensors.index.json", true, WeightFormat::Safetensors),
    WeightLayout::new("pytorch_model.bin", false, WeightFormat::Pickle),
    WeightLayout::new("pytorch_model.bin.index.json", true, WeightFormat::Pickle),
    WeightLayout::new("tf_model.h5", false, WeightFormat::TensorFlow),
];

/// Name of the weights in error messages.
pub(super) const WEIGHTS_WANTED: &str =
    "weights (model.safetensors, pytorch_model.bin, an index of shards of either, or tf_model.h5)";
/// Names of weight files that are not supported, each with advice for the operator.
const OTHER_WEIGHTS: [(&str, &str); 2] = [
    (
        "tf_model.h5.index.json",
        "its tf_model.h5 is in shards, which is not supported; save it in one file with transformers 4 and its class, such as \
         TFBlipForConditionalGeneration.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)",
    ),
    (
        "flax_model.msgpack",
        "its flax_model.msgpack is a Flax file, and transformers has no BLIP for Flax; fetch a checkpoint with `blip-server download`",
    ),
];
/// Name of the tokenizer in error messages.
pub(super) const TOKENIZER_WANTED: &str = "tokenizer (tokenizer.json or vocab.txt)";
/// The files of a tokenizer other than its vocabulary.
pub(super) const TOKENIZER_OPTIONS: [&str; 3] =
    ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];
/// Name of the preprocessing in error messages.
pub(super) const PREPROCESSOR_WANTED: &str =
    "image preprocessing (preprocessor_config.json or processor_config.json)";

impl WeightLayout {
    const fn new(file: &'static str, sharded: bool, format: WeightFormat) -> Self {
        Self { file, sharded, format }
    }
}

impl CheckpointFiles {
    /// Finds the files of a checkpoint in `directory`.
    ///
    /// # Errors
    /// `NotADirectory`, `MissingFile`, `InvalidIndex`, `Io`.
    pub fn resolve(directory: &Path) -> Result<Self, HubError> {
        require_directory(directory)?;
        let find = |name: &str| -> Result<Option<PathBuf>, HubError> {
            let path = directory.join(name);
            Ok(is_file(&path)?.then_some(path))
        };
        let missing = |missing: &str, hint| HubError::MissingFile {
            directory: directory.to_owned(),
            missing: missing.to_owned(),
            hint,
        };
        let config = find("config.json")?.ok_or_else(|| {
            missing("config.json", "copy it there: save_pretrained writes it with the weights")
        })?;
        let weights = find_weights(directory)?.ok_or_else(|| {
            let has = |file| find(file).is_ok_and(|found| found.is_some());
            let of_another_library = OTHER_WEIGHTS.iter().find(|(file, _)| has(file));
            let fetch = "copy them there, or fetch a checkpoint with `blip-server download`";
            missing(WEIGHTS_WANTED, of_another_library.map_or(fetch, |(_, hint)| hint))
        })?;
        let tokenizer = match find("tokenizer.json")? {
            Some(path) => Some(TokenizerFiles::Json(path)),
            None => find("vocab.txt")?.map(TokenizerFiles::Vocab),
        };
        let towers = Towers::of(&config);
        if towers.text && tokenizer.is_none() {
            return Err(missing(
                TOKENIZER_WANTED,
                "save the processor there too: processor.save_pretrained",
            ));
        }
        let mut tokenizer_options = Vec::new();
        for name in TOKENIZER_OPTIONS {
            tokenizer_options.extend(find(name)?);
        }
        let preprocessor = find("preprocessor_config.json")?;
        let processor = find("processor_config.json")?;
        if towers.vision && preprocessor.is_none() && processor.is_none() {
            return Err(missing(
                PREPROCESSOR_WANTED,
                "save the processor there too: processor.save_pretrained",
            ));
        }
        Ok(Self {
            directory: directory.to_owned(),
            config,
            weights,
            tokenizer,
            tokenizer_options,
            preprocessor,
            processor,
            revision: None,
        })
    }
}

/// Returns the kind of what `path` leads to; `None` if nothing is there.
///
/// # Errors
/// `Io` if the system cannot tell. Taking such a file for absent would give wrong advice or, for an optional file, serve
/// a model with other settings than its own.
fn file_type(path: &Path) -> Result<Option<FileType>, HubError> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.file_type())),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(HubError::io("read", path)(error)),
    }
}

fn is_file(path: &Path) -> Result<bool, HubError> {
    Ok(file_type(path)?.is_some_and(|found| found.is_file()))
}

/// Checks that `path` leads to a directory.
///
/// # Errors
/// `NotADirectory`, `Io`.
pub(super) fn require_directory(path: &Path) -> Result<(), HubError> {
    let found = file_type(path)?;
    if found.is_some_and(|found| found.is_dir()) {
        return Ok(());
    }
    Err(HubError::NotADirectory { path: path.to_owned() })
}

/// Returns the weight files of a directory, in the first layout of [`WEIGHTS`] that it has; `None` if it has none.
///
/// # Errors
/// `InvalidIndex`, `MissingFile` for a shard, `Io`.
pub(super) fn find_weights(directory: &Path) -> Result<Option<WeightFiles>, HubError> {
    let mut found = None;
    for layout in &WEIGHTS {
        if is_file(&directory.join(layout.file))? {
            found = Some(layout);
            break;
        }
    }
    let Some(layout) = found else { return Ok(None) };
    let path = directory.join(layout.file);
    let shards = if layout.sharded { find_shards(directory, &path)? } else { vec![path.clone()] };
    Ok(Some(match layout.format {
        WeightFormat::Safetensors => WeightFiles::Safetensors(shards),
        WeightFormat::Pickle => WeightFiles::Pickle(shards),
        WeightFormat::TensorFlow => WeightFiles::TensorFlow(path),
    }))
}

/// Returns the paths of the shards that an index names.
fn find_shards(directory: &Path, index: &Path) -> Result<Vec<PathBuf>, HubError> {
    let mut shards = Vec::new();
    for name in read_index(index)? {
        let shard = directory.join(&name);
        if !is_file(&shard)? {
            return Err(HubError::MissingFile {
                directory: directory.to_owned(),
                missing: name,
                hint: "the weight index names it, so the checkpoint is incomplete; copy or download it again",
            });
        }
        shards.push(shard);
    }
    Ok(shards)
}

/// Returns the names of the shards in a weight index, each once, in alphabetical order.
///
/// # Errors
/// `Document` if the file cannot be read or is not an index; `InvalidIndex` if it names nothing, or anything other than
/// plain file names.
pub(super) fn read_index(path: &Path) -> Result<BTreeSet<String>, HubError> {
    let invalid = |reason: String| HubError::InvalidIndex { path: path.to_owned(), reason };
    let object = document::parse_object(path, &document::read(path)?)?;
    let fields = ObjectFields::new(path, &object);
    let accepted = "an object that maps tensor names to file names";
    let shards = fields.optional("weight_map", accepted, |value| {
        value.as_object()?.values().map(|file| file.as_str().map(str::to_owned)).collect()
    })?;
    let shards: BTreeSet<String> = shards.ok_or_else(|| fields.refuse("weight_map", accepted))?;
    if shards.is_empty() {
        return Err(invalid("its weight_map is empty; download the checkpoint again".to_owned()));
    }
    if let Some(shard) = shards.iter().find(|shard| !is_plain_file_name(shard)) {
        return Err(invalid(format!("it names \"{shard}\", which is not a file next to it")));
    }
    Ok(shards)
}

/// True for a file name that cannot lead out of its directory.
pub(super) fn is_plain_file_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=255).contains(&name.len()) && !name.starts_with('.') && name.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        directory
    }

    const PLAIN: [(&str, &str); 3] =
        [("config.json", "{}"), ("tokenizer.json", "{}"), ("preprocessor_config.json", "{}")];

    #[test]
    fn safetensors_win_over_pickles_pickles_over_tensorflow_and_single_files_over_shards() {
        let index = r#"{"weight_map": {"b": "m-2.x", "a": "m-1.x", "c": "m-2.x"}}"#;
        let mut files = PLAIN.to_vec();
        files.extend([("m-1.x", ""), ("m-2.x", "")]);
        let steps = [
            (
                "tf_model.h5",
                "",
                (|files: Vec<PathBuf>| WeightFiles::TensorFlow(files[0].clone())) as fn(_) -> _,
                vec!["tf_model.h5"],
            ),
            ("pytorch_model.bin.index.json", index, WeightFiles::Pickle, vec!["m-1.x", "m-2.x"]),
            ("pytorch_model.bin", "", WeightFiles::Pickle, vec!["pytorch_model.bin"]),
            (
                "model.safetensors.index.json",
                index,
                WeightFiles::Safetensors,
                vec!["m-1.x", "m-2.x"],
            ),
            ("model.safetensors", "", WeightFiles::Safetensors, vec!["model.safetensors"]),
        ];
        for (added, content, wrap, expected) in steps {
            files.push((added, content));
            let directory = directory(&files);
            let found = CheckpointFiles::resolve(directory.path()).unwrap();
            let expected = expected.iter().map(|name| directory.path().join(name)).collect();
            assert_eq!(found.weights, wrap(expected), "with {added}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let complete = [PLAIN.as_slice(), &[("model.safetensors", "")]].concat();
        for (removed, named) in [
            ("config.json", "config.json"),
            ("tokenizer.json", "vocab.txt"),
            ("preprocessor_config.json", "processor_config.json"),
            ("model.safetensors", "pytorch_model.bin"),
        ] {
            let files: Vec<_> = complete.iter().copied().filter(|file| file.0 != removed).collect();
            let directory = directory(&files);
            let error = CheckpointFiles::resolve(directory.path()).unwrap_err().to_string();
            assert!(error.contains(named), "without {removed}: {error}");
        }
        let error = CheckpointFiles::resolve(Path::new("/no/such/place")).unwrap_err();
        assert!(matches!(error, HubError::NotADirectory { .. }));
    }

    #[test]
    fn a_file_that_cannot_be_looked_up_is_not_taken_for_absent() {
        // A link to itself cannot be followed; unlike permissions, that holds for root too.
        for name in ["config.json", "model.safetensors", "vocab.txt", "processor_config.json"] {
            let complete = [PLAIN.as_slice(), &[("model.safetensors", "")]].concat();
            let mut files: Vec<_> = complete.into_iter().filter(|file| file.0 != name).collect();
            files.retain(|file| name != "vocab.txt" || file.0 != "tokenizer.json");
            let directory = directory(&files);
            let path = directory.path().join(name);
            std::os::unix::fs::symlink(&path, &path).unwrap();
            let error = CheckpointFiles::resolve(directory.path()).unwrap_err();
            assert!(
                matches!(&error, HubError::Io { path: of, .. } if *of == path),
                "{name}: {error}"
            );
            assert!(!error.is_content(), "{name}");
        }
    }

    #[test]
    fn an_index_that_leaves_the_directory_or_lacks_a_shard_is_an_error() {
        for shard in ["../evil", "/etc/passwd", ".hidden", "a/b", ""] {
            let index = serde_json::json!({"weight_map": {"a": shard}}).to_string();
            let files =
                [PLAIN.as_slice(), &[("model.safetensors.index.json", index.as_str())]].concat();
            let error = CheckpointFiles::resolve(directory(&files).path()).unwrap_err();
            assert!(matches!(error, HubError::InvalidIndex { .. }), "{shard}: {error}");
        }
        let index = r#"{"weight_map": {"a": "gone.safetensors"}}"#;
        let files = [PLAIN.as_slice(), &[("model.safetensors.index.json", index)]].concat();
        let error = CheckpointFiles::resolve(directory(&files).path()).unwrap_err();
        assert!(error.to_string().contains("gone.safetensors"), "{error}");
    }

    #[test]
    fn a_vocabulary_and_a_newer_processor_file_are_enough() {
        let files = [
            ("config.json", "{}"),
            ("vocab.txt", ""),
            ("processor_config.json", "{}"),
            ("model.safetensors", ""),
        ];
        let directory = directory(&files);
        let found = CheckpointFiles::resolve(directory.path()).unwrap();
        let vocabulary = TokenizerFiles::Vocab(directory.path().join("vocab.txt"));
        assert_eq!(found.tokenizer, Some(vocabulary));
        assert_eq!(found.preprocessor, None);
        assert_eq!(found.processor, Some(directory.path().join("processor_config.json")));
    }

    #[test]
    fn a_single_tower_needs_only_its_own_files() {
        let files = |class, file| {
            let config = format!(r#"{{"architectures": ["{class}"]}}"#);
            let directory = directory(&[
                ("config.json", config.as_str()),
                ("model.safetensors", ""),
                (file, "{}"),
            ]);
            CheckpointFiles::resolve(directory.path()).map_err(|error| error.to_string())
        };
        let vision = files("BlipVisionModel", "preprocessor_config.json").unwrap();
        assert_eq!((vision.tokenizer, vision.preprocessor.is_some()), (None, true));
        let text = files("BlipTextModel", "tokenizer.json").unwrap();
        assert_eq!((text.tokenizer.is_some(), text.preprocessor), (true, None));
        let missing = files("BlipVisionModel", "tokenizer.json").unwrap_err();
        assert!(missing.contains("no image preprocessing"), "{missing}");
        let missing = files("BlipTextModel", "preprocessor_config.json").unwrap_err();
        assert!(missing.contains("no tokenizer"), "{missing}");
    }
}
