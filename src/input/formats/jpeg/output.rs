//! Converts the samples of all components to RGB pixels. The steps are upsampling (`jdsample.c`), colour conversion
//! (`jdcolor.c`) and, for four components, Pillow's `CMYK;I` and `cmyk2rgb`.

use super::error::JpegError;
use super::frame::{Colours, Component, Frame};
use crate::input::memory;
use crate::input::stop::{self, Stop};

/// Samples of one component. Each row has `stride` samples; samples beyond the component's width and height are
/// padding.
#[derive(Debug)]
pub(super) struct Plane {
    pub(super) samples: Vec<u8>,
    pub(super) stride: usize,
    width: usize,
    height: usize,
    upsampling: Upsampling,
}

/// How a component is upsampled to the size of the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upsampling {
    /// The component already has the size of the picture.
    None,
    /// Doubles the width: each new sample is three quarters of the nearer sample plus one quarter of the farther one
    /// (`h2v1_fancy_upsample`).
    Wider,
    /// Doubles the height in the same way (`h1v2_fancy_upsample`).
    Higher,
    /// Doubles width and height in the same way (`h2v2_fancy_upsample`).
    Both,
    /// Repeats each sample `h` times in width and `v` times in height (`int_upsample`). Lossless files are always
    /// upsampled in this way.
    Repeat { h: usize, v: usize },
}

impl Upsampling {
    /// Selects the upsampling of a component.
    ///
    /// # Errors
    /// `Unsupported` if the sampling factors do not divide evenly, because libjpeg does not read such files.
    fn choose(frame: &Frame, component: &Component) -> Result<Self, JpegError> {
        let Component { h, v, width, .. } = *component;
        let (max_h, max_v) = (frame.max_h, frame.max_v);
        let is_smooth = !frame.process.lossless;
        let (twice_h, twice_v) = (is_smooth && h * 2 == max_h, is_smooth && v * 2 == max_v);
        Ok(match (h == max_h, v == max_v) {
            (true, true) => Self::None,
            (false, true) if twice_h && width > 2 => Self::Wider,
            (true, false) if twice_v => Self::Higher,
            (false, false) if twice_h && twice_v && width > 2 => Self::Both,
            _ if max_h.is_multiple_of(h) && max_v.is_multiple_of(v) => {
                Self::Repeat { h: max_h / h, v: max_v / v }
            }
            _ => return Err(JpegError::Unsupported("sampling factors that do not divide evenly")),
        })
    }
}

impl Plane {
    /// Allocates all samples of a component.
    ///
    /// # Errors
    /// `Unsupported` if its sampling factors do not divide evenly, `OutOfMemory`, `Stopped`.
    pub(super) fn new(
        frame: &Frame,
        component: &Component,
        stop: Stop<'_>,
    ) -> Result<Self, JpegError> {
        let upsampling = Upsampling::choose(frame, component)?;
        let side = frame.process.block_side();
        let stride = component.width_in_blocks * side;
        let length = stride * component.height_in_blocks * side;
        let samples = memory::filled_until::<_, JpegError>(0, length, stop)?;
        let (width, height) = (component.width, component.height);
        Ok(Self { samples, stride, width, height, upsampling })
    }

    /// Returns the size in bytes of a component's samples.
    pub(super) fn bytes(frame: &Frame, component: &Component) -> u64 {
        let side = frame.process.block_side();
        (component.width_in_blocks * side * component.height_in_blocks * side) as u64
    }

    fn row(&self, y: usize) -> &[u8] {
        &self.samples[y * self.stride..][..self.stride]
    }

    /// Returns row `y` of the component, including padding.
    pub(super) fn row_mut(&mut self, y: usize) -> &mut [u8] {
        &mut self.samples[y * self.stride..][..self.stride]
    }

