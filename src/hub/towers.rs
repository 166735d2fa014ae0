//! Which towers a checkpoint has, because its files depend on them: only models with a text tower have a tokenizer, and
//! only models with a vision tower have image preprocessing.

use std::path::Path;

use serde_json::Value;

use crate::document;

/// Class in `architectures` of a checkpoint without a text tower.
const VISION_ALONE: &str = "BlipVisionModel";
/// Class in `architectures` of a checkpoint without a vision tower.
const TEXT_ALONE: &str = "BlipTextModel";

/// The towers of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Towers {
    pub(super) vision: bool,
    pub(super) text: bool,
}

impl Towers {
    /// Reads which towers a checkpoint with this `config.json` has. If the file cannot be read, both are assumed: whoever
    /// loads the model reports what is wrong with the file.
    pub(super) fn of(config: &Path) -> Self {
        let read = document::read(config).and_then(|text| document::parse_object(config, &text));
        let architectures = read.ok().and_then(|mut object| object.remove("architectures"));
        let has = |class: &str| match &architectures {
            Some(Value::String(name)) => name == class,
            Some(Value::Array(names)) => names.iter().any(|name| name == class),
            _ => false,
        };
        Self { vision: !has(TEXT_ALONE), text: !has(VISION_ALONE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_towers_are_recognised_by_their_class() {
        for (config, vision, text) in [
            (r#"{"architectures": ["BlipVisionModel"]}"#, true, false),
            (r#"{"architectures": "BlipTextModel"}"#, false, true),
            (r#"{"architectures": ["BlipForImageTextRetrieval"]}"#, true, true),
            ("{}", true, true),
            ("no JSON", true, true),
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), config).unwrap();
            assert_eq!(Towers::of(file.path()), Towers { vision, text }, "{config}");
        }
        assert_eq!(Towers::of(Path::new("/no/such/file")), Towers { vision: true, text: true });
    }
}
