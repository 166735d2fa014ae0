//! Resolves the list of models, `[[models]]` in a settings file, to the sources that its entries stand for.

use std::collections::BTreeSet;

use super::ConfigError;
use super::layers::Layers;
use super::sections::RawModel;
use crate::hub::{CheckpointFiles, CheckpointSource, HubError, ModelSource};

/// Returns the models of all entries, in order.
///
/// # Errors
/// If a source cannot be parsed, a directory contains no checkpoint, or a name occurs twice.
pub(super) fn resolve(raw: &[RawModel], layers: &Layers) -> Result<Vec<ModelSource>, ConfigError> {
    let mut names = BTreeSet::new();
    let mut models = Vec::new();
    for (index, model) in raw.iter().enumerate() {
        let setting = format!("models.{index}");
        let named = sources(model).map_err(|reason| ConfigError::Model {
            origin: layers.origin(&setting),
            setting: setting.clone(),
            reason: Box::new(reason),
        })?;
        for model in named {
            if !names.insert(model.name.clone()) {
                return Err(ConfigError::Invalid {
                    origin: layers.origin(&setting),
                    setting,
                    value: format!("\"{}\"", model.name),
                    accepted: "unique names; name a model with NAME=SRC".to_owned(),
                });
            }
            models.push(model);
        }
    }
    Ok(models)
}

/// Returns the models of one entry; the entry `demo` stands for several models. A directory is checked here, so that a
/// typo is reported before any port is bound.
fn sources(model: &RawModel) -> Result<Vec<ModelSource>, HubError> {
    let sources = ModelSource::several(model.name.as_deref(), &model.source)?;
    let sources: Vec<ModelSource> = sources
        .into_iter()
        .map(|source| ModelSource { image_size: source.image_size.or(model.image_size), ..source })
        .collect();
    for model in &sources {
        if let CheckpointSource::Directory(path) = &model.source {
            CheckpointFiles::resolve(path)?;
        }
    }
    Ok(sources)
}
