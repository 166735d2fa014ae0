//! Interblock smoothing of progressive files. Coefficients that no scan has delivered are estimated from the DC values
//! of the neighbouring blocks (`decompress_smooth_data` of libjpeg-turbo's `jdcoefct.c`). Only files that end after
//! their first scans are affected; if the scans deliver all bits, the image is unchanged.

use super::coefficients::BlockGrid;
use super::frame::{CoefficientBlock, Component, Frame};
use super::header::Scan;
use crate::input::memory::{self, OutOfMemory};

/// Number of coefficients, in zigzag order, that take part in smoothing.
const COEFFICIENTS: usize = 10;
/// Positions in a block of the coefficients that take part in smoothing.
const POSITIONS: [usize; COEFFICIENTS] = [0, 1, 8, 16, 9, 2, 3, 10, 17, 24];
/// Marks a coefficient for which no scan has delivered any bits.
const UNKNOWN: i8 = -1;

/// DC values of five rows of five blocks, with the current block in the middle.
type Window = [[i32; 5]; 5];

/// Records which bits of each coefficient the scans have delivered.
#[derive(Debug)]
pub(super) struct KnownBits {
    /// By component and coefficient: the position of the lowest known bit. It is 0 if all bits are known, and
    /// [`UNKNOWN`] if none is.
    known: Vec<[i8; 64]>,
    /// The values of `known` before the component's last scan.
    before: Vec<[i8; 64]>,
    scans: u32,
    /// The last row of MCUs for which the last scan had data.
    last_good_row: usize,
}

impl KnownBits {
    pub(super) fn new(frame: &Frame) -> Self {
        let none = || vec![[UNKNOWN; 64]; frame.components.len()];
        // The entries of a component that no scan contains are never read.
        let before = vec![[0; 64]; frame.components.len()];
        Self { known: none(), before, scans: 0, last_good_row: 0 }
    }

    /// Records the bits that a scan is about to deliver (`start_pass_phuff_decoder`).
    pub(super) fn note(&mut self, scan: &Scan) {
        self.scans += 1;
        let (first, last) = (usize::from(scan.first), usize::from(scan.last));
        for part in &scan.components {
            let known = &mut self.known[part.index];
            let band = first.min(1)..=last.max(9);
            let before = &mut self.before[part.index][band.clone()];
            if self.scans > 1 {
                before.copy_from_slice(&known[band]);
            } else {
                before.fill(0);
            }
            known[first..=last].fill(scan.low.cast_signed());
        }
    }

    /// Records that the current scan had data for a row of MCUs.
    pub(super) fn good_row(&mut self, row: usize) {
        self.last_good_row = row;
    }

    /// Returns the smoother, or `None` if smoothing does not apply (`smoothing_ok`). Smoothing applies if some
    /// coefficient is not fully known, all DC values are known, and none of the quantisers at [`POSITIONS`] is zero.
    pub(super) fn smoothing(&self, quant: &[Option<[u16; 64]>]) -> Option<Smoothing<'_>> {
        let usable = |table: &Option<[u16; 64]>| {
            table.as_ref().is_some_and(|table| POSITIONS.iter().all(|&at| table[at] != 0))
        };
        let unknown_dc = self.known.iter().any(|known| known[0] < 0);
        if !quant.iter().all(usable) || unknown_dc {
            return None;
        }
        let incomplete = |known: &[i8; 64]| known[1..COEFFICIENTS].iter().any(|&low| low != 0);
        self.known.iter().any(incomplete).then_some(Smoothing { known_bits: self })
    }
}

/// Smoother for the blocks of a component, row by row.
#[derive(Debug)]
pub(super) struct Smoothing<'p> {
    known_bits: &'p KnownBits,
}