    /// Returns row `y` at the size of the picture. The row is written to `out`, or borrowed from the plane if the
    /// component needs no upsampling. `sums` is a scratch buffer.
    #[expect(clippy::inline_always, reason = "inlined code uses the caller's vector instructions")]
    #[inline(always)]
    fn upsampled<'o>(&'o self, y: usize, sums: &mut [u16], out: &'o mut [u8]) -> &'o [u8] {
        match self.upsampling {
            Upsampling::None => return self.row(y),
            Upsampling::Wider => widen(&self.row(y)[..self.width], out),
            Upsampling::Higher => {
                let (near, far) = self.neighbours(y);
                // In the upper row of a pair, halves are rounded down; in the lower row, they are rounded up.
                let bias = if y.is_multiple_of(2) { 1 } else { 2 };
                for ((out, &near), &far) in out.iter_mut().zip(near).zip(far) {
                    *out = ((u16::from(near) * 3 + u16::from(far) + bias) >> 2) as u8;
                }
            }
            Upsampling::Both => {
                let (near, far) = self.neighbours(y);
                let sums = &mut sums[..self.width];
                for ((sum, &near), &far) in sums.iter_mut().zip(near).zip(far) {
                    *sum = u16::from(near) * 3 + u16::from(far);
                }
                widen_sums(sums, out);
            }
            Upsampling::Repeat { h, v } => {
                for (group, &sample) in out.chunks_mut(h).zip(self.row(y / v)) {
                    group.fill(sample);
                }
            }
        }
        out
    }

    /// Returns the nearer and the farther source row for row `y` of a picture twice as high as the plane. At an edge,
    /// both are the same row.
    fn neighbours(&self, y: usize) -> (&[u8], &[u8]) {
        let near = y / 2;
        let far = if y.is_multiple_of(2) {
            near.saturating_sub(1)
        } else {
            (near + 1).min(self.height - 1)
        };
        (self.row(near), self.row(far))
    }
}

#[expect(clippy::inline_always, reason = "inlined code uses the caller's vector instructions")]
#[inline(always)]
fn widen(row: &[u8], out: &mut [u8]) {
    let last = row.len() - 1;
    let pairs = out.as_chunks_mut::<2>().0;
    let general = |before: u8, here: u8, after: u8| {
        let three = u16::from(here) * 3;
        [((three + u16::from(before) + 1) >> 2) as u8, ((three + u16::from(after) + 2) >> 2) as u8]
    };
    pairs[0] = general(row[0], row[0], row[1]);
    let neighbours = row.iter().zip(&row[1..]).zip(&row[2..]);
    for (pair, ((&before, &here), &after)) in pairs[1..last].iter_mut().zip(neighbours) {
        *pair = general(before, here, after);
    }
    pairs[last] = general(row[last - 1], row[last], row[last]);
}

#[expect(clippy::inline_always, reason = "inlined code uses the caller's vector instructions")]
#[inline(always)]
fn widen_sums(sums: &[u16], out: &mut [u8]) {
    let last = sums.len() - 1;
    let pairs = out.as_chunks_mut::<2>().0;
    let general = |before: u16, here: u16, after: u16| {
        [((here * 3 + before + 8) >> 4) as u8, ((here * 3 + after + 7) >> 4) as u8]
    };
    pairs[0] = general(sums[0], sums[0], sums[1]);
    let neighbours = sums.iter().zip(&sums[1..]).zip(&sums[2..]);
    for (pair, ((&before, &here), &after)) in pairs[1..last].iter_mut().zip(neighbours) {
        *pair = general(before, here, after);
    }
    pairs[last] = general(sums[last - 1], sums[last], sums[last]);
}

/// The conversion of all planes to the whole picture, `[height, width, 3]`.
pub(super) struct RgbConversion<'p> {
    pub(super) frame: &'p Frame,
    pub(super) planes: &'p [Plane],
    pub(super) colours: Colours,
    pub(super) stop: Stop<'p>,
}

/// Number of rows between two polls of `stop`.
const ROWS_BETWEEN: usize = 16;

impl RgbConversion<'_> {
    /// Returns the size in bytes of the picture and of the row buffers for upsampling.
    pub(super) fn bytes(frame: &Frame) -> u64 {
        let row = padded_width(frame) * (size_of::<u16>() + frame.components.len());
        (frame.width * frame.height * 3 + row) as u64
    }
}

fn padded_width(frame: &Frame) -> usize {
    frame.width.next_multiple_of(frame.max_h * 8)
}

