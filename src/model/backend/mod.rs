//! The engine's seam on BLIP: loaded models behind [`Backend`].
//!
//! - this file: the loaded models and the vision side;
//! - `decode`: one ragged step of groups;
//! - `single_pass`: questions, candidates, pairs, embeddings;
//! - `loading`: checkpoints to a backend; `sharing`: which parts they share.

mod decode;
mod loading;
mod sharing;
mod single_pass;

pub use loading::{LoadEvent, Loaded, ModelSpec, Placement, check};

use super::checkpoint::Checkpoint;
use super::group::{Group, Memory};
use super::ops::Ops;
use super::search::{Search, SearchStart};
use super::vision::VisionTower;
use crate::engine::backend::{
    Backend, BackendError, GroupSpec, OnePassOutput, OnePassRow, StepEvent,
};
use crate::task::{ModelId, ModelInfo, Pixels, TowerId};

/// Loaded BLIP models on one device.
#[derive(Debug)]
pub struct BlipBackend<O: Ops> {
    pub(super) ops: O,
    pub(super) towers: Vec<VisionTower<O>>,
    pub(super) models: Vec<Checkpoint<O>>,
    infos: Vec<ModelInfo>,
    /// Decoder keys and values of one image, per model.
    cross_kv_bytes: Vec<u64>,
    /// Keys and values of one token in all layers, per model.
    token_kv_bytes: Vec<u64>,
    vocabularies: Vec<Vocabulary>,
}

/// What a model's tokenizer has to agree with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vocabulary {
    /// Rows of the embedding table.
    pub size: usize,
    /// The stop token, which is the tokenizer's `[SEP]`.
    pub stop_token: u32,
}

impl<O: Ops> BlipBackend<O> {
    /// What the model's tokenizer has to agree with.
    #[must_use]
    pub fn vocabulary(&self, model: ModelId) -> Vocabulary {
        self.vocabularies[model.0]
    }

    /// Returns when the memory is computed. A device computes behind the calls; what they give to the host has been
    /// waited for, memories have not.
    ///
    /// # Errors
    /// When the device failed.
    pub fn wait_for(&self, memory: &Memory<O>) -> Result<(), BackendError> {
        let row = self.ops.select_rows(memory.states(), &[0])?;
        self.ops.to_host(&row).map(drop)
    }
}

impl<O: Ops> Backend for BlipBackend<O> {
    type Memory = Memory<O>;
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

    fn encode(
        &mut self,
        tower: TowerId,
        images: &[&Pixels],
    ) -> Result<Vec<Memory<O>>, BackendError> {
        let features = self.towers[tower.0].encode(&self.ops, images)?;
        Ok(features.into_iter().map(Memory::new).collect())
    }

    fn score(
        &mut self,
        model: ModelId,
        rows: &[OnePassRow<Memory<O>>],
    ) -> Result<Vec<OnePassOutput<Memory<O>>>, BackendError> {
        let tower = &self.towers[self.infos[model.0].tower.0];
        single_pass::score(&self.ops, &self.models[model.0], tower, rows)
    }

    fn open(&mut self, spec: GroupSpec<Memory<O>>) -> Group<O> {
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
        Group { memory: spec.memory, cross: None, start, rows: Vec::new(), search }
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
        decode::step(&self.ops, model, decoder, groups)
    }
}
