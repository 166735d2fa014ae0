//! Turns the arguments of a tool into the JSON body of a route. The routes check the values. Here are checked the names,
//! because a route has fields that are no arguments (`stream`) and other names for some, and everything about paths, which the
//! routes do not know.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rmcp::model::JsonObject;
use serde_json::Value;

use super::files::AllowedFolders;
use super::tools::{PictureSources, ToolKind};

/// The fields of a request, and the files that it names.
#[derive(Debug)]
pub(super) struct ToolArguments {
    pub(super) fields: JsonObject,
    /// The argument `path`.
    pub(super) path: Option<String>,
    /// The argument `paths`.
    pub(super) paths: Vec<String>,
}

impl ToolArguments {
    /// Checks the names of the arguments, and takes out the paths.
    ///
    /// # Errors
    /// A text for the language model.
    pub(super) fn try_new(
        kind: ToolKind,
        mut arguments: JsonObject,
        sources: &PictureSources,
    ) -> Result<Self, String> {
        let known = kind.arguments(sources);
        // Models fill optional arguments with null.
        arguments.retain(|_, value| !value.is_null());
        if let Some(unknown) = arguments.keys().find(|name| !known.contains_key(*name)) {
            let known: Vec<&str> = known.keys().map(String::as_str).collect();
            return Err(format!(
                "{unknown}: no argument of {}; it accepts {}",
                kind.name(),
                known.join(", ")
            ));
        }
        for name in kind.required() {
            if !arguments.contains_key(*name) {
                return Err(format!("{name}: is needed"));
            }
        }
        let path = arguments.remove("path").map(|value| text(value, "path")).transpose()?;
        let paths = match arguments.remove("paths") {
            None => Vec::new(),
            Some(Value::Array(values)) if !values.is_empty() => {
                let each = values.into_iter().enumerate();
                let each = each.map(|(index, value)| text(value, &format!("paths[{index}]")));
                each.collect::<Result<_, _>>()?
            }
            Some(_) => return Err("paths: needs a list of paths".to_owned()),
        };
        check_pictures(kind, &arguments, path.is_some(), !paths.is_empty(), sources)?;
        Ok(Self { fields: arguments, path, paths })
    }
}

/// Returns the base64 of a file. Blocks.
///
/// # Errors
/// A text for the language model.
pub(super) fn base64_of(path: &str, folders: &AllowedFolders) -> Result<Value, String> {
    Ok(STANDARD.encode(folders.read(path)?).into())
}

/// Checks which arguments name pictures.
fn check_pictures(
    kind: ToolKind,
    arguments: &JsonObject,
    has_path: bool,
    has_paths: bool,
    sources: &PictureSources,
) -> Result<(), String> {
    let has = |name: &str| arguments.contains_key(name);
    let with = if has("image") { "image" } else { "path" };
    if has_path && has("image") {
        return Err("path: is not allowed with image".to_owned());
    }
    if let Some(Value::String(image)) = arguments.get("image")
        && sources.folders.is_some()
        && looks_like_path(image)
    {
        return Err("image: for a file, use path".to_owned());
    }
    let has_image = has_path || has("image");
    if kind != ToolKind::Rank {
        let needed = if sources.folders.is_some() { "image or path" } else { "image" };
        return if has_image { Ok(()) } else { Err(format!("{needed}: is needed")) };
    }
    let lists = if sources.folders.is_some() { "images or paths" } else { "images" };
    let has_list = has_paths || has("images");
    match (has("text"), has_list, has_image, has("texts")) {
        (true, true, false, false) if has_paths && has("images") => {
            Err("paths: is not allowed with images".to_owned())
        }
        (true, true, false, false) | (false, false, true, true) => Ok(()),
        (true, _, true, _) => Err(format!("{with}: is not allowed with text; use {lists}")),
        (true, false, ..) => Err(format!("{lists}: is needed with text")),
        (false, true, ..) => Err(format!("text: is needed with {lists}")),
        (false, _, true, false) => Err(format!("texts: is needed with {with}")),
        (false, false, false, true) => Err("image: is needed with texts".to_owned()),
        (true, true, false, true) => Err(format!("texts: is not allowed with {lists}")),
        (false, false, false, false) => {
            Err(format!("text: give text and {lists}, or image and texts"))
        }
    }
}

/// True if a value for `image` is a path: not an id, not data, not an http URL.
fn looks_like_path(image: &str) -> bool {
    let image = image.trim_start();
    let starts = ["/", "~", "./", "../", "file:"];
    let ends = [".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"];
    let is_other = ["http:", "https:", "data:"].iter().any(|start| image.starts_with(start));
    // JPEGs in base64 begin with a slash too, but they are longer than any path.
    image.len() < 1024
        && !is_other
        && (starts.iter().any(|start| image.starts_with(start))
            || ends.iter().any(|end| image.to_ascii_lowercase().ends_with(end)))
}

fn text(value: Value, name: &str) -> Result<String, String> {
    if let Value::String(text) = value { Ok(text) } else { Err(format!("{name}: needs text")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(kind: ToolKind, arguments: Value, folders: bool) -> Result<ToolArguments, String> {
        let Value::Object(arguments) = arguments else { panic!("no object") };
        let folders = folders.then(|| "/photos".to_owned());
        ToolArguments::try_new(kind, arguments, &PictureSources { folders, urls: false })
    }

    #[test]
    fn only_arguments_of_the_schema_reach_the_route() {
        let good = fields(ToolKind::Caption, json!({"image": "AA==", "prompt": null}), false);
        assert_eq!(Value::Object(good.unwrap().fields), json!({"image": "AA=="}));
        for (kind, arguments, folders, words) in [
            (
                ToolKind::Caption,
                json!({"image": "AA==", "stream": true}),
                true,
                "stream: no argument",
            ),
            (ToolKind::Caption, json!({"path": "a.jpg"}), false, "path: no argument"),
            (ToolKind::Caption, json!({}), false, "image: is needed"),
            (ToolKind::Ask, json!({"questions": ["?"]}), true, "image or path: is needed"),
            (ToolKind::Caption, json!({"path": 1}), true, "path: needs text"),
            (
                ToolKind::Caption,
                json!({"path": "a", "image": "AA=="}),
                true,
                "path: is not allowed",
            ),
            (ToolKind::Rank, json!({"text": "a", "paths": []}), true, "paths: needs a list"),
            (
                ToolKind::Rank,
                json!({"text": "a", "paths": ["a"], "images": ["AA=="]}),
                true,
                "paths: is not allowed with images",
            ),
            (ToolKind::Rank, json!({"paths": ["a"]}), true, "text: is needed with images or paths"),
            (
                ToolKind::Rank,
                json!({"text": "a", "path": "b"}),
                true,
                "path: is not allowed with text",
            ),
            (ToolKind::Rank, json!({"text": "a", "paths": [1]}), true, "paths[0]: needs text"),
            (ToolKind::Rank, json!({"image": "AA=="}), false, "texts: is needed with image"),
            (ToolKind::Ask, json!({"image": "AA=="}), false, "questions: is needed"),
            (
                ToolKind::Caption,
                json!({"image": "/home/me/a.png"}),
                true,
                "image: for a file, use path",
            ),
            (ToolKind::Caption, json!({"image": "a/b.JPG"}), true, "image: for a file, use path"),
        ] {
            let error = fields(kind, arguments.clone(), folders).unwrap_err();
            assert!(error.contains(words), "{arguments}: {error}");
        }
    }
}
