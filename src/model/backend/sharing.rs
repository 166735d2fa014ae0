//! Finds the parts that models share: vision towers and text encoders with equal configurations and byte-identical
//! weights, and everything except the image size if models are loaded from the same files.
//!
//! Weights are compared by their digests. A digest is computed only if another checkpoint has an equal configuration,
//! so the weights of a checkpoint that cannot share anything are read only once.

use std::sync::Arc;

use super::ModelSpec;
use crate::model::checkpoint::{Checkpoint, TEXT_ENCODER, TEXT_MODEL, VISION_MODEL};
use crate::model::config::{BlipConfig, TextConfig, VisionConfig};
use crate::model::error::LoadError;
use crate::model::load::{CheckpointWeights, ModelFiles};
use crate::model::ops::Ops;
use crate::model::preprocessor::Preprocessor;
use crate::model::text::TextTower;
use crate::model::vision::VisionEncoder;
use crate::task::{ModelClass, TowerId};

/// Largest number of patches along one side of an image, for an image size that is set. Attention over 64 x 64 patches
/// takes fifty times as long as over the usual 24 x 24.
const MAX_SIDE_PATCHES: usize = 64;

/// A checkpoint whose configuration files were read and whose weight files were opened.
pub(super) struct OpenedCheckpoint {
    pub(super) config: BlipConfig,
    pub(super) class: ModelClass,
    /// Preprocessing of the images; `None` for a model without a vision tower.
    pub(super) preprocessor: Option<Preprocessor>,
    pub(super) weights: CheckpointWeights,
}

impl OpenedCheckpoint {
    pub(super) fn open(spec: &ModelSpec) -> Result<Self, LoadError> {
        let config = BlipConfig::read(&spec.files.config)?;
        let class = config.class(spec.files.config.path())?;
        let preprocessor = match (class, spec.image_size) {
            (ModelClass::Text, None) => None,
            (ModelClass::Text, Some(_)) => return Err(LoadError::ImageSizeOfText),
            (_, image_size) => Some(preprocessor(spec, &config.vision_config, image_size)?),
        };
        // The tensors of a single tower have no prefix.
        let prefix = match class {
            ModelClass::Vision => format!("{VISION_MODEL}."),
            ModelClass::Text => format!("{TEXT_MODEL}."),
            ModelClass::ConditionalGeneration
            | ModelClass::QuestionAnswering
            | ModelClass::ImageTextRetrieval
            | ModelClass::Base => String::new(),
        };
        let weights = CheckpointWeights::open_below(prefix, &spec.files.weights)?;
        Ok(Self { config, class, preprocessor, weights })
    }

    /// Returns the identity of the vision tower, or `None` if the model has none.
    fn vision(&self) -> Option<VisionIdentity> {
        Some((self.config.vision_config.clone(), self.preprocessor.clone()?))
    }

    /// Returns the identity of the text encoder, or `None` if models of this class do not share text encoders.
    fn text_encoder(&self) -> Option<EncoderIdentity> {
        match self.class {
            ModelClass::QuestionAnswering | ModelClass::ImageTextRetrieval => {
                Some((self.config.text_config.clone(), self.config.vision_config.hidden_size))
            }
            ModelClass::ConditionalGeneration
            | ModelClass::Base
            | ModelClass::Vision
            | ModelClass::Text => None,
        }
    }
}

/// Everything that determines a vision tower, except its weights.
type VisionIdentity = (VisionConfig, Preprocessor);
/// Everything that determines a text encoder, except its weights. This is the configuration of the encoder, and the
/// width of the encoder states that its cross-attention attends to.
type EncoderIdentity = (TextConfig, usize);

/// An identity, with a digest of the weights. If no other checkpoint has this identity, the digest is `None`, because
/// there is nothing to share.
#[derive(PartialEq)]
pub(super) struct Key<I> {
    identity: I,
    fingerprint: Option<[u8; 32]>,
}

/// The parts loaded so far that later models may share.
pub(super) struct SharedParts<O: Ops> {
    /// Identities of the vision towers of all checkpoints that are loaded together, including those not loaded yet.
    visions: Vec<VisionIdentity>,
    /// Identities of the text encoders of those checkpoints whose model class shares text encoders.
    encoders: Vec<EncoderIdentity>,
    loaded_towers: Vec<(Key<VisionIdentity>, TowerId, Arc<VisionEncoder<O>>)>,
    loaded_encoders: Vec<(Key<EncoderIdentity>, Arc<TextTower<O>>)>,
    /// Models without their vision tower, by the files from which they were loaded.
    loaded_checkpoints: Vec<(ModelFiles, Arc<Checkpoint<O>>)>,
}

impl<O: Ops> SharedParts<O> {
    pub(super) fn new(checkpoints: &[OpenedCheckpoint]) -> Self {
        Self {
            visions: checkpoints.iter().filter_map(OpenedCheckpoint::vision).collect(),
            encoders: checkpoints.iter().filter_map(OpenedCheckpoint::text_encoder).collect(),
            loaded_towers: Vec::new(),
            loaded_encoders: Vec::new(),
            loaded_checkpoints: Vec::new(),
        }
    }

