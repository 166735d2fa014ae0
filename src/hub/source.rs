//! Parses `[NAME=]SRC[?image_size=N]`: a directory, a repository of the hub with an optional revision, or a demo model.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::HubError;
use crate::demo;

/// A model as the operator specifies it: its name in requests and where its files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSource {
    /// Name of the model in requests: NAME if it is given, otherwise the hub id or the directory's last segment.
    /// Matches `[A-Za-z0-9._/-]{1,128}`.
    pub name: String,
    /// Where the model's files come from.
    pub source: CheckpointSource,
    /// Side of the input images in pixels, if it differs from the checkpoint's.
    pub image_size: Option<u32>,
}

/// Where a checkpoint comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointSource {
    /// A directory in the hub's layout.
    Directory(PathBuf),
    /// A repository of the hub.
    Hub(HubSource),
    /// A demo model in the binary, by its name.
    Demo(&'static str),
}

/// A repository of the hub at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSource {
    /// Id of the repository: `owner/name`.
    pub id: String,
    /// Branch, tag, `refs/pr/N` or commit; the default branch when absent.
    pub revision: Option<String>,
}

/// The SRC that means every demo model.
const DEMO: &str = "demo";

/// The revision that is used if none is given.
pub(super) const DEFAULT_REVISION: &str = "main";

impl HubSource {
    /// Returns the revision, or the default branch if none is given.
    #[must_use]
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(DEFAULT_REVISION)
    }
}

impl FromStr for ModelSource {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let (text, image_size) = split_image_size(text)?;
        let (name, source) = split_name(text);
        Ok(Self { image_size, ..Self::new(name, source)? })
    }
}

/// Splits `SRC?image_size=N` into SRC and N, if it is given. A directory may have a question mark in its name.
fn split_image_size(text: &str) -> Result<(&str, Option<u32>), HubError> {
    let Some((source, options)) = text.rsplit_once('?') else { return Ok((text, None)) };
    let path = split_name(text).1;
    if Path::new(path).is_dir() {
        return Ok((text, None));
    }
    let size = options.strip_prefix("image_size=").and_then(|size| size.parse().ok());
    match size {
        Some(size) => Ok((source, Some(size))),
        None => Err(invalid(
            text,
            format!(
                "the only option after the question mark is image_size=N, with N in pixels, not \"{options}\""
            ),
        )),
    }
}

/// Splits `[NAME=]SRC` into NAME, if there is one, and SRC.
fn split_name(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, source)) if !is_directory(text) => (Some(name), source),
        _ => (None, text),
    }
}

impl ModelSource {
    /// Returns the models of one configuration entry, whose name is given separately or as `NAME=SRC`. SRC may end in
    /// `?image_size=N`. An entry names one model, unless its source is `demo`, which means all demo models.
    ///
    /// # Errors
    /// Those of [`ModelSource::new`]; `InvalidSource` if `demo` is given a name.
    pub fn several(name: Option<&str>, source: &str) -> Result<Vec<Self>, HubError> {
        let (source, image_size) = split_image_size(source)?;
        let (name, source) = if name.is_some() { (name, source) } else { split_name(source) };
        let sized = |model: Self| Self { image_size, ..model };
        if source != DEMO {
            return Ok(vec![sized(Self::new(name, source)?)]);
        }
        let models: Vec<Self> = Self::demo().into_iter().map(sized).collect();
        if models.is_empty() {
            return Err(HubError::DemoNotBuilt);
        }
        match name {
            None => Ok(models),
            Some(name) => Err(invalid(
                DEMO,
                format!(
                    "it stands for {} models, which cannot all be called \"{name}\"; choose one: {name}={}",
                    models.len(),
                    models[0].name
                ),
            )),
        }
    }

    /// Returns every demo model in the binary; none if it was built without them.
    #[must_use]
    pub fn demo() -> Vec<Self> {
        let source = |model: &demo::DemoModel| Self {
            name: model.name.to_owned(),
            source: CheckpointSource::Demo(model.name),
            image_size: None,
        };
        demo::MODELS.iter().map(source).collect()
    }