impl Smoothing<'_> {
    /// Returns a row of blocks with the estimates filled in. `index` is the component, `row` the number of the row.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub(super) fn row(
        &self,
        frame: &Frame,
        index: usize,
        grid: &BlockGrid,
        row: usize,
        quant: &[u16; 64],
    ) -> Result<Vec<CoefficientBlock>, OutOfMemory> {
        let component = &frame.components[index];
        let known = self.known(index, row / component.v);
        let rows = rows_around(frame, component, row).map(|row| grid.row(row));
        let width = component.width_in_blocks;
        let estimator = Estimator::new(known, quant);
        let smooth = |column: usize| {
            let mut block = rows[2][column];
            estimator.apply(&mut block, &window(&rows, column, width));
            block
        };
        let mut blocks = memory::with_capacity(width)?;
        blocks.extend((0..width).map(smooth));
        Ok(blocks)
    }

    /// Returns the position of each coefficient's lowest known bit in a row of MCUs. For a row of MCUs that the last
    /// scan did not reach, returns the positions from before that scan.
    fn known(&self, index: usize, mcu_row: usize) -> [i8; COEFFICIENTS] {
        let KnownBits { known, before, scans, last_good_row } = self.known_bits;
        if mcu_row <= *last_good_row {
            return std::array::from_fn(|at| known[index][at]);
        }
        std::array::from_fn(|at| if *scans > 1 { before[index][at] } else { UNKNOWN })
    }
}

/// Returns the size in bytes of the longest row that [`Smoothing::row`] returns.
pub(super) fn row_bytes(frame: &Frame) -> u64 {
    let width = |component: &Component| component.width_in_blocks * size_of::<CoefficientBlock>();
    frame.components.iter().map(width).max().unwrap_or(0) as u64
}

/// Returns the rows of blocks from two above `row` to two below. Beyond an edge of the picture, the nearest row is
/// repeated. The edges are calculated as in libjpeg: for a row of blocks in the last row of MCUs, libjpeg assumes that
/// every row of MCUs has as many rows of blocks as this last one.
fn rows_around(frame: &Frame, component: &Component, row: usize) -> [usize; 5] {
    let mcu_row = row / component.v;
    let in_mcu_row = row % component.v;
    let rows_here = if mcu_row + 1 < frame.mcu_rows {
        component.v
    } else {
        match component.height_in_blocks % component.v {
            0 => component.v,
            rest => rest,
        }
    };
    let (at, end) = (mcu_row * rows_here + in_mcu_row, rows_here * frame.mcu_rows);
    let above = if at > 0 { row - 1 } else { row };
    let above_that = if at > 1 { row - 2 } else { above };
    let below = if at + 1 < end { row + 1 } else { row };
    let below_that = if at + 2 < end { row + 2 } else { below };
    [above_that, above, row, below, below_that]
}

fn window(rows: &[&[CoefficientBlock]; 5], column: usize, width: usize) -> Window {
    let columns: [usize; 5] =
        std::array::from_fn(|offset| (column + offset).saturating_sub(2).min(width - 1));
    rows.map(|row| columns.map(|column| i32::from(row[column][0])))
}

/// Weights of the quantised DC values in a window, in units of 1/256. `guess` multiplies the weighted sum of the values
/// by the DC quantiser.
type WindowWeights = [[i32; 5]; 5];

struct Estimator<'q> {
    known: [i8; COEFFICIENTS],
    quant: &'q [u16; 64],
    /// True if no AC value is known. In this case, the DC value is smoothed too, and more coefficients are estimated.
    from_dc_alone: bool,
}

impl<'q> Estimator<'q> {
    fn new(known: [i8; COEFFICIENTS], quant: &'q [u16; 64]) -> Self {
        let from_dc_alone = known[1..].iter().all(|&low| low == UNKNOWN);
        Self { known, quant, from_dc_alone }
    }

    fn apply(&self, block: &mut CoefficientBlock, window: &Window) {
        let (weights, count) =
            if self.from_dc_alone { (&FROM_DC_ALONE, COEFFICIENTS) } else { (&BESIDE_AC, 6) };
        for at in 1..count {
            let position = POSITIONS[at];
            let low = self.known[at];
            if low != 0 && block[position] == 0 {
                let guess = self.guess(&weights[at], window, position);
                // The known upper bits are zero, so the magnitude is less than the value of the lowest known bit.
                let bound = if low > 0 { (1 << low) - 1 } else { i64::MAX };
                block[position] = guess.clamp(-bound, bound) as i16;
            }
        }
        if self.from_dc_alone {
            block[0] = self.guess(&weights[0], window, 0) as i16;
        }
    }