    /// Returns the key of the vision tower, or `None` if the model has none.
    pub(super) fn vision_key(
        &self,
        opened: &OpenedCheckpoint,
    ) -> Result<Option<Key<VisionIdentity>>, LoadError> {
        let Some(identity) = opened.vision() else { return Ok(None) };
        // Towers for different image sizes share their encoders, so compare only the configurations.
        let same_config = |other: &VisionIdentity| other.0 == identity.0;
        let several = self.visions.iter().filter(|other| same_config(other)).count() > 1;
        let prefix = format!("{VISION_MODEL}.");
        let fingerprint = several.then(|| opened.weights.fingerprint(&prefix)).transpose()?;
        Ok(Some(Key { identity, fingerprint }))
    }

    /// Returns the key of the text encoder, or `None` if models of this class do not share text encoders.
    pub(super) fn encoder_key(
        &self,
        opened: &OpenedCheckpoint,
    ) -> Result<Option<Key<EncoderIdentity>>, LoadError> {
        let prefix = format!("{TEXT_ENCODER}.");
        let identity = opened.text_encoder();
        identity.map(|own| key(own, &self.encoders, &opened.weights, &prefix)).transpose()
    }

    pub(super) fn tower(&self, key: &Key<VisionIdentity>) -> Option<TowerId> {
        self.loaded_towers.iter().find(|(known, ..)| known == key).map(|(_, tower, _)| *tower)
    }

    /// Returns the vision encoder of these weights, if it was loaded for another image size.
    pub(super) fn vision_encoder(
        &self,
        key: &Key<VisionIdentity>,
    ) -> Option<Arc<VisionEncoder<O>>> {
        let is_equal = |known: &Key<VisionIdentity>| {
            known.fingerprint.is_some()
                && known.fingerprint == key.fingerprint
                && known.identity.0 == key.identity.0
        };
        let known = self.loaded_towers.iter().find(|(known, ..)| is_equal(known));
        known.map(|(_, _, encoder)| Arc::clone(encoder))
    }

    pub(super) fn add_tower(
        &mut self,
        key: Key<VisionIdentity>,
        tower: TowerId,
        encoder: &Arc<VisionEncoder<O>>,
    ) {
        self.loaded_towers.push((key, tower, Arc::clone(encoder)));
    }

    /// Returns the model that was loaded from the same files.
    pub(super) fn checkpoint(&self, files: &ModelFiles) -> Option<Arc<Checkpoint<O>>> {
        let known = self.loaded_checkpoints.iter().find(|(known, _)| known == files);
        known.map(|(_, checkpoint)| Arc::clone(checkpoint))
    }

    pub(super) fn add_checkpoint(&mut self, files: ModelFiles, checkpoint: &Arc<Checkpoint<O>>) {
        self.loaded_checkpoints.push((files, Arc::clone(checkpoint)));
    }

    pub(super) fn encoder(&self, key: Option<&Key<EncoderIdentity>>) -> Option<Arc<TextTower<O>>> {
        let known = self.loaded_encoders.iter().find(|(known, _)| Some(known) == key);
        known.map(|(_, encoder)| Arc::clone(encoder))
    }

    pub(super) fn add_encoder(
        &mut self,
        key: Option<Key<EncoderIdentity>>,
        encoder: Option<&Arc<TextTower<O>>>,
    ) {
        if let (Some(key), Some(encoder)) = (key, encoder) {
            self.loaded_encoders.push((key, Arc::clone(encoder)));
        }
    }
}

/// Reads how the images of a model are prepared. `image_size` is the size that is set for it.
fn preprocessor(
    spec: &ModelSpec,
    vision: &VisionConfig,
    image_size: Option<u32>,
) -> Result<Preprocessor, LoadError> {
    if let Some(image_size) = image_size {
        check_image_size(image_size, vision.patch_size)?;
    }
    Preprocessor::read(spec.files.preprocessor.as_ref(), vision, image_size)
}

/// Checks an image size that is set for a model.
fn check_image_size(value: u32, patch: usize) -> Result<(), LoadError> {
    let (size, most) = (value as usize, MAX_SIDE_PATCHES * patch);
    if size > 0 && size % patch == 0 && size <= most {
        return Ok(());
    }
    Err(LoadError::ImageSize { value, patch, most })
}

fn key<I: PartialEq>(
    identity: I,
    all: &[I],
    weights: &CheckpointWeights,
    prefix: &str,
) -> Result<Key<I>, LoadError> {
    let several = all.iter().filter(|other| **other == identity).count() > 1;
    let fingerprint = several.then(|| weights.fingerprint(prefix)).transpose()?;
    Ok(Key { identity, fingerprint })
}
