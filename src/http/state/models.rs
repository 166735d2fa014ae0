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
    /// Turns texts into token ids and back; `None` for a model without a text tower.
    pub tokenizer: Option<Arc<Tokenizer>>,
}

impl Model {
    /// Returns the tokenizer of a model that has one. Requests with texts that name a model without a tokenizer are refused
    /// before they need it.
    ///
    /// # Panics
    /// If the model is a `BlipVisionModel`.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        self.tokenizer.as_ref().expect("every class with texts has a tokenizer")
    }
}

/// The models that serve an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Eligible {
    /// Models of this role, except single towers. The default is the first of them.
    Role(Role),
    /// Every model. The default is the first of the retrieval models, or else the first single tower, or else the first of
    /// all.
    All,
}

impl Eligible {
    /// True if the model serves the endpoint.
    pub(crate) fn include(self, model: &ModelInfo) -> bool {
        match self {
            Self::Role(role) => model.role() == role && !model.class.is_single_tower(),
            Self::All => true,
        }
    }
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

    /// Returns the model for a request: the eligible model called `name`, or the default if there is no `name`.
    ///
    /// # Errors
    /// `task_not_loaded` if no model is eligible, `model_not_found` if none of them is called `name`.
    pub(crate) fn pick(&self, eligible: Eligible, name: Option<&str>) -> Result<&Model, ApiError> {
        self.pick_by("model", eligible, name)
    }

    /// Like [`pick`](Self::pick), for a name that the request gives in `field`.
    pub(crate) fn pick_by(
        &self,
        field: &str,
        eligible: Eligible,
        name: Option<&str>,
    ) -> Result<&Model, ApiError> {
        let candidates = self.candidates(eligible);
        let Some(default) = candidates.first() else { return Err(none_loaded(eligible)) };
        let Some(name) = name else { return Ok(default) };
        let found = candidates.iter().find(|model| model.info.name == name).copied();
        found.ok_or_else(|| not_found(field, &candidates))
    }

    /// Returns the eligible models, the default first.
    fn candidates(&self, eligible: Eligible) -> Vec<&Model> {
        let mut candidates: Vec<&Model> =
            self.iter().filter(|model| eligible.include(&model.info)).collect();
        if eligible == Eligible::All {
            candidates.sort_by_key(|model| {
                (model.info.role() != Role::Retrieval, model.info.class.is_single_tower())
            });
        }
        candidates
    }
}

/// Returns the error for an endpoint that no loaded model serves.
fn none_loaded(eligible: Eligible) -> ApiError {
    let of_role = match eligible {
        Eligible::Role(role) => format!("{} ", role.name()),
        Eligible::All => String::new(),
    };
    let detail = format!("no {of_role}model is loaded; start the server with one (--model)");
    ApiError::new(Code::TaskNotLoaded, detail)
}

/// Returns the error for a name in `field` that is none of these models.
fn not_found(field: &str, candidates: &[&Model]) -> ApiError {
    let names: Vec<&str> = candidates.iter().map(|model| model.info.name.as_str()).collect();
    let detail = format!("the loaded models are: {}; the first is the default", names.join(", "));
    ApiError::field(Code::ModelNotFound, field, detail)
}
