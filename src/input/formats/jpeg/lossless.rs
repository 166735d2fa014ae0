//! Decodes lossless JPEG with Huffman coding (SOF3; T.81, annex H), in which each sample is a prediction from its
//! neighbours plus a coded difference. Follows `jdlhuff.c` (codes), `jddiffct.c` (order of rows, restarts) and
//! `jdlossls.c` (predictors) of libjpeg-turbo, which computes modulo 2^16 at every precision.

use super::bits::BitReader;
use super::error::JpegError;
use super::frame::{Component, Frame};
use super::header::{Scan, ScanComponent, Tables};
use super::huffman::{HuffmanTable, TableClass, extend};
use super::output::Plane;
use super::scan::Restarts;
use super::source::ByteSource;
use crate::input::memory;
use crate::input::stop::{self, Stop};

/// Number of bits per sample. [`Frame::read`] rejects other precisions.
const PRECISION: u8 = 8;
/// The Huffman symbol for a difference of 32,768. No further bits follow it.
const LARGEST_SIZE: u8 = 16;

/// Returns how many bytes a scan of all components needs in addition to the planes.
pub(super) fn row_bytes(frame: &Frame) -> u64 {
    let samples = |component: &Component| (component.padded_width * (component.v + 1)) as u64;
    frame.components.iter().map(samples).sum::<u64>() * size_of::<u16>() as u64
}

/// How samples are reconstructed from differences, as specified in the scan header.
#[derive(Debug, Clone, Copy)]
struct Method {
    /// Number of the predictor (T.81, table H.1), 1 to 7, for all samples outside the first row and column.
    predictor: u8,
    /// The point transform: the number of low bits of each sample that are not coded.
    shift: u8,
}

impl Method {
    /// Reads and checks the parameters of a lossless scan (`start_pass_lossless`).
    ///
    /// # Errors
    /// `Damaged` if a parameter is invalid.
    fn of(scan: &Scan) -> Result<Self, JpegError> {
        let &Scan { first: predictor, last, high, low: shift, .. } = scan;
        if !(1..=7).contains(&predictor) || last != 0 || high != 0 || shift >= PRECISION {
            return Err(JpegError::Damaged);
        }
        Ok(Self { predictor, shift })
    }
}

/// A scan that is being decoded.
pub(super) struct LosslessScan<'s, 'a, 'f> {
    bits: BitReader<'s, 'a>,
    /// Counts rows of MCUs, because a restart interval consists of whole rows.
    restarts: Restarts,
    method: Method,
    /// Number of MCUs in a row of the scan.
    mcus: usize,
    /// Number of rows of interleaved MCUs.
    mcu_rows: usize,
    states: Vec<LosslessState<'f>>,
}

/// The state of one component of the scan.
struct LosslessState<'f> {
    /// Index of the component in the frame.
    index: usize,
    component: &'f Component,
    table: HuffmanTable,
    /// Width and height of an MCU in samples of this component.
    mcu_width: usize,
    mcu_height: usize,
    /// The last row of samples of the previous row of MCUs, followed by the rows of samples of the current row of MCUs.
    /// The current rows contain differences at first and reconstructed samples later. All values are modulo 2^16 and
    /// not yet shifted by the point transform.
    rows: Vec<u16>,
    /// True if the next row to be reconstructed is the first one of a scan or a restart interval.
    is_first_row: bool,
}

impl<'s, 'a, 'f> LosslessScan<'s, 'a, 'f> {
    /// Starts a scan: reads its parameters and prepares the tables and rows of its components.
    ///
    /// # Errors
    /// `Damaged` if a parameter, a table or the restart interval is invalid, `OutOfMemory`.
    pub(super) fn start(
        source: &'s mut ByteSource<'a>,
        tables: &Tables,
        frame: &'f Frame,
        scan: &Scan,
    ) -> Result<Self, JpegError> {
        let method = Method::of(scan)?;
        let is_alone = scan.components.len() == 1;
        let state = |listed| LosslessState::start(tables, frame, listed, is_alone);
        let states = scan.components.iter().map(state).collect::<Result<Vec<_>, _>>()?;
        let mcus = if is_alone { states[0].component.width } else { frame.mcus_per_row };
        let interval = usize::from(tables.restart_interval);
        if !interval.is_multiple_of(mcus) {
            return Err(JpegError::Damaged);
        }
        let restarts = Restarts::every((interval / mcus) as u16);
        let (bits, mcu_rows) = (BitReader::new(source), frame.mcu_rows);
        Ok(Self { bits, restarts, method, mcus, mcu_rows, states })
    }

