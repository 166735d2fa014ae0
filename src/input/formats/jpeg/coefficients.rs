//! Storage for decoded coefficients until they are transformed to samples.

use super::error::JpegError;
use super::frame::{CoefficientBlock, Component, Frame};
use crate::input::memory;
use crate::input::stop::Stop;

/// Coefficients of one component, either for the whole picture or for one row of MCUs.
#[derive(Debug)]
pub(super) struct BlockGrid {
    blocks: Vec<CoefficientBlock>,
    /// Number of blocks in a row, including padding.
    width: usize,
    /// The row of blocks, counted from the top of the picture, at which `blocks` starts.
    first_row: usize,
}

impl BlockGrid {
    fn new(width: usize, rows: usize, stop: Stop<'_>) -> Result<Self, JpegError> {
        let blocks = memory::filled_until::<_, JpegError>([0; 64], width * rows, stop)?;
        Ok(Self { blocks, width, first_row: 0 })
    }

    /// Allocates all rows of the component, for multi-scan files.
    pub(super) fn whole(component: &Component, stop: Stop<'_>) -> Result<Self, JpegError> {
        Self::new(component.padded_width, component.padded_height, stop)
    }

    /// Allocates one row of MCUs, for single-scan files.
    pub(super) fn strip(component: &Component, stop: Stop<'_>) -> Result<Self, JpegError> {
        Self::new(component.padded_width, component.v, stop)
    }

    /// Returns the block at a position in the picture, counted in blocks.
    pub(super) fn block_mut(&mut self, row: usize, column: usize) -> &mut CoefficientBlock {
        &mut self.blocks[(row - self.first_row) * self.width + column]
    }

    /// Returns a row of blocks, including padding.
    pub(super) fn row(&self, row: usize) -> &[CoefficientBlock] {
        &self.blocks[(row - self.first_row) * self.width..][..self.width]
    }

    pub(super) fn release(self) {
        memory::release(self.blocks);
    }

    /// Clears all coefficients and moves the start of the strip to `first_row`.
    pub(super) fn restart_at(&mut self, first_row: usize) {
        self.first_row = first_row;
        self.blocks.fill([0; 64]);
    }
}

/// Allocates the coefficients of every component, for multi-scan files.
///
/// # Errors
/// `OutOfMemory`, `Stopped`.
pub(super) fn whole_picture(frame: &Frame, stop: Stop<'_>) -> Result<Vec<BlockGrid>, JpegError> {
    frame.components.iter().map(|component| BlockGrid::whole(component, stop)).collect()
}

/// Allocates one row of MCUs of every component, for single-scan files.
///
/// # Errors
/// `OutOfMemory`, `Stopped`.
pub(super) fn one_strip(frame: &Frame, stop: Stop<'_>) -> Result<Vec<BlockGrid>, JpegError> {
    frame.components.iter().map(|component| BlockGrid::strip(component, stop)).collect()
}

/// Returns the size in bytes of the result of [`whole_picture`].
pub(super) fn whole_bytes(frame: &Frame) -> u64 {
    frame.samples() * size_of::<i16>() as u64
}

/// Returns the size in bytes of the result of [`one_strip`].
pub(super) fn strip_bytes(frame: &Frame) -> u64 {
    let blocks = |component: &Component| (component.padded_width * component.v) as u64;
    frame.components.iter().map(blocks).sum::<u64>() * size_of::<CoefficientBlock>() as u64
}
