//! Keys and values of a text that is being written.

use std::sync::Arc;

use super::Act;
use crate::kernels::rows::Rows;

/// Keys and values of a text, in the pieces that the steps added. A step adds one; beams and steps that are run again
/// share those before it.
#[derive(Debug)]
pub struct CausalRows {
    /// `[tokens, 2 x width]` each, keys first.
    pieces: Vec<Arc<[f32]>>,
    width: usize,
}

impl CausalRows {
    /// What `past` has, and the keys and values of `rows` rows of `qkv` from `start` on.
    pub(super) fn extend(past: Option<&Self>, qkv: &Act, start: usize, rows: usize) -> Self {
        let width = qkv.width() / 3;
        let new = (start..start + rows).flat_map(|row| &qkv.row(row)[width..]).copied().collect();
        let past = past.map_or(&[][..], |past| &past.pieces);
        Self { pieces: past.iter().cloned().chain([new]).collect(), width }
    }

    /// As attention takes them.
    pub(super) fn pieces(&self) -> Vec<Rows<'_>> {
        self.pieces.iter().map(|piece| Rows::of(piece, 2 * self.width)).collect()
    }
}
