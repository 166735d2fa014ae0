//! The catalogue of loaded models: what a request's `model` may name. A look-up among names, never a path.

use std::sync::Arc;

use super::error::{ApiError, Code};
use crate::input::Tokenizer;
use crate::task::{ModelInfo, Role};

/// A loaded model with what turns its texts into ids and back.
#[derive(Clone)]
pub struct Model {
    /// What is known of it.
    pub info: ModelInfo,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
}

/// The loaded models in the order of the configuration; the first of a role is its default.
#[derive(Clone)]
pub struct Models(Arc<[Model]>);

impl Models {
    /// A catalogue of these models. Names are distinct (the configuration checks it).
    pub fn new(models: Vec<Model>) -> Self {
        Self(models.into())
    }

    /// The models in order.
    pub fn iter(&self) -> impl Iterator<Item = &Model> {
        self.0.iter()
    }

    /// The model that serves a request of this role.
    ///
    /// # Errors
    /// `task_not_loaded` when the role has no model, `model_not_found` when none of them is called `name`.
    pub(crate) fn pick(&self, role: Role, name: Option<&str>) -> Result<&Model, ApiError> {
        let Some(default) = self.of_role(role).next() else {
            return Err(ApiError::new(
                Code::TaskNotLoaded,
                format!("no {} model is loaded; start the server with one (--model)", role.name()),
            ));
        };
        let Some(name) = name else { return Ok(default) };
        self.of_role(role).find(|model| model.info.name == name).ok_or_else(|| {
            let loaded: Vec<&str> =
                self.of_role(role).map(|model| model.info.name.as_str()).collect();
            let detail = format!(
                "loaded for this endpoint: {}; leave model out for the first",
                loaded.join(", ")
            );
            ApiError::field(Code::ModelNotFound, "model", detail)
        })
    }

    fn of_role(&self, role: Role) -> impl Iterator<Item = &Model> {
        self.0.iter().filter(move |model| model.info.role() == role)
    }
}
