//! The order of the blocks in a scan, and its restart intervals (`jdcoefct.c`, `per_scan_setup` of `jdinput.c`).

use super::JpegError;
use super::coefficients::BlockGrid;
use super::frame::{Block, Frame, Process};
use super::header::{Scan, Tables};

/// The entropy decoder of a scan.
pub(super) trait BlockDecoder {
    /// True once the data ran out before the end of the interval, in a damaged file. Blocks stay unchanged until the
    /// next restart.
    fn is_exhausted(&self) -> bool;

    /// Starts an MCU and reads a restart marker if one is due. False if the blocks of the MCU stay unchanged.
    ///
    /// # Errors
    /// `Truncated`.
    fn begin_mcu(&mut self) -> Result<bool, JpegError>;

    /// Decodes one block. `component` is the index within the scan. False ends the MCU early because the data is
    /// damaged.
    ///
    /// # Errors
    /// `Truncated`, `TooMuchWork`.
    fn block(&mut self, component: usize, block: &mut Block) -> Result<bool, JpegError>;
}

/// Counts MCUs up to the next restart marker.
#[derive(Debug)]
pub(super) struct Restarts {
    interval: u16,
    left: u16,
    next: u8,
}

impl Restarts {
    pub(super) fn new(tables: &Tables) -> Self {
        Self::every(tables.restart_interval)
    }

    /// A marker after every `interval` MCUs or rows of MCUs; 0 for none.
    pub(super) fn every(interval: u16) -> Self {
        Self { interval, left: interval, next: 0 }
    }

    /// Counts an MCU. Returns the number, 0 to 7, of the restart marker before it, if there is one.
    pub(super) fn next(&mut self) -> Option<u8> {
        if self.interval == 0 {
            return None;
        }
        let due = (self.left == 0).then_some(self.next);
        if due.is_some() {
            self.left = self.interval;
            self.next = (self.next + 1) & 7;
        }
        self.left -= 1;
        due
    }
}

/// Decodes the blocks of `scan` in one row of interleaved MCUs. Rows must be decoded in order, from 0. Returns true if
/// data was left at the start of at least one MCU.
///
/// # Errors
/// The errors of the entropy decoder.
pub(super) fn decode_mcu_row(
    decoder: &mut impl BlockDecoder,
    frame: &Frame,
    scan: &Scan,
    grids: &mut [BlockGrid],
    mcu_row: usize,
) -> Result<bool, JpegError> {
    if let [only] = scan.components.as_slice() {
        return decode_alone(decoder, frame, only.index, grids, mcu_row);
    }
    let mut has_data = false;
    for mcu in 0..frame.mcus_per_row {
        has_data |= !decoder.is_exhausted();
        if !decoder.begin_mcu()? {
            continue;
        }
        'blocks: for (position, part) in scan.components.iter().enumerate() {
            let component = &frame.components[part.index];
            let grid = &mut grids[part.index];
            for y in 0..component.v {
                for x in 0..component.h {
                    let (row, column) = (mcu_row * component.v + y, mcu * component.h + x);
                    if !decoder.block(position, grid.block_mut(row, column))? {
                        break 'blocks;
                    }
                }
            }
        }
    }
    Ok(has_data)
}

/// A non-interleaved scan: it has one component, every block is an MCU, and there is no padding.
fn decode_alone(
    decoder: &mut impl BlockDecoder,
    frame: &Frame,
    index: usize,
    grids: &mut [BlockGrid],
    mcu_row: usize,
) -> Result<bool, JpegError> {
    let component = &frame.components[index];
    let first = mcu_row * component.v;
    let end = (first + component.v).min(component.height_in_blocks);
    let mut has_data = false;
    for row in first..end {
        for column in 0..component.width_in_blocks {
            has_data |= !decoder.is_exhausted();
            if decoder.begin_mcu()? {
                decoder.block(0, grids[index].block_mut(row, column))?;
            }
        }
    }
    Ok(has_data)
}

