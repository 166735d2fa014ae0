//! The order in which a scan gives blocks, and its restart intervals (`jdcoefct.c`, `per_scan_setup` of `jdinput.c`).

use super::JpegError;
use super::coefficients::BlockGrid;
use super::frame::{Block, Frame, Process};
use super::header::{Scan, Tables};

/// One way of coding, in the middle of a scan.
pub(super) trait BlockDecoder {
    /// True while data are missing that a damaged file should have had: blocks stay as they are until the next restart.
    fn is_exhausted(&self) -> bool;

    /// Begins an MCU: takes a restart marker where one is due. False: its blocks are left as they are.
    ///
    /// # Errors
    /// `Truncated`.
    fn begin_mcu(&mut self) -> Result<bool, JpegError>;

    /// Decodes one block of the scan's component with this index. False ends the MCU early: the data are damaged.
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

    /// A marker after each `interval` MCUs, or rows of these; 0 for none.
    pub(super) fn every(interval: u16) -> Self {
        Self { interval, left: interval, next: 0 }
    }

    /// Counts an MCU. The number of the restart marker, 0 to 7, that comes in front of it, where one does.
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

/// Decodes the blocks that `scan` has in one row of interleaved MCUs; rows come in order, from 0. Returns true when
/// some MCU began with data to read.
///
/// # Errors
/// As the decoder's.
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

/// A scan of one component: every block is an MCU, and there is no padding.
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

/// Blocks that a scan walks over, padding included; samples of a lossless one.
pub(super) fn blocks_in_scan(frame: &Frame, scan: &Scan) -> u64 {
    let blocks = |part: &super::header::ScanComponent| {
        let component = &frame.components[part.index];
        (component.padded_width * component.padded_height) as u64
    };
    scan.components.iter().map(blocks).sum()
}

/// Work of a scan in blocks that are cheap to walk over: what it costs when it adds nothing, which a few bytes of a file
/// can say. What it adds costs bytes of the file, so its length bounds that.
pub(super) fn work_of_scan(frame: &Frame, scan: &Scan) -> u64 {
    work_of_walk(frame.process, blocks_in_scan(frame, scan), (scan.first, scan.last, scan.high))
}

/// The same for a scan of so many blocks, or samples, by its parameters: first and last coefficient, and the bit before.
pub(super) fn work_of_walk(
    process: Process,
    walked: u64,
    (first, last, high): (u8, u8, u8),
) -> u64 {
    let Process { progressive, arithmetic, lossless } = process;
    let work = if lossless {
        walked.div_ceil(LOSSLESS_SAMPLES)
    } else if progressive && first > 0 && high > 0 {
        // Each coefficient of the band is looked at. Arithmetic decoding looks at those in front of it, too.
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

/// How many times more a block without data costs with arithmetic coding.
const ARITHMETIC: u64 = 2;
/// Samples of a lossless scan that cost as much as a block without data.
const LOSSLESS_SAMPLES: u64 = 8;
/// Coefficients that a refinement looks at for the cost of a block.
const REFINED_COEFFICIENTS: u64 = 16;
/// What the tables of a scan cost, in blocks.
const SCAN_START: u64 = 256;

/// An interleaved MCU has at most ten blocks (`D_MAX_BLOCKS_IN_MCU`; T.81, B.2.3).
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
        // `jpeg_simple_progression` for four components, here of 50 megapixels each: first and last coefficient, the bit
        // before.
        let script = [(1, 5, 0), (6, 63, 0), (1, 63, 2), (1, 63, 1)];
        let blocks = 1000 * 782;
        let alone: u64 = script.iter().map(|&scan| work_of_walk(process, blocks, scan)).sum();
        let together: u64 =
            [(0, 0, 0), (0, 0, 1)].map(|scan| work_of_walk(process, blocks * 4, scan)).iter().sum();
        assert!(alone * 4 + together < 56 * 50_000_000 / 64);
        // Refinements alone are refused long before they add up to minutes.
        assert!(work_of_walk(process, blocks, (1, 63, 1)) * 14 > 56 * 50_000_000 / 64);
    }
}
