//! Turns the arguments of a tool into the JSON body of a route. The routes check the values; here are checked only the names,
//! because a route has fields that are no arguments, such as `stream`.

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
        let path = arguments.remove("path").map(|value| text(value, "path")).transpose()?;
        let paths = match arguments.remove("paths") {
            None => Vec::new(),
            Some(Value::Array(values)) if !values.is_empty() => {
                let each = values.into_iter().map(|value| text(value, "paths"));
                each.collect::<Result<_, _>>()?
            }
            Some(_) => return Err("paths: needs a list of paths".to_owned()),
        };
        for (given, field, other) in
            [(path.is_some(), "image", "path"), (!paths.is_empty(), "images", "paths")]
        {
            if given && arguments.contains_key(field) {
                return Err(format!("{other}: is not allowed with {field}"));
            }
        }
        if path.is_none() && !arguments.contains_key("image") && kind != ToolKind::Rank {
            let needed = if sources.folders.is_some() { "image or path" } else { "image" };
            return Err(format!("{needed}: is needed"));
        }
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
            (ToolKind::Rank, json!({"paths": ["a"], "images": ["AA=="]}), true, "paths: is not"),
        ] {
            let error = fields(kind, arguments.clone(), folders).unwrap_err();
            assert!(error.contains(words), "{arguments}: {error}");
        }
    }
}
