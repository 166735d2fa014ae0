//! A port of `Image.resize` of Pillow 13 for 8-bit channels, with bit-identical results: `ImagingResample`
//! (`src/libImaging/Resample.c`) with each of its filters, and `ImagingScaleAffine` (`Geometry.c`) for nearest
//! neighbour.
//!
//! Resizing takes two passes with 8-bit values between them, so the order of the passes affects the result. The pass
//! along a side is skipped if the side does not change. Coefficients are computed in double precision and rounded to 22
//! fractional bits. The sums are exact integers, so neither summation order nor instruction set can change the result;
//! `pulp` selects the widest vectors of the CPU at run time.

use std::f64::consts::PI;

use super::memory::{self, OutOfMemory};
use super::{InputError, ResizeOrder};
use crate::task::{Pixels, Preprocessing, Resample};

/// Number of fractional bits of a coefficient: 32 minus 8 for the sample and 2 for overshoot, as in Pillow.
const PRECISION_BITS: u32 = 32 - 8 - 2;
/// Half a unit of the result. It is added to each sum so that the final shift rounds.
const HALF: i32 = 1 << (PRECISION_BITS - 1);
/// Number of rows that the horizontal pass processes together: 16 x 3 channels fill three vectors of 16 lanes, or six
/// of eight.
const ROWS: usize = 16;
const LANES: usize = ROWS * 3;
/// Number of samples of a row that the vertical pass sums together: eight vectors, or one cache line of the source.
const BLOCK: usize = 64;

/// Resizes a decoded picture to the input size of a model, without keeping its aspect ratio.
///
/// # Errors
/// `OutOfMemory`. Each pass allocates its result; the result of the first pass is an intermediate picture that has one
/// side of the source and one side of the target.
///
/// # Panics
/// If a target side is zero.
pub fn resize(
    picture: &Pixels,
    preprocessing: Preprocessing,
    order: ResizeOrder,
) -> Result<Pixels, InputError> {
    let Preprocessing { width, height, resample } = preprocessing;
    assert!(width > 0 && height > 0, "target sides must not be zero");
    let Some(filter) = Filter::of(resample) else {
        return Ok(nearest(picture, width, height)?);
    };
    let (source_width, source_height) = (picture.width() as usize, picture.height() as usize);
    let (out_width, out_height) = (width as usize, height as usize);
    let columns = (out_width != source_width).then(|| taps(source_width, out_width, filter));
    let rows = (out_height != source_height).then(|| taps(source_height, out_height, filter));
    let source = picture.as_bytes();
    let vectors = pulp::Arch::new();
    let horizontal =
        |source: &[u8], columns| vectors.dispatch(Horizontal { source, source_width, columns });
    let vertical = |source: &[u8], width, rows| {
        vectors.dispatch(Vertical { source, row_bytes: width * 3, rows })
    };
    let data = match (&columns, &rows) {
        (None, None) => {
            let mut copy = memory::with_capacity(source.len())?;
            copy.extend_from_slice(source);
            copy
        }
        (Some(columns), None) => horizontal(source, columns)?,
        (None, Some(rows)) => vertical(source, out_width, rows)?,
        (Some(columns), Some(rows)) if vertical_first(picture, preprocessing, order) => {
            horizontal(&vertical(source, source_width, rows)?, columns)?
        }
        (Some(columns), Some(rows)) => vertical(&horizontal(source, columns)?, out_width, rows)?,
    };
    Ok(Pixels::new(width, height, data))
}

/// True if the vertical pass comes first. In Pillow 13, this is the case if the height loses more than twice as many
/// pixels as the width (python-pillow/Pillow #9549; this rule was derived by comparing 3,085 sizes on both sides of the
/// threshold). Before version 13, the horizontal pass always came first.
fn vertical_first(picture: &Pixels, out: Preprocessing, order: ResizeOrder) -> bool {
    let lost_rows = i64::from(picture.height()) - i64::from(out.height);
    let lost_columns = i64::from(picture.width()) - i64::from(out.width);
    order == ResizeOrder::Pillow13 && lost_rows > 0 && lost_rows > 2 * lost_columns
}

