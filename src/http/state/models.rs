//! The catalogue of loaded models. A request selects a model by its field `model`. That name is only compared with the
//! names of loaded models, and never used as a path.

use std::sync::Arc;

use crate::http::error::{ApiError, Code};
use crate::input::Tokenizer;
use crate::task::{ModelInfo, Role};

/// A loaded model as HTTP handlers see it: a description and a tokenizer, no weights.
#[derive(Debug, Clone)]
pub struct Model {
    /// Name, role, limits and origin of the model.
    pub info: ModelInfo,
    /// Turns texts into token ids and back.
    pub tokenizer: Arc<Tokenizer>,
}

/// The loaded models in configuration order. The first model of a role is the default for that role.
#[derive(Clone)]
pub struct Models(Arc<[Model]>);

impl Models {
    /// Builds a catalogue. The names must be distinct, which `config` checks.
    pub fn new(models: Vec<Model>) -> Self {
        Self(models.into())
    }

    /// Iterates over all models in configuration order.
    pub fn iter(&self) -> impl Iterator<Item = &Model> {
        self.0.iter()
    }

    /// Returns the model for a request: the model of this role called `name`, or the default of the role if there is no
    /// `name`.
    ///
    /// # Errors
    /// `task_not_loaded` if the role has no model, `model_not_found` if no model of the role is called `name`.
    pub(crate) fn pick(&self, role: Role, name: Option<&str>) -> Result<&Model, ApiError> {
        self.pick_by("model", role, name)
    }

    /// Like [`pick`](Self::pick), but among models of several roles. The default is the first model of `role`, or else the
    /// first of the other roles.
    pub(crate) fn pick_any(
        &self,
        role: Role,
        others: &[Role],
        name: Option<&str>,
    ) -> Result<&Model, ApiError> {
        let other = self.iter().filter(|model| others.contains(&model.info.role()));
        let candidates: Vec<&Model> = self.of_role(role).chain(other).collect();
        match name {
            Some(name) if !candidates.is_empty() => candidates
                .iter()
                .find(|model| model.info.name == name)
                .copied()
                .ok_or_else(|| not_found("model", &candidates)),
            Some(_) | None => candidates.first().copied().map_or_else(|| self.pick(role, None), Ok),
        }
    }

    /// Like [`pick`](Self::pick), for a name that the request gives in `field`.
    pub(crate) fn pick_by(
        &self,
        field: &str,
        role: Role,
        name: Option<&str>,
    ) -> Result<&Model, ApiError> {
        let Some(default) = self.of_role(role).next() else {
            return Err(ApiError::new(
                Code::TaskNotLoaded,
                format!("no {} model is loaded; start the server with one (--model)", role.name()),
            ));
        };
        let Some(name) = name else { return Ok(default) };
        let candidates: Vec<&Model> = self.of_role(role).collect();
        let found = candidates.iter().find(|model| model.info.name == name).copied();
        found.ok_or_else(|| not_found(field, &candidates))
    }

    fn of_role(&self, role: Role) -> impl Iterator<Item = &Model> {
        self.0.iter().filter(move |model| model.info.role() == role)
    }
}

/// Returns the error for a name in `field` that is none of these models.
fn not_found(field: &str, candidates: &[&Model]) -> ApiError {
    let names: Vec<&str> = candidates.iter().map(|model| model.info.name.as_str()).collect();
    let detail = format!("the loaded models are: {}; the first is the default", names.join(", "));
    ApiError::field(Code::ModelNotFound, field, detail)
}