// `dispatch` compiles `call` once for each vector width. Only code that is inlined into `call` uses that width.
impl pulp::NullaryFnOnce for RgbConversion<'_> {
    type Output = Result<Vec<u8>, JpegError>;

    #[expect(
        clippy::inline_always,
        reason = "a separate function would not use the vector instructions"
    )]
    #[inline(always)]
    fn call(self) -> Result<Vec<u8>, JpegError> {
        let Self { frame, planes, colours, stop } = self;
        let &Frame { width, height, .. } = frame;
        let mut out = memory::filled_until::<_, JpegError>(0, width * height * 3, stop)?;
        let padded = padded_width(frame);
        let mut sums = memory::filled(0, padded)?;
        let mut buffers = Vec::with_capacity(planes.len());
        for _ in planes {
            buffers.push(memory::filled(0, padded)?);
        }
        for (y, out_row) in out.chunks_exact_mut(width * 3).enumerate() {
            if y % ROWS_BETWEEN == 0 {
                stop::check(stop)?;
            }
            let mut rows: [&[u8]; 4] = [&[]; 4];
            for ((row, plane), buffer) in rows.iter_mut().zip(planes).zip(&mut buffers) {
                *row = &plane.upsampled(y, &mut sums, buffer)[..width];
            }
            let pixels = out_row.as_chunks_mut::<3>().0;
            match colours {
                Colours::Grey => {
                    for (pixel, &grey) in pixels.iter_mut().zip(rows[0]) {
                        *pixel = [grey; 3];
                    }
                }
                Colours::Rgb => convert(pixels, rows, |red, green, blue, _| [red, green, blue]),
                Colours::YCbCr => convert(pixels, rows, |y, cb, cr, _| rgb(y, cb, cr)),
                Colours::Cmyk => convert(pixels, rows, inverted_cmyk_to_rgb),
                // libjpeg converts YCCK to CMYK by inverting the RGB values.
                Colours::Ycck => convert(pixels, rows, |y, cb, cr, black| {
                    let [red, green, blue] = rgb(y, cb, cr);
                    inverted_cmyk_to_rgb(255 - red, 255 - green, 255 - blue, black)
                }),
            }
        }
        memory::release(sums);
        buffers.into_iter().for_each(memory::release);
        Ok(out)
    }
}

#[expect(clippy::inline_always, reason = "inlined code uses the caller's vector instructions")]
#[inline(always)]
fn convert(pixels: &mut [[u8; 3]], rows: [&[u8]; 4], colour: impl Fn(u8, u8, u8, u8) -> [u8; 3]) {
    let [first, second, third, fourth] = rows;
    // Pictures with three components have no fourth row; `colour` then ignores its fourth argument.
    let fourth = if fourth.is_empty() { first } else { fourth };
    let samples = first.iter().zip(second).zip(third).zip(fourth);
    for (pixel, (((&a, &b), &c), &d)) in pixels.iter_mut().zip(samples) {
        *pixel = colour(a, b, c, d);
    }
}

/// Converts `YCbCr` to RGB with the equations of JFIF and 16 fractional bits (`build_ycc_rgb_table`,
/// `ycc_rgb_convert`).
#[inline(always)]
fn rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = y + ((91_881 * cr + HALF) >> 16);
    let green = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
    let blue = y + ((116_130 * cb + HALF) >> 16);
    [clamped(red), clamped(green), clamped(blue)]
}

#[expect(clippy::inline_always, reason = "inlined code uses the caller's vector instructions")]
#[inline(always)]
fn clamped(value: i32) -> u8 {
    let [sample, ..] = value.clamp(0, 255).to_le_bytes();
    sample
}

/// Converts inverted CMYK samples to RGB (`cmyk2rgb` of Pillow's `Convert.c`).
#[expect(clippy::inline_always, reason = "inlined code uses the caller's vector instructions")]
#[inline(always)]
fn inverted_cmyk_to_rgb(cyan: u8, magenta: u8, yellow: u8, black: u8) -> [u8; 3] {
    // The inverted black sample is the amount of light that remains.
    let light = i32::from(black);
    [cyan, magenta, yellow].map(|inverted| {
        let product = (255 - i32::from(inverted)) * light + 128;
        clamped(light - (((product >> 8) + product) >> 8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_mixes_three_parts_to_one() {
        let mut out = [0; 6];
        widen(&[10, 20, 40], &mut out);
        assert_eq!(out, [10, 13, 17, 25, 35, 40]);
        let mut out = [0; 6];
        // Vertical sums are four times as large as samples.
        widen_sums(&[40, 80, 160], &mut out);
        assert_eq!(out, [10, 12, 18, 25, 35, 40]);
    }

    #[test]
    fn colours_have_known_values() {
        assert_eq!(rgb(128, 128, 128), [128; 3]);
        assert_eq!(rgb(76, 85, 255), [254, 0, 0]);
        assert_eq!(rgb(0, 0, 0), [0, 135, 0]);
        assert_eq!(inverted_cmyk_to_rgb(255, 255, 255, 255), [255; 3]);
        assert_eq!(inverted_cmyk_to_rgb(0, 255, 255, 255), [0, 255, 255]);
        assert_eq!(inverted_cmyk_to_rgb(200, 100, 50, 0), [0; 3]);
    }
}