/// Resizes by nearest neighbour: each output pixel takes the value of the source pixel in which the centre of the
/// output pixel lies. The centres are accumulated in double precision, as in `ImagingScaleAffine`, because their
/// rounding errors decide which of two adjacent source pixels is chosen.
fn nearest(picture: &Pixels, width: u32, height: u32) -> Result<Pixels, OutOfMemory> {
    let positions = |source: u32, out: u32| -> Vec<Option<usize>> {
        let step = f64::from(source) / f64::from(out);
        let centres = std::iter::successors(Some(step * 0.5), |centre| Some(centre + step));
        #[expect(clippy::cast_sign_loss, reason = "centres are positive")]
        let inside = |centre: f64| (centre < f64::from(source)).then_some(centre as usize);
        centres.take(out as usize).map(inside).collect()
    };
    let (columns, rows) = (positions(picture.width(), width), positions(picture.height(), height));
    let source = picture.as_bytes().as_chunks::<3>().0;
    let sample = |row: Option<usize>, column: Option<usize>| match (row, column) {
        (Some(row), Some(column)) => source[row * picture.width() as usize + column],
        // Rounding moved the centre beyond the edge. Pillow leaves such a pixel black.
        _ => [0; 3],
    };
    let mut data = memory::with_capacity(rows.len() * columns.len() * 3)?;
    for &row in &rows {
        data.extend(columns.iter().flat_map(|&column| sample(row, column)));
    }
    Ok(Pixels::new(width, height, data))
}

/// A resampling filter. `support` is its radius in source samples; when a picture is scaled down, the radius grows in
/// proportion.
#[derive(Clone, Copy)]
struct Filter {
    support: f64,
    weight: fn(f64) -> f64,
}

impl Filter {
    /// Returns the filter for a method; `None` for nearest neighbour, which uses no filter.
    fn of(resample: Resample) -> Option<Self> {
        let filter = |support, weight| Some(Self { support, weight });
        match resample {
            Resample::Nearest => None,
            Resample::Box => filter(0.5, box_filter),
            Resample::Bilinear => filter(1.0, bilinear),
            Resample::Hamming => filter(1.0, hamming),
            Resample::Bicubic => filter(2.0, bicubic),
            Resample::Lanczos => filter(3.0, lanczos),
        }
    }
}

/// The inputs of one output sample: consecutive source samples, starting at `first`, with one coefficient each.
struct Taps {
    first: usize,
    coefficients: Vec<i32>,
}

/// Computes the taps of every output sample along one side (Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`).
#[expect(clippy::cast_sign_loss, reason = "a negative start saturates at 0, as intended")]
fn taps(source: usize, out: usize, filter: Filter) -> Vec<Taps> {
    let scale = source as f64 / out as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support * filter_scale;
    (0..out)
        .map(|at| {
            let centre = (at as f64 + 0.5) * scale;
            // The cast truncates towards zero, as in C. A negative start saturates at 0, as the C code clamps it to 0.
            let first = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(source);
            let weights: Vec<f64> = (first..end)
                .map(|x| (filter.weight)((x as f64 - centre + 0.5) * (1.0 / filter_scale)))
                .collect();
            let sum: f64 = weights.iter().sum();
            let coefficients = weights.iter().map(|&weight| fixed_point(weight, sum)).collect();
            Taps { first, coefficients }
        })
        .collect()
}

/// Pillow's `bicubic_filter`: the Keys kernel with a = -0.5.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn box_filter(x: f64) -> f64 {
    if x > -0.5 && x <= 0.5 { 1.0 } else { 0.0 }
}

fn bilinear(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// Pillow's `hamming_filter`. Its two constants are rounded to single precision, as in Pillow.
fn hamming(x: f64) -> f64 {
    let x = x.abs();
    if x == 0.0 {
        1.0
    } else if x >= 1.0 {
        0.0
    } else {
        let x = x * PI;
        x.sin() / x * (f64::from(0.54_f32) + f64::from(0.46_f32) * x.cos())
    }
}

/// Pillow's `lanczos_filter`: a sinc windowed by the main lobe of a sinc three times as wide.
fn lanczos(x: f64) -> f64 {
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        1.0
    } else {
        let x = x * PI;
        x.sin() / x
    }
}

/// Normalises a weight and converts it to fixed point with 22 fractional bits, rounded half away from zero.
fn fixed_point(weight: f64, sum: f64) -> i32 {
    let weight = if sum == 0.0 { weight } else { weight / sum };
    let scaled = weight * f64::from(1 << PRECISION_BITS);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

/// The horizontal pass, which resizes `[rows, source_width, 3]` to `[rows, columns.len(), 3]`.
struct Horizontal<'a> {
    source: &'a [u8],
    source_width: usize,
    columns: &'a [Taps],
}

