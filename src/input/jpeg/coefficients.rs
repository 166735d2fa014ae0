//! Where decoded coefficients are kept until they become samples.

use super::frame::{Block, Component, Frame};

/// Coefficients of one component: all of its rows, or those of one row of MCUs.
#[derive(Debug)]
pub(super) struct BlockGrid {
    blocks: Vec<Block>,
    /// Blocks in a row, padding included.
    width: usize,
    /// The row of the picture that `blocks` begins with.
    first_row: usize,
}

impl BlockGrid {
    /// Rows of blocks kept.
    fn new(width: usize, rows: usize) -> Self {
        Self { blocks: vec![[0; 64]; width * rows], width, first_row: 0 }
    }

    /// Every row: for pictures whose scans are apart.
    pub(super) fn whole(component: &Component) -> Self {
        Self::new(component.padded_width, component.padded_height)
    }

    /// One row of MCUs, for pictures in one scan.
    pub(super) fn strip(component: &Component) -> Self {
        Self::new(component.padded_width, component.v)
    }

    /// A block by its place in the picture.
    pub(super) fn block_mut(&mut self, row: usize, column: usize) -> &mut Block {
        &mut self.blocks[(row - self.first_row) * self.width + column]
    }

    /// A row of blocks, padding included.
    pub(super) fn row(&self, row: usize) -> &[Block] {
        &self.blocks[(row - self.first_row) * self.width..][..self.width]
    }

    /// Clears the strip for the rows from `first_row` on.
    pub(super) fn restart_at(&mut self, first_row: usize) {
        self.first_row = first_row;
        self.blocks.fill([0; 64]);
    }
}

/// The coefficients of every component.
pub(super) fn whole_picture(frame: &Frame) -> Vec<BlockGrid> {
    frame.components.iter().map(BlockGrid::whole).collect()
}

/// Room for one row of MCUs.
pub(super) fn one_strip(frame: &Frame) -> Vec<BlockGrid> {
    frame.components.iter().map(BlockGrid::strip).collect()
}
