//! Decodes the blocks of a scan in order, counts its restart intervals and calculates its cost (`jdcoefct.c`,
//! `per_scan_setup` of `jdinput.c`).

use super::coefficients::BlockGrid;
use super::error::JpegError;
use super::frame::{CoefficientBlock, Frame, Process};
use super::header::{Scan, ScanComponent, Tables};

/// The entropy decoder of a scan.
pub(super) trait BlockDecoder {
    /// True once the data has run out before the end of the restart interval, which happens only in damaged files.
    /// Blocks then stay unchanged until the next restart.
    fn is_exhausted(&self) -> bool;

    /// Starts an MCU. Reads a restart marker first if one is due. Returns false if the blocks of the MCU must stay
    /// unchanged.
    ///
    /// # Errors
    /// `Truncated`.
    fn begin_mcu(&mut self) -> Result<bool, JpegError>;

    /// Decodes one block of the component that has the index `component` in the scan. Returns false if the data is
    /// damaged; the caller must then skip the rest of the MCU.
    ///
    /// # Errors
    /// `Truncated`, `TooMuchWork`.
    fn block(&mut self, component: usize, block: &mut CoefficientBlock) -> Result<bool, JpegError>;
}

/// Counter of the MCUs up to the next restart marker.
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

    /// Expects a marker after every `interval` MCUs (in lossless files, rows of MCUs); 0 means no markers.
    pub(super) fn every(interval: u16) -> Self {
        Self { interval, left: interval, next: 0 }
    }

    /// Counts an MCU (in lossless files, a row of MCUs). Returns the number, 0 to 7, of the restart marker before it,
    /// or `None` if no marker is due.
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

/// True if the picture needs several scans: it is progressive, or the first scan lacks some of the components.
pub(super) fn is_multi_scan(frame: &Frame, first_scan: &Scan) -> bool {
    frame.process.progressive || first_scan.components.len() < frame.components.len()
}

/// Decodes the blocks of `scan` in one row of interleaved MCUs. Rows must be decoded in order, from 0. Returns true if
/// there was still data at the start of at least one MCU.
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

/// Like [`decode_mcu_row`], but for a non-interleaved scan. Such a scan has one component, each block is an MCU, and there
/// is no padding.
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

/// Returns the number of blocks that a scan traverses, including padding. In a lossless scan, each block is a single
/// sample.
pub(super) fn blocks_in_scan(frame: &Frame, scan: &Scan) -> u64 {
    let blocks = |part: &ScanComponent| {
        let component = &frame.components[part.index];
        (component.padded_width * component.padded_height) as u64
    };
    scan.components.iter().map(blocks).sum()
}

/// Returns the work of a scan, in units of the cost of traversing one block without data. Only traversal counts: a scan
/// that adds no data takes just a few bytes, so the file's length does not limit how many blocks are traversed. It does
/// limit the added data, whose cost therefore needs no limit of its own.
pub(super) fn work_of_scan(frame: &Frame, scan: &Scan) -> u64 {
    scan_cost(frame.process, blocks_in_scan(frame, scan), (scan.first, scan.last, scan.high))
}

/// Like [`work_of_scan`], but takes the number of blocks (or lossless samples) that the scan traverses, and its
/// parameters: first and last coefficient, and previous bit position (fields of [`Scan`]).
pub(super) fn scan_cost(process: Process, walked: u64, (first, last, high): (u8, u8, u8)) -> u64 {
    let Process { progressive, arithmetic, lossless } = process;
    let work = if lossless {
        walked.div_ceil(LOSSLESS_SAMPLES)
    } else if progressive && first > 0 && high > 0 {
        // Each coefficient from `first` to `last` is visited. Arithmetic decoding also visits the coefficients before
        // `first`.
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

/// Cost of traversing an arithmetic-coded block without data. The unit is the cost of traversing a Huffman-coded block
/// without data, which the constants below call the cost of one block.
const ARITHMETIC: u64 = 2;
/// Number of lossless samples that cost as much as one block.
const LOSSLESS_SAMPLES: u64 = 8;
/// Number of coefficients that a refinement scan can visit for the cost of one block.
const REFINED_COEFFICIENTS: u64 = 16;
/// Cost of preparing the tables of a scan, in units of the cost of one block.
const SCAN_START: u64 = 256;

/// Checks that an interleaved MCU has at most ten blocks (`D_MAX_BLOCKS_IN_MCU`; T.81, B.2.3).
///
/// # Errors
/// `Damaged`.
pub(super) fn check_mcu(frame: &Frame, scan: &Scan) -> Result<(), JpegError> {
    const MOST_BLOCKS: usize = 10;
    let blocks =
        |part: &ScanComponent| frame.components[part.index].h * frame.components[part.index].v;
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
        // The AC scans of `jpeg_simple_progression`, here for four components of 50 megapixels each. An entry contains
        // the first and last coefficient and the previous bit position.
        let script = [(1, 5, 0), (6, 63, 0), (1, 63, 2), (1, 63, 1)];
        let blocks = 1000 * 782;
        let alone: u64 = script.iter().map(|&scan| scan_cost(process, blocks, scan)).sum();
        let together: u64 =
            [(0, 0, 0), (0, 0, 1)].map(|scan| scan_cost(process, blocks * 4, scan)).iter().sum();
        assert!(alone * 4 + together < 56 * 50_000_000 / 64);
        // Fourteen AC refinement scans of one full-size component already exceed the limit. A file that would take
        // minutes to decode is therefore rejected.
        assert!(scan_cost(process, blocks, (1, 63, 1)) * 14 > 56 * 50_000_000 / 64);
    }
}
