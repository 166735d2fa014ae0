//! Implements the engine's [`Backend`] trait for loaded BLIP models.
//!
//! - this file: contains the loaded models and encodes images;
//! - `decode`: runs one decode step over a ragged batch of groups;
//! - `scores`: reads what the searches of a step need of its logits;
//! - `single_pass`: runs rows that need a single pass: questions, candidates, matching pairs and embeddings;
//! - `loading`: loads checkpoints into a backend;
//! - `sharing`: finds the parts that models share.

mod decode;
mod loading;
mod scores;
mod sharing;
mod single_pass;

pub use loading::{LoadEvent, Loaded, ModelSpec, Placement, check};

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use super::checkpoint::Checkpoint;
use super::group::{EncoderStates, Group};
use super::ops::Ops;
use super::search::{Search, SearchStart};
use super::vision::VisionTower;
use crate::engine::backend::{
    Backend, BackendError, DeviceUsage, GroupSpec, SinglePassOutput, SinglePassRow, StepEvent,
};
use crate::kernels::OutOfMemory;
use crate::task::{ModelId, ModelInfo, Pixels, TowerId, VisionOutput};

/// Loaded BLIP models on one device.
#[derive(Debug)]
pub struct BlipBackend<O: Ops> {
    pub(super) ops: O,
    pub(super) towers: Vec<VisionTower<O>>,
    /// The models without their vision towers. Models that were loaded from the same files are the same object.
    pub(super) models: Vec<Arc<Checkpoint<O>>>,
    infos: Vec<ModelInfo>,
    /// For each model, the size in bytes of the decoder's cross-attention keys and values for one image.
    cross_kv_bytes: Vec<u64>,
    /// For each model, the number of KV cache bytes per token, in all layers together.
    token_kv_bytes: Vec<u64>,
    vocabularies: Vec<Option<Vocabulary>>,
}

/// Properties of a model that its tokenizer must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vocabulary {
    /// Number of rows of the embedding table.
    pub size: usize,
    /// Token that ends a sequence; it is the tokenizer's `[SEP]`.
    pub stop_token: u32,
}

impl<O: Ops> BlipBackend<O> {
    /// Returns the properties that the model's tokenizer must match; `None` for a model without a text tower.
    #[must_use]
    pub fn vocabulary(&self, model: ModelId) -> Option<Vocabulary> {
        self.vocabularies[model.0]
    }
}

impl<O: Ops> Backend for BlipBackend<O> {
    type EncoderStates = EncoderStates<O>;
    type Group = Group<O>;

    fn models(&self) -> &[ModelInfo] {
        &self.infos
    }

    fn feature_bytes(&self, tower: TowerId) -> u64 {
        let tower = &self.towers[tower.0];
        self.ops.feature_bytes(tower.tokens(), tower.width())
    }

    fn cross_kv_bytes(&self, model: ModelId) -> u64 {
        self.cross_kv_bytes[model.0]
    }

    fn row_kv_bytes_per_token(&self, model: ModelId) -> u64 {
        self.token_kv_bytes[model.0]
    }

    fn device_usage(&self) -> Option<DeviceUsage> {
        self.ops.device_usage()
    }

    fn units_to_warm_up(&self) -> usize {
        self.ops.passes_to_warm_up()
    }

    fn encode(
        &mut self,
        output: VisionOutput,
        images: &[&Pixels],
    ) -> Result<Vec<EncoderStates<O>>, BackendError> {
        let features = within_memory(|| {
            let layer = output.layer.map(usize::from);
            let features = self.towers[output.tower.0].encode(&self.ops, images, layer)?;
            // So that the time and the errors of this unit of work are not those of the next one.
            self.ops.wait()?;
            Ok(features)
        })?;
        Ok(features.into_iter().map(EncoderStates::new).collect())
    }

    fn run_single_pass(
        &mut self,
        model: ModelId,
        rows: &[SinglePassRow<EncoderStates<O>>],
    ) -> Result<Vec<SinglePassOutput<EncoderStates<O>>>, BackendError> {
        let tower = self.infos[model.0].tower().map(|tower| &self.towers[tower.0]);
        within_memory(|| {
            let model = &self.models[model.0];
            let outputs = single_pass::run_single_pass(&self.ops, model, tower, rows)?;
            // As in `encode`: the states of questions are not copied to the host, which would wait for them.
            self.ops.wait()?;
            Ok(outputs)
        })
    }

    fn open(&mut self, spec: GroupSpec<EncoderStates<O>>) -> Group<O> {
        let decoder =
            self.models[spec.model.0].decoder().expect("the plan opens groups of decoders only");
        let start = decoder.start(spec.prompt.as_ref().map(crate::task::TokenIds::as_slice));
        let search = Search::new(
            &spec.params,
            SearchStart {
                prompt: start.clone(),
                stop_token: decoder.stop,
                sequence: spec.sequence,
            },
        );
        let explained = spec.explain.map(|explain| (explain, Vec::new()));
        Group { memory: spec.states, cross: None, start, rows: Vec::new(), search, explained }
    }

    fn pending_tokens(&self, group: &Group<O>) -> usize {
        if group.rows.is_empty() { group.start.len() } else { group.rows.len() }
    }

    fn step(
        &mut self,
        model: ModelId,
        groups: &mut [&mut Group<O>],
    ) -> Result<Vec<StepEvent>, BackendError> {
        let decoder = self.models[model.0].decoder().expect("groups belong to decoders");
        within_memory(|| decode::step(&self.ops, model, decoder, groups))
    }
}

/// Runs `call`. If the kernels cannot allocate a buffer for it, returns that as an error. This is unwind-safe because
/// `call` changes groups only after it has succeeded.
fn within_memory<T>(call: impl FnOnce() -> Result<T, BackendError>) -> Result<T, BackendError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|payload| {
        match payload.downcast::<OutOfMemory>() {
            Ok(failed) => Err(BackendError::OutOfMemory(format!(
                "{} bytes of activations cannot be allocated",
                failed.bytes
            ))),
            Err(payload) => resume_unwind(payload),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_without_memory_are_an_error_and_other_panics_go_on() {
        let failed = within_memory::<()>(|| OutOfMemory { bytes: 7 }.unwind());
        assert!(matches!(failed, Err(BackendError::OutOfMemory(text)) if text.contains("7 bytes")));
        let other = catch_unwind(|| within_memory::<()>(|| resume_unwind(Box::new("a bug"))));
        assert_eq!(other.unwrap_err().downcast_ref(), Some(&"a bug"));
    }
}