    /// Decodes the scan into the planes of its components.
    ///
    /// # Errors
    /// `Damaged`, `Truncated`, `Stopped`.
    pub(super) fn decode(mut self, planes: &mut [Plane], stop: Stop<'_>) -> Result<(), JpegError> {
        for mcu_row in 0..self.mcu_rows {
            stop::check(stop)?;
            self.read_differences(mcu_row)?;
            for state in &mut self.states {
                state.reconstruct(self.method, &mut planes[state.index], mcu_row);
            }
        }
        self.states.into_iter().for_each(|state| memory::release(state.rows));
        Ok(())
    }

    /// Reads the differences of one row of interleaved MCUs (`decompress_data`).
    fn read_differences(&mut self, mcu_row: usize) -> Result<(), JpegError> {
        // If the scan has only one component, each of its samples is an MCU and there are no padding rows.
        let rows = if let [only] = self.states.as_slice() { only.rows_at(mcu_row) } else { 1 };
        (0..rows).try_for_each(|row| self.read_mcus(row))
    }

    /// Reads one row of this scan's MCUs (`decode_mcus`). `row` is the position of their first row of samples within
    /// the current row of interleaved MCUs.
    fn read_mcus(&mut self, row: usize) -> Result<(), JpegError> {
        let Self { bits, restarts, mcus, states, .. } = self;
        if let Some(due) = restarts.next() {
            bits.restart(due)?;
            start_prediction(states);
        }
        // If the data ends within a row, that row is completed with zero bits. The rows after it have no differences
        // and become medium grey.
        if bits.is_exhausted() {
            for state in states.iter_mut() {
                let first = state.offset(row, 0);
                state.rows[first..][..state.mcu_height * state.component.padded_width].fill(0);
            }
            start_prediction(states);
            return Ok(());
        }
        for mcu in 0..*mcus {
            for state in states.iter_mut() {
                for y in row..row + state.mcu_height {
                    let first = state.offset(y, mcu * state.mcu_width);
                    for difference in &mut state.rows[first..][..state.mcu_width] {
                        *difference = read_difference(bits, &state.table)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Resets the prediction of all components. As in libjpeg, the reset happens before any row of samples in the current
/// row of MCUs is reconstructed. Therefore, the first of these rows of samples is predicted without the row above it,
/// even if the restart interval starts at a later row.
fn start_prediction(states: &mut [LosslessState<'_>]) {
    for state in states {
        state.is_first_row = true;
    }
}

/// Reads a difference modulo 2^16 (T.81, H.2.2).
#[inline]
fn read_difference(bits: &mut BitReader<'_, '_>, table: &HuffmanTable) -> Result<u16, JpegError> {
    bits.prepare()?;
    match table.symbol(bits)? {
        0 => Ok(0),
        LARGEST_SIZE => Ok(1 << 15),
        size => {
            let size = u32::from(size);
            Ok(modulo(extend(bits.take(size)?, size)))
        }
    }
}

fn modulo(value: i32) -> u16 {
    value.cast_unsigned() as u16
}

impl<'f> LosslessState<'f> {
    fn start(
        tables: &Tables,
        frame: &'f Frame,
        listed: &ScanComponent,
        is_alone: bool,
    ) -> Result<Self, JpegError> {
        let component = &frame.components[listed.index];
        let (mcu_width, mcu_height) = if is_alone { (1, 1) } else { (component.h, component.v) };
        Ok(Self {
            index: listed.index,
            component,
            table: HuffmanTable::find(&tables.dc, listed.dc_table, TableClass::Lossless)?,
            mcu_width,
            mcu_height,
            rows: memory::filled(0, component.padded_width * (component.v + 1))?,
            is_first_row: true,
        })
    }

    /// Returns the index in `rows` of the sample at `row` and `column` of the current row of MCUs.
    fn offset(&self, row: usize, column: usize) -> usize {
        (row + 1) * self.component.padded_width + column
    }

    /// Returns the number of sample rows in a row of interleaved MCUs, without padding.
    fn rows_at(&self, mcu_row: usize) -> usize {
        let &Component { height, v, .. } = self.component;
        (height - mcu_row * v).min(v)
    }

    /// Reconstructs the samples of a row of MCUs from their differences and writes them to the plane.
    fn reconstruct(&mut self, method: Method, plane: &mut Plane, mcu_row: usize) {
        let Method { predictor, shift } = method;
        let &Component { width, v, padded_width: stride, .. } = self.component;
        for row in 0..self.rows_at(mcu_row) {
            let (above, current) = self.rows.split_at_mut((row + 1) * stride);
            let (above, current) = (&above[row * stride..][..width], &mut current[..width]);
            if std::mem::take(&mut self.is_first_row) {
                add_from_left(current, 1 << (PRECISION - shift - 1));
            } else {
                add_predictions(current, above, predictor);
            }
            let out = plane.row_mut(mcu_row * v + row);
            for (out, &sample) in out.iter_mut().zip(&*current) {
                *out = (sample << shift) as u8;
            }
        }
        self.rows.copy_within(v * stride.., 0);
    }
}

/// Reconstructs the first row of a scan or restart interval. Each sample is predicted from the one on its left; the
/// prediction for the first sample is `before_first`.
fn add_from_left(row: &mut [u16], before_first: u16) {
    let mut left = before_first;
    for sample in row {
        *sample = sample.wrapping_add(left);
        left = *sample;
    }
}

/// Reconstructs a row that is not the first of a scan or restart interval. Each sample is predicted from up to three
/// neighbours: the left, the upper, and the upper left one (T.81, table H.1).
fn add_predictions(row: &mut [u16], above: &[u16], predictor: u8) {
    match predictor {
        1 => predict(row, above, |left, _, _| left),
        2 => predict(row, above, |_, up, _| up),
        3 => predict(row, above, |_, _, corner| corner),
        4 => predict(row, above, |left, up, corner| left + up - corner),
        5 => predict(row, above, |left, up, corner| left + ((up - corner) >> 1)),
        6 => predict(row, above, |left, up, corner| up + ((left - corner) >> 1)),
        _ => predict(row, above, |left, up, _| (left + up) >> 1),
    }
}

#[inline]
fn predict(row: &mut [u16], above: &[u16], prediction: impl Fn(i32, i32, i32) -> i32) {
    let mut columns = row.iter_mut().zip(above);
    let Some((first, &up)) = columns.next() else { return };
    *first = first.wrapping_add(up);
    let (mut left, mut corner) = (i32::from(*first), i32::from(up));
    for (sample, &up) in columns {
        let up = i32::from(up);
        *sample = sample.wrapping_add(modulo(prediction(left, up, corner)));
        (left, corner) = (i32::from(*sample), up);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictors_are_those_of_table_h_1() {
        // Left 7, above 20, above left 4; the difference is 1.
        let expected = [8, 21, 5, 24, 16, 22, 14];
        for (predictor, expected) in (1..).zip(expected) {
            let mut row = [3, 1];
            add_predictions(&mut row, &[4, 20], predictor);
            assert_eq!(row, [7, expected], "{predictor}");
        }
    }

    #[test]
    fn samples_wrap_at_16_bits() {
        let mut row = [u16::MAX, 2];
        add_from_left(&mut row, 128);
        assert_eq!(row, [127, 129]);
        let mut row = [0, 0];
        add_predictions(&mut row, &[40_000, 0], 5);
        assert_eq!(row, [40_000, 20_000]);
    }
}