// `dispatch` compiles `call` once for each vector width. Code that is inlined into `call` uses the instructions of that
// width.
impl pulp::NullaryFnOnce for Horizontal<'_> {
    type Output = Result<Vec<u8>, OutOfMemory>;

    #[expect(
        clippy::inline_always,
        reason = "a separate function would not use the vector instructions"
    )]
    #[inline(always)]
    fn call(self) -> Result<Vec<u8>, OutOfMemory> {
        let row_bytes = self.source_width * 3;
        let out_row_bytes = self.columns.len() * 3;
        let mut out = memory::filled(0, self.source.len() / row_bytes * out_row_bytes)?;
        let mut side_by_side = memory::filled([0; LANES], self.source_width)?;
        let blocks = self.source.chunks(row_bytes * ROWS).zip(out.chunks_mut(out_row_bytes * ROWS));
        for (block, out_block) in blocks {
            for (lane, row) in block.chunks_exact(row_bytes).enumerate() {
                let (pixels, _) = row.as_chunks::<3>();
                for (lanes, pixel) in side_by_side.iter_mut().zip(pixels) {
                    lanes[lane * 3..lane * 3 + 3].copy_from_slice(pixel);
                }
            }
            for (column, taps) in self.columns.iter().enumerate() {
                let mut sums = [HALF; LANES];
                for (lanes, &coefficient) in
                    side_by_side[taps.first..].iter().zip(&taps.coefficients)
                {
                    for (sum, &sample) in sums.iter_mut().zip(lanes) {
                        *sum += i32::from(sample) * coefficient;
                    }
                }
                let out_rows = out_block.chunks_exact_mut(out_row_bytes);
                for (out_row, sums) in out_rows.zip(sums.as_chunks::<3>().0) {
                    out_row[column * 3..][..3].copy_from_slice(&sums.map(clip));
                }
            }
        }
        Ok(out)
    }
}

/// The vertical pass, which resizes `[source rows, row_bytes]` to `[rows.len(), row_bytes]`.
struct Vertical<'a> {
    source: &'a [u8],
    row_bytes: usize,
    rows: &'a [Taps],
}

impl pulp::NullaryFnOnce for Vertical<'_> {
    type Output = Result<Vec<u8>, OutOfMemory>;

    #[expect(
        clippy::inline_always,
        reason = "a separate function would not use the vector instructions"
    )]
    #[inline(always)]
    fn call(self) -> Result<Vec<u8>, OutOfMemory> {
        let Self { source, row_bytes, rows } = self;
        let mut out = memory::filled(0, rows.len() * row_bytes)?;
        for (out_row, taps) in out.chunks_exact_mut(row_bytes).zip(rows) {
            let source = &source[taps.first * row_bytes..];
            let (blocks, rest) = out_row.as_chunks_mut::<BLOCK>();
            for (at, block) in blocks.iter_mut().enumerate() {
                let mut sums = [HALF; BLOCK];
                for (row, &coefficient) in source.chunks_exact(row_bytes).zip(&taps.coefficients) {
                    for (sum, &sample) in sums.iter_mut().zip(&row[at * BLOCK..][..BLOCK]) {
                        *sum += i32::from(sample) * coefficient;
                    }
                }
                *block = sums.map(clip);
            }
            let start = row_bytes - rest.len();
            for (at, out_sample) in rest.iter_mut().enumerate() {
                let column = source.chunks_exact(row_bytes).map(|row| i32::from(row[start + at]));
                let sum: i32 = column.zip(&taps.coefficients).map(|(sample, &c)| sample * c).sum();
                *out_sample = clip(sum + HALF);
            }
        }
        Ok(out)
    }
}

