//! KV cache of text that is being generated.

use std::sync::Arc;

use super::Act;
use crate::kernels::rows::Rows;

/// KV cache of one sequence, in pieces. Each step appends one piece. Beams, and steps that are run again, share the
/// earlier pieces.
#[derive(Debug)]
pub struct CausalRows {
    /// Pieces of `[tokens, 2 x width]`, keys first.
    pieces: Vec<Arc<[f32]>>,
    width: usize,
}

impl CausalRows {
    /// Copies the pieces of `past` and appends one piece: the keys and values of `rows` rows of `qkv`, from row `start`
    /// on.
    pub(super) fn extend(past: Option<&Self>, qkv: &Act, start: usize, rows: usize) -> Self {
        let width = qkv.width() / 3;
        let new = (start..start + rows).flat_map(|row| &qkv.row(row)[width..]).copied().collect();
        let past = past.map_or(&[][..], |past| &past.pieces);
        Self { pieces: past.iter().cloned().chain([new]).collect(), width }
    }

    /// The pieces as views, for the attention kernel.
    pub(super) fn pieces(&self) -> Vec<Rows<'_>> {
        self.pieces.iter().map(|piece| Rows::of(piece, 2 * self.width)).collect()
    }
}
