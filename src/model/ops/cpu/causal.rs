//! Self-attention KV cache of text that is being generated.

use std::sync::Arc;

use super::CpuActivations;
use crate::kernels::rows::Rows;

/// KV cache of one sequence in one layer, as a list of pieces. Each step appends one piece. Beams share the pieces of
/// their common prefix. If a step is repeated after an error, it reuses the pieces of the earlier steps.
#[derive(Debug)]
pub struct CausalRows {
    /// Pieces `[tokens, 2 x width]`. In each row, the keys come first.
    pieces: Vec<Arc<[f32]>>,
    width: usize,
}

impl CausalRows {
    /// Returns a cache with the pieces of `past` and one more piece: the keys and values of `rows` rows of `qkv`,
    /// starting at row `start`.
    pub(super) fn extend(
        past: Option<&Self>,
        qkv: &CpuActivations,
        start: usize,
        rows: usize,
    ) -> Self {
        let width = qkv.width() / 3;
        let new = if rows == 1 {
            // A decode step. The row is copied as one slice: an iterator over its values took longer than attention.
            Arc::from(&qkv.row(start)[width..])
        } else {
            (start..start + rows).flat_map(|row| &qkv.row(row)[width..]).copied().collect()
        };
        let past = past.map_or(&[][..], |past| &past.pieces);
        let mut pieces = Vec::with_capacity(past.len() + 1);
        pieces.extend_from_slice(past);
        pieces.push(new);
        Self { pieces, width }
    }

    /// Returns the pieces as views, for the attention kernel.
    pub(super) fn pieces(&self) -> Vec<Rows<'_>> {
        self.pieces.iter().map(|piece| Rows::of(piece, 2 * self.width)).collect()
    }
}
