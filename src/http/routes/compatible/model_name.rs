//! Model names in the APIs of others: the name of a loaded model, with or without Ollama's tag `:latest`; the name of a
//! role, such as `caption`; or `blip-server`, which names the default.

use crate::http::error::{ApiError, Code};
use crate::http::state::models::{Eligible, Model, Models};
use crate::task::Role;

/// The tag of Ollama that every model name may have.
pub(super) const LATEST: &str = ":latest";
/// The name of the default model.
const ANY: &str = "blip-server";
/// Maximum length of a name that an error repeats, in characters.
const MAX_REPEATED: usize = 80;

/// The models that generate text, the default first.
pub(super) const TEXT: &[Eligible] = &[Eligible::Role(Role::Caption), Eligible::Role(Role::Vqa)];
/// All models, those that generate text first.
const ANY_ROLE: &[Eligible] =
    &[Eligible::Role(Role::Caption), Eligible::Role(Role::Vqa), Eligible::All];
/// The models that embed.
pub(super) const EMBEDDING: &[Eligible] = &[Eligible::All];

/// Returns the model for a request among those that `eligible` lists. The default is the default of the first entry that
/// has a loaded model.
///
/// # Errors
/// `task_not_loaded` if no model is eligible, `model_not_found` if none of them has this name.
pub(super) fn pick<'m>(
    models: &'m Models,
    eligible: &[Eligible],
    name: Option<&str>,
) -> Result<&'m Model, ApiError> {
    let mut defaults = eligible.iter().map(|eligible| models.pick(*eligible, None));
    let first = defaults.next().unwrap_or_else(|| Err(ApiError::internal()));
    let default = first.or_else(|error| defaults.find_map(Result::ok).ok_or(error))?;
    let name = name.map_or("", |name| name.strip_suffix(LATEST).unwrap_or(name));
    let serves = |model: &&Model| eligible.iter().any(|eligible| eligible.include(&model.info));
    if let Some(named) = models.iter().filter(serves).find(|model| model.info.name == name) {
        return Ok(named);
    }
    let has_role = |model: &&Model| {
        let of_role = Eligible::Role(model.info.role()).include(&model.info);
        of_role
            && (model.info.role().name() == name || task_names(model.info.role()).contains(&name))
    };
    match name {
        "" | ANY => Ok(default),
        _ => models
            .iter()
            .filter(serves)
            .find(has_role)
            .ok_or_else(|| not_found(models, eligible, name)),
    }
}

/// Returns a loaded model by its name, whatever it serves.
///
/// # Errors
/// `model_not_found`.
pub(super) fn find<'m>(models: &'m Models, name: &str) -> Result<&'m Model, ApiError> {
    pick(models, ANY_ROLE, Some(name))
}

/// Returns the names of the tasks for which models of this role are the default.
fn task_names(role: Role) -> &'static [&'static str] {
    match role {
        Role::Caption => &["captioning", "image-to-text"],
        Role::Vqa => &["visual-question-answering"],
        Role::Retrieval => &["embeddings", "similarity", "feature-extraction"],
    }
}

/// Returns the error for a name that no eligible model has. It tells the names of those that are loaded.
fn not_found(models: &Models, eligible: &[Eligible], name: &str) -> ApiError {
    let asked: String = name.chars().take(MAX_REPEATED).collect();
    let serves = |model: &&Model| eligible.iter().any(|eligible| eligible.include(&model.info));
    let names: Vec<&str> =
        models.iter().filter(serves).map(|model| model.info.name.as_str()).collect();
    let is_loaded = models.iter().any(|model| model.info.name == name);
    let what = if is_loaded { "does not serve this route" } else { "is not loaded" };
    let detail = format!(
        "\"{asked}\" {what}; the models for it are: {} (\"{ANY}\" names the first)",
        names.join(", ")
    );
    ApiError::field(Code::ModelNotFound, "model", detail)
}