    /// Creates a model from its SRC and its name. Without a name, the model has the default name of its source.
    ///
    /// # Errors
    /// `InvalidSource`, `DemoNotBuilt`.
    pub fn new(name: Option<&str>, source: &str) -> Result<Self, HubError> {
        let parsed: CheckpointSource = source.parse()?;
        let name = match name {
            Some(name) => name.to_owned(),
            None => parsed.default_name(),
        };
        if !is_plain(&name, "._/-") {
            return Err(invalid(
                source,
                format!(
                    "its name would be \"{name}\", but a name has 1 to 128 letters, digits, dots, dashes, underscores and slashes; set one with NAME=SRC"
                ),
            ));
        }
        Ok(Self { name, source: parsed, image_size: None })
    }
}

impl FromStr for CheckpointSource {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        if let Some(model) = demo::model(text) {
            return Ok(Self::Demo(model.name));
        }
        if text == DEMO {
            return Err(match demo::MODELS.first() {
                Some(first) => {
                    invalid(text, format!("one model is needed here, such as {}", first.name))
                }
                None => HubError::DemoNotBuilt,
            });
        }
        if is_directory(text) {
            return Ok(Self::Directory(PathBuf::from(text)));
        }
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        let is_id = id.split_once('/').is_some_and(|(owner, name)| {
            is_plain(owner, "._-") && is_plain(name, "._-") && !is_dots(owner) && !is_dots(name)
        });
        if !is_id {
            return Err(invalid(
                text,
                "there is no such directory, and a hub id has the form owner/name, optionally owner/name@revision".to_owned(),
            ));
        }
        if revision.is_some_and(|revision| {
            !is_plain(revision, "._/-")
                || revision.split('/').any(|part| part.is_empty() || is_dots(part))
        }) {
            return Err(invalid(
                text,
                "a revision is a branch, a tag, refs/pr/N or a commit".to_owned(),
            ));
        }
        Ok(Self::Hub(HubSource { id: id.to_owned(), revision: revision.map(str::to_owned) }))
    }
}

impl CheckpointSource {
    fn default_name(&self) -> String {
        match self {
            Self::Hub(hub) => hub.id.clone(),
            Self::Directory(path) => last_segment(path),
            Self::Demo(name) => (*name).to_owned(),
        }
    }
}

impl fmt::Display for CheckpointSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Hub(hub) => f.write_str(&hub.id),
            Self::Demo(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for HubSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.revision())
    }
}

/// True if the text starts like a path, or if a file or directory of this name exists. If the system cannot tell, the text
/// counts as a path, so that the error is reported instead of a download being tried.
fn is_directory(text: &str) -> bool {
    let looks_like_a_path = ["/", "./", "../"].iter().any(|start| text.starts_with(start));
    looks_like_a_path
        || matches!(text, "." | "..")
        || (!text.is_empty()
            && Path::new(text).try_exists().unwrap_or_else(|error| {
                !matches!(error.kind(), ErrorKind::InvalidFilename | ErrorKind::InvalidInput)
            }))
}

/// Returns the last segment of the path as written. If that is `.` or `..`, returns the last segment of the directory
/// that the path leads to.
fn last_segment(path: &Path) -> String {
    let written = path.file_name().map(ToOwned::to_owned);
    let resolved = || path.canonicalize().ok()?.file_name().map(ToOwned::to_owned);
    written.or_else(resolved).unwrap_or_default().to_string_lossy().into_owned()
}

fn is_plain(text: &str, marks: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || marks.contains(c))
}

fn is_dots(text: &str) -> bool {
    matches!(text, "." | "..")
}