/// Blocks that a scan traverses, including padding; for a lossless scan, samples.
pub(super) fn blocks_in_scan(frame: &Frame, scan: &Scan) -> u64 {
    let blocks = |part: &super::header::ScanComponent| {
        let component = &frame.components[part.index];
        (component.padded_width * component.padded_height) as u64
    };
    scan.components.iter().map(blocks).sum()
}

/// Work of a scan, in blocks that are cheap to traverse: the cost of a scan that adds nothing, which takes only a few
/// bytes of a file. The work for added data takes bytes of the file, so the length of the file bounds it.
pub(super) fn work_of_scan(frame: &Frame, scan: &Scan) -> u64 {
    scan_cost(frame.process, blocks_in_scan(frame, scan), (scan.first, scan.last, scan.high))
}

/// The same for a scan that traverses `walked` blocks (or samples), from its parameters: first and last coefficient,
/// and previous bit position.
pub(super) fn scan_cost(process: Process, walked: u64, (first, last, high): (u8, u8, u8)) -> u64 {
    let Process { progressive, arithmetic, lossless } = process;
    let work = if lossless {
        walked.div_ceil(LOSSLESS_SAMPLES)
    } else if progressive && first > 0 && high > 0 {
        // Each coefficient of the band is visited. Arithmetic decoding also visits those before the band.
        let first = if arithmetic { 1 } else { first };
        let band = u64::from(last.saturating_sub(first)) + 1;
        walked.saturating_mul(band.div_ceil(REFINED_COEFFICIENTS))
    } else if arithmetic {
        walked.saturating_mul(ARITHMETIC)
    } else {
        walked
    };
    work.saturating_add(SCAN_START)
}

/// Cost factor of arithmetic coding for a block without data.
const ARITHMETIC: u64 = 2;
/// Samples of a lossless scan that cost as much as a block without data.
const LOSSLESS_SAMPLES: u64 = 8;
/// Coefficients that a refinement scan visits at the cost of one block.
const REFINED_COEFFICIENTS: u64 = 16;
/// Cost of preparing the tables of a scan, in blocks.
const SCAN_START: u64 = 256;

/// Checks that an interleaved MCU has at most ten blocks (`D_MAX_BLOCKS_IN_MCU`; T.81, B.2.3).
///
/// # Errors
/// `Damaged`.
pub(super) fn check_mcu(frame: &Frame, scan: &Scan) -> Result<(), JpegError> {
    const MOST_BLOCKS: usize = 10;
    let blocks = |part: &super::header::ScanComponent| {
        frame.components[part.index].h * frame.components[part.index].v
    };
    let total: usize = scan.components.iter().map(blocks).sum();
    if scan.components.len() > 1 && total > MOST_BLOCKS {
        return Err(JpegError::Damaged);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_are_due_after_each_interval() {
        let mut restarts = Restarts { interval: 2, left: 2, next: 0 };
        let due: Vec<_> = (0..7).map(|_| restarts.next()).collect();
        assert_eq!(due, [None, None, Some(0), None, Some(1), None, Some(2)]);
        let mut none = Restarts { interval: 0, left: 0, next: 0 };
        assert_eq!(none.next(), None);
    }

    #[test]
    fn the_scans_that_libjpeg_writes_are_within_what_is_read() {
        let process = Process { progressive: true, ..Process::SEQUENTIAL };
        // `jpeg_simple_progression` for four components, here of 50 megapixels each: first and last coefficient,
        // previous bit position.
        let script = [(1, 5, 0), (6, 63, 0), (1, 63, 2), (1, 63, 1)];
        let blocks = 1000 * 782;
        let alone: u64 = script.iter().map(|&scan| scan_cost(process, blocks, scan)).sum();
        let together: u64 =
            [(0, 0, 0), (0, 0, 1)].map(|scan| scan_cost(process, blocks * 4, scan)).iter().sum();
        assert!(alone * 4 + together < 56 * 50_000_000 / 64);
        // Refinement scans alone are rejected long before they add up to minutes.
        assert!(scan_cost(process, blocks, (1, 63, 1)) * 14 > 56 * 50_000_000 / 64);
    }
}