    /// Returns the weighted sum of the window, multiplied by the DC quantiser, divided by the quantiser of the
    /// coefficient at `position`, and rounded half away from zero.
    fn guess(&self, weights: &WindowWeights, window: &Window, position: usize) -> i64 {
        let products = weights.iter().flatten().zip(window.iter().flatten());
        let sum: i64 = products.map(|(&weight, &value)| i64::from(weight * value)).sum();
        let scaled = sum * i64::from(self.quant[0]);
        let unit = i64::from(self.quant[position]);
        let guess = ((unit << 7) + scaled.abs()) / (unit << 8);
        if scaled < 0 { -guess } else { guess }
    }
}

/// Weights if no AC value is known, in the order of [`POSITIONS`].
#[rustfmt::skip]
const FROM_DC_ALONE: [WindowWeights; COEFFICIENTS] = [
    [[-2, -6, -8, -6, -2], [-6, 6, 42, 6, -6], [-8, 42, 152, 42, -8], [-6, 6, 42, 6, -6], [-2, -6, -8, -6, -2]],
    [[-1, -1, 0, 1, 1], [-3, 13, 0, -13, 3], [-3, 38, 0, -38, 3], [-3, 13, 0, -13, 3], [-1, -1, 0, 1, 1]],
    [[-1, -3, -3, -3, -1], [-1, 13, 38, 13, -1], [0; 5], [1, -13, -38, -13, 1], [1, 3, 3, 3, 1]],
    [[0, 0, 1, 0, 0], [0, 2, 7, 2, 0], [0, -5, -14, -5, 0], [0, 2, 7, 2, 0], [0, 0, 1, 0, 0]],
    [[-1, 0, 0, 0, 1], [0, 9, 0, -9, 0], [0; 5], [0, -9, 0, 9, 0], [1, 0, 0, 0, -1]],
    [[0; 5], [0, 2, -5, 2, 0], [1, 7, -14, 7, 1], [0, 2, -5, 2, 0], [0; 5]],
    [[0; 5], [0, 1, 0, -1, 0], [0, 2, 0, -2, 0], [0, 1, 0, -1, 0], [0; 5]],
    [[0; 5], [0, 1, -3, 1, 0], [0; 5], [0, -1, 3, -1, 0], [0; 5]],
    [[0; 5], [0, 1, 0, -1, 0], [0, -3, 0, 3, 0], [0, 1, 0, -1, 0], [0; 5]],
    [[0; 5], [0, 1, 2, 1, 0], [0; 5], [0, -1, -2, -1, 0], [0; 5]],
];

/// Weights if some AC values are known, in the order of [`POSITIONS`]. Only entries 1 to 5 are used.
#[rustfmt::skip]
const BESIDE_AC: [WindowWeights; COEFFICIENTS] = [
    [[0; 5]; 5],
    [[0; 5], [0; 5], [-7, 50, 0, -50, 7], [0; 5], [0; 5]],
    [[0, 0, -7, 0, 0], [0, 0, 50, 0, 0], [0; 5], [0, 0, -50, 0, 0], [0, 0, 7, 0, 0]],
    [[0, 0, -1, 0, 0], [0, 0, 13, 0, 0], [0, 0, -24, 0, 0], [0, 0, 13, 0, 0], [0, 0, -1, 0, 0]],
    [[0, -1, 0, 1, 0], [-1, 10, 0, -10, 1], [0; 5], [1, -10, 0, 10, -1], [0, 1, 0, -1, 0]],
    [[0; 5], [0; 5], [-1, 13, -24, 13, -1], [0; 5], [0; 5]],
    [[0; 5]; 5], [[0; 5]; 5], [[0; 5]; 5], [[0; 5]; 5],
];