fn invalid(text: &str, reason: String) -> HubError {
    HubError::InvalidSource { text: text.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(id: &str, revision: Option<&str>) -> CheckpointSource {
        CheckpointSource::Hub(HubSource {
            id: id.to_owned(),
            revision: revision.map(str::to_owned),
        })
    }

    #[test]
    fn sources_are_told_apart_and_named() {
        let cases = [
            (
                "Salesforce/blip-vqa-base",
                "Salesforce/blip-vqa-base",
                hub("Salesforce/blip-vqa-base", None),
            ),
            ("qa=a/b@refs/pr/7", "qa", hub("a/b", Some("refs/pr/7"))),
            ("a/b@v1.0", "a/b", hub("a/b", Some("v1.0"))),
            ("/srv/models/tiny", "tiny", CheckpointSource::Directory("/srv/models/tiny".into())),
            ("mine=./x=y", "mine", CheckpointSource::Directory("./x=y".into())),
            ("../up/", "up", CheckpointSource::Directory("../up/".into())),
        ];
        for (text, name, source) in cases {
            let expected = ModelSource { name: name.to_owned(), source, image_size: None };
            assert_eq!(text.parse::<ModelSource>().unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn an_image_size_follows_a_question_mark() {
        for (text, name, size) in [
            ("fast=a/b?image_size=224", "fast", 224),
            ("a/b@main?image_size=480", "a/b", 480),
            ("./tiny?image_size=48", "tiny", 48),
        ] {
            let parsed: ModelSource = text.parse().unwrap();
            assert_eq!((&*parsed.name, parsed.image_size), (name, Some(size)), "{text}");
        }
        for text in ["a/b?size=224", "a/b?image_size=", "a/b?image_size=-1", "a/b?image_size=2x"] {
            let error = text.parse::<ModelSource>().unwrap_err().to_string();
            assert!(error.contains("image_size=N"), "{text}: {error}");
        }
    }

    #[test]
    fn a_directory_whose_own_name_is_no_model_name_wants_one() {
        let error = "./x=y".parse::<ModelSource>().unwrap_err();
        assert!(error.to_string().contains("NAME=SRC"), "{error}");
    }

    #[test]
    fn an_existing_directory_wins_over_a_hub_id() {
        let name = ModelSource::new(None, "src").unwrap();
        assert_eq!(
            name,
            ModelSource {
                name: "src".to_owned(),
                source: CheckpointSource::Directory("src".into()),
                image_size: None,
            }
        );
        assert_eq!(
            ".".parse::<CheckpointSource>().unwrap(),
            CheckpointSource::Directory(".".into())
        );
    }

    #[test]
    fn what_is_neither_directory_nor_id_is_refused_with_both_forms() {
        for text in [
            "",
            "tiny",
            "a/b/c",
            "a/..",
            "a/b@",
            "a/b@x y",
            "a/b@x/../y",
            "a b/c",
            "=a/b",
            "x y=a/b",
            "https://hub/a",
        ] {
            let error = text.parse::<ModelSource>().expect_err(text);
            assert!(matches!(error, HubError::InvalidSource { .. }), "{text}: {error}");
        }
    }

    #[cfg(feature = "demo")]
    #[test]
    fn demo_stands_for_every_demo_model_and_takes_no_name_of_its_own() {
        let names = |models: Vec<ModelSource>| -> Vec<String> {
            models.into_iter().map(|model| model.name).collect()
        };
        let all = names(ModelSource::several(None, "demo").unwrap());
        assert_eq!(all, ["demo-caption", "demo-vqa", "demo-retrieval"]);
        let one = ModelSource::several(None, "qa=demo-vqa").unwrap();
        assert_eq!(one[0].source, CheckpointSource::Demo("demo-vqa"));
        assert_eq!(names(one), ["qa"]);
        let error = ModelSource::several(Some("x"), "demo").unwrap_err().to_string();
        assert!(error.contains("x=demo-caption"), "{error}");
        let error = "demo".parse::<ModelSource>().unwrap_err().to_string();
        assert!(error.contains("demo-caption"), "{error}");
    }

    #[cfg(not(feature = "demo"))]
    #[test]
    fn without_demo_models_the_error_says_what_to_name() {
        let error = "demo".parse::<ModelSource>().unwrap_err();
        assert!(error.to_string().contains("name a model"), "{error}");
        assert!(matches!(ModelSource::several(None, "demo"), Err(HubError::DemoNotBuilt)));
        assert_eq!(ModelSource::demo(), []);
    }
}
