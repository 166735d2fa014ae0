//! Rewrites the first frame of a WebP or GIF as a separate file, which is decoded in place of the client's file. `riff`
//! and `gif` parse the containers with the rules of Pillow and write files that need no special cases in the decoder.
//! The checks examine the rewritten file, so they see exactly what is decoded.

use std::borrow::Cow;

use super::memory::{self, OutOfMemory};
use super::raster::Raster;
use super::{gif, riff};
use crate::task::ImageFormat;

/// The file that the decoder reads, and where its frame lies on the canvas.
#[derive(Debug)]
pub(super) struct StandaloneFrame<'a> {
    /// A file with a single frame: the client's own, or a rewritten one that is at most 900 bytes longer.
    pub(super) file: Cow<'a, [u8]>,
    /// Width and height of the whole picture in pixels, if the container gives them.
    pub(super) canvas: Option<(u32, u32)>,
    /// Position of the frame's left and top edges on the canvas in pixels; `None` if the frame covers the canvas.
    place: Option<(u32, u32)>,
    /// RGBA colour of the canvas around the frame.
    background: [u8; 4],
}

impl<'a> StandaloneFrame<'a> {
    /// Parses the container and, for WebP and GIF, rewrites its first frame. Returns `None` if the container is
    /// truncated or inconsistent.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub(super) fn of(file: &'a [u8], format: ImageFormat) -> Result<Option<Self>, OutOfMemory> {
        let still = match format {
            ImageFormat::WebP => {
                let Some(container) = riff::read(file) else { return Ok(None) };
                let place = (container.sides() != container.canvas).then_some(container.place);
                let file = Cow::Owned(container.still()?);
                Self { file, canvas: Some(container.canvas), place, background: [0; 4] }
            }
            ImageFormat::Gif => {
                let Some(frame) = gif::first_frame(file) else { return Ok(None) };
                let place = (frame.sides != frame.screen).then_some(frame.place);
                let file = Cow::Owned(frame.still()?);
                Self { file, canvas: Some(frame.screen), place, background: frame.uncovered() }
            }
            ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::Bmp => {
                Self { file: Cow::Borrowed(file), canvas: None, place: None, background: [0; 4] }
            }
        };
        Ok(Some(still))
    }

    /// Returns the size of the rewritten file in bytes; 0 if the client's own file is used.
    pub(super) fn file_bytes(&self) -> u64 {
        if matches!(self.file, Cow::Owned(_)) { self.file.len() as u64 } else { 0 }
    }

    /// Returns the size of the canvas in bytes; 0 if the frame covers the canvas.
    pub(super) fn canvas_bytes(&self, bytes_per_pixel: u64) -> u64 {
        let canvas = self.canvas.filter(|_| self.place.is_some());
        canvas.map_or(0, |(width, height)| u64::from(width) * u64::from(height) * bytes_per_pixel)
    }

    /// Returns the canvas with the decoded frame (8-bit RGB or RGBA) placed on it; the frame itself if it covers the
    /// canvas.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub(super) fn on_canvas(self, frame: Raster) -> Result<Raster, OutOfMemory> {
        if let Cow::Owned(file) = self.file {
            memory::release(file);
        }
        let (Some((width, height)), Some((x, y))) = (self.canvas, self.place) else {
            return Ok(frame);
        };
        let bytes = frame.layout.bytes_per_pixel();
        let pixels = width as usize * height as usize;
        let mut data = memory::with_capacity(pixels * bytes)?;
        data.extend(std::iter::repeat_n(&self.background[..bytes], pixels).flatten());
        let rows = data.chunks_exact_mut(width as usize * bytes).skip(y as usize);
        let frame_rows = frame.data.chunks_exact(frame.width as usize * bytes);
        for (row, frame_row) in rows.zip(frame_rows) {
            row[x as usize * bytes..][..frame_row.len()].copy_from_slice(frame_row);
        }
        memory::release(frame.data);
        Ok(Raster { width, height, layout: frame.layout, data })
    }
}