/// Shifts a sum back to 8 bits and clamps it (Pillow's `clip8`).
#[expect(clippy::inline_always, reason = "inlined code uses the caller's vector instructions")]
#[inline(always)]
fn clip(sum: i32) -> u8 {
    let [sample, ..] = (sum >> PRECISION_BITS).clamp(0, 255).to_le_bytes();
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(width: u32, height: u32) -> Pixels {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let data = (0..width * height * 3).map(|_| next()).collect();
        Pixels::new(width, height, data)
    }

    /// Reference implementation of one pass along the rows. It computes each sample separately, directly from the
    /// definition.
    fn slow_pass(source: &[u8], width: usize, columns: &[Taps]) -> Vec<u8> {
        let mut out = Vec::new();
        for row in source.chunks_exact(width * 3) {
            for taps in columns {
                for channel in 0..3 {
                    let sample = |i: usize| i64::from(row[(taps.first + i) * 3 + channel]);
                    let weighted = taps.coefficients.iter().enumerate();
                    let sum: i64 = weighted.map(|(i, &c)| sample(i) * i64::from(c)).sum();
                    let rounded = (sum + i64::from(HALF)) >> PRECISION_BITS;
                    out.push(u8::try_from(rounded.clamp(0, 255)).unwrap());
                }
            }
        }
        out
    }

    fn transposed(source: &[u8], width: usize) -> Vec<u8> {
        let (pixels, _) = source.as_chunks::<3>();
        (0..width).flat_map(|x| pixels.iter().skip(x).step_by(width)).flatten().copied().collect()
    }

    fn slow_twin(picture: &Pixels, out: Preprocessing, order: ResizeOrder) -> Vec<u8> {
        let filter = Filter::of(out.resample).unwrap();
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let (out_width, out_height) = (out.width as usize, out.height as usize);
        let along = |data: &[u8], width, out| slow_pass(data, width, &taps(width, out, filter));
        let down = |data: &[u8], width| {
            transposed(&along(&transposed(data, width), height, out_height), out_height)
        };
        if vertical_first(picture, out, order) {
            along(&down(picture.as_bytes(), width), width, out_width)
        } else {
            down(&along(picture.as_bytes(), width, out_width), out_width)
        }
    }

    #[test]
    fn both_passes_equal_the_slow_twin() {
        let sizes = [
            (1, 1),
            (1, 9),
            (9, 1),
            (7, 8),
            (8, 7),
            (16, 17),
            (31, 5),
            (64, 48),
            (48, 90),
            (200, 3),
        ];
        for (width, height) in sizes {
            let picture = noise(width, height);
            for (out_width, out_height) in [(1, 2), (2, 1), (12, 11), (33, 34), (40, 44)] {
                for resample in Resample::ALL {
                    let out = Preprocessing { width: out_width, height: out_height, resample };
                    if resample == Resample::Nearest {
                        continue;
                    }
                    for order in [ResizeOrder::Pillow13, ResizeOrder::HorizontalFirst] {
                        let pixels = resize(&picture, out, order).unwrap();
                        let expected = slow_twin(&picture, out, order);
                        assert!(pixels.as_bytes() == expected, "{width}x{height} to {out:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_vertical_pass_is_first_only_above_twice_the_columns_lost() {
        let out = Preprocessing::bicubic(384, 384);
        let cases = [
            ((640, 480), false),
            ((480, 640), true),
            ((400, 416), false),
            ((400, 417), true),
            ((300, 380), false),
        ];
        for ((width, height), expected) in cases {
            let picture = Pixels::new(width, height, vec![0; (width * height * 3) as usize]);
            let first = |order| vertical_first(&picture, out, order);
            assert_eq!(first(ResizeOrder::Pillow13), expected, "{width}x{height}");
            assert!(!first(ResizeOrder::HorizontalFirst));
        }
    }

    #[test]
    fn a_side_that_does_not_change_is_left_alone() {
        let picture = noise(12, 12);
        for resample in Resample::ALL {
            let same = Preprocessing { width: 12, height: 12, resample };
            let pixels = resize(&picture, same, ResizeOrder::Pillow13).unwrap();
            assert_eq!(pixels.as_bytes(), picture.as_bytes(), "{resample:?}");
        }
    }

    #[test]
    fn one_colour_stays_that_colour() {
        let picture = Pixels::new(100, 37, [200, 10, 255].repeat(3700));
        for resample in Resample::ALL {
            let out = Preprocessing { width: 16, height: 48, resample };
            let pixels = resize(&picture, out, ResizeOrder::Pillow13).unwrap();
            let (pixels, _) = pixels.as_bytes().as_chunks::<3>();
            assert!(pixels.iter().all(|pixel| *pixel == [200, 10, 255]), "{resample:?}");
        }
    }
}
