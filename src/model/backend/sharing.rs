//! Finds the parts that models share: vision towers and text encoders with equal configurations and byte-identical
//! weights.
//!
//! Weights are compared by their digests. A digest is computed only if another checkpoint has an equal configuration,
//! so the weights of a checkpoint that cannot share anything are read only once.

use std::sync::Arc;

use super::ModelSpec;
use crate::model::checkpoint::TEXT_ENCODER;
use crate::model::config::{BlipConfig, TextConfig, VisionConfig};
use crate::model::error::LoadError;
use crate::model::load::CheckpointWeights;
use crate::model::preprocessor::Preprocessor;
use crate::task::{ModelClass, TowerId};

/// A checkpoint whose configuration files were read and whose weight files were opened.
pub(super) struct OpenedCheckpoint {
    pub(super) config: BlipConfig,
    pub(super) class: ModelClass,
    pub(super) preprocessor: Preprocessor,
    pub(super) weights: CheckpointWeights,
}

impl OpenedCheckpoint {
    pub(super) fn open(spec: &ModelSpec) -> Result<Self, LoadError> {
        let config = BlipConfig::read(&spec.files.config)?;
        let class = config.class(spec.files.config.path())?;
        let preprocessor =
            Preprocessor::read(spec.files.preprocessor.as_ref(), &config.vision_config)?;
        let weights = CheckpointWeights::open(&spec.files.weights)?;
        Ok(Self { config, class, preprocessor, weights })
    }

    fn vision(&self) -> VisionIdentity {
        (self.config.vision_config.clone(), self.preprocessor.clone())
    }

    /// Returns the identity of the text encoder, or `None` if models of this class do not share text encoders.
    fn text_encoder(&self) -> Option<EncoderIdentity> {
        match self.class {
            ModelClass::QuestionAnswering | ModelClass::ImageTextRetrieval => {
                Some((self.config.text_config.clone(), self.config.vision_config.hidden_size))
            }
            ModelClass::ConditionalGeneration | ModelClass::Base => None,
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

/// The parts loaded so far that later models may share. `E` is the type of a text encoder.
pub(super) struct SharedParts<E> {
    /// Identities of the vision towers of all checkpoints that are loaded together, including those not loaded yet.
    visions: Vec<VisionIdentity>,
    /// Identities of the text encoders of those checkpoints whose model class shares text encoders.
    encoders: Vec<EncoderIdentity>,
    loaded_towers: Vec<(Key<VisionIdentity>, TowerId)>,
    loaded_encoders: Vec<(Key<EncoderIdentity>, Arc<E>)>,
}

impl<E> SharedParts<E> {
    pub(super) fn new(checkpoints: &[OpenedCheckpoint]) -> Self {
        Self {
            visions: checkpoints.iter().map(OpenedCheckpoint::vision).collect(),
            encoders: checkpoints.iter().filter_map(OpenedCheckpoint::text_encoder).collect(),
            loaded_towers: Vec::new(),
            loaded_encoders: Vec::new(),
        }
    }

    pub(super) fn vision_key(
        &self,
        opened: &OpenedCheckpoint,
    ) -> Result<Key<VisionIdentity>, LoadError> {
        key(opened.vision(), &self.visions, &opened.weights, "vision_model.")
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
        self.loaded_towers.iter().find(|(known, _)| known == key).map(|(_, tower)| *tower)
    }

    pub(super) fn add_tower(&mut self, key: Key<VisionIdentity>, tower: TowerId) -> TowerId {
        self.loaded_towers.push((key, tower));
        tower
    }

    pub(super) fn encoder(&self, key: Option<&Key<EncoderIdentity>>) -> Option<Arc<E>> {
        let known = self.loaded_encoders.iter().find(|(known, _)| Some(known) == key);
        known.map(|(_, encoder)| Arc::clone(encoder))
    }

    pub(super) fn add_encoder(
        &mut self,
        key: Option<Key<EncoderIdentity>>,
        encoder: Option<&Arc<E>>,
    ) {
        if let (Some(key), Some(encoder)) = (key, encoder) {
            self.loaded_encoders.push((key, Arc::clone(encoder)));
        }
    }
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
