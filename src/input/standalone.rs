//! The file that a decoder of the `image` crate reads: the client's own file, or a file into which the first frame of a
//! container was rewritten. This module also computes the memory that decoding the file takes, and places the decoded
//! frame on the canvas.
//!
//! `formats/webp` and `formats/gif` parse the containers with the rules of Pillow and write files that need no special
//! cases in the decoder. Their checks examine the rewritten file, so they see exactly what is decoded.

use std::borrow::Cow;

use super::format::ImageHeader;
use super::memory::{self, OutOfMemory};
use super::raster::Raster;
use crate::task::ImageFormat;

/// A file with a single frame, and where the frame lies on the canvas.
#[derive(Debug)]
pub(super) struct StandaloneFrame<'a> {
    /// The client's own file, or a rewritten file that is at most 900 bytes longer.
    pub(super) file: Cow<'a, [u8]>,
    /// Width and height of the whole picture in pixels, if the container specifies them.
    pub(super) canvas: Option<(u32, u32)>,
    /// Position of the frame's left and top edges on the canvas in pixels; `None` if the frame covers the canvas.
    place: Option<(u32, u32)>,
    /// RGBA colour of the canvas around the frame.
    background: [u8; 4],
}

/// Where a container puts its first frame. All sizes and positions are in pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct FramePlacement {
    /// Width and height of the frame.
    pub(super) sides: (u32, u32),
    /// Position of the frame's left and top edges on the canvas.
    pub(super) place: (u32, u32),
    /// Width and height of the canvas.
    pub(super) canvas: (u32, u32),
    /// RGBA colour of the canvas around the frame.
    pub(super) background: [u8; 4],
}

/// The size of a frame, as its decoder reports it.
#[derive(Debug, Clone, Copy)]
pub(super) struct FrameSize {
    /// Width and height in pixels.
    pub(super) sides: (u32, u32),
    /// Number of pixels, at least 1.
    pub(super) pixels: u64,
    /// Size of the decoded frame in bytes.
    pub(super) bytes: u64,
}

impl<'a> StandaloneFrame<'a> {
    /// Wraps the client's own file, whose frame is the whole picture.
    pub(super) fn whole(file: &'a [u8]) -> Self {
        Self { file: Cow::Borrowed(file), canvas: None, place: None, background: [0; 4] }
    }

    /// Wraps a rewritten file with the first frame of a container.
    pub(super) fn rewritten(file: Vec<u8>, placement: FramePlacement) -> Self {
        let FramePlacement { sides, place, canvas, background } = placement;
        let place = (sides != canvas).then_some(place);
        Self { file: Cow::Owned(file), canvas: Some(canvas), place, background }
    }

    /// Returns the size of the rewritten file in bytes; 0 if the client's own file is used.
    fn file_bytes(&self) -> u64 {
        if matches!(self.file, Cow::Owned(_)) { self.file.len() as u64 } else { 0 }
    }

    /// Returns the size of the canvas in bytes, with as many bytes per pixel as the frame has; 0 if the frame covers
    /// the canvas.
    pub(super) fn canvas_bytes(&self, frame: &FrameSize) -> u64 {
        let canvas = self.canvas.filter(|_| self.place.is_some());
        let bytes_per_pixel = frame.bytes / frame.pixels;
        canvas.map_or(0, |(width, height)| u64::from(width) * u64::from(height) * bytes_per_pixel)
    }

    /// Returns the header of the picture. `inside` is the memory in bytes that the decoder allocates besides the frame
    /// buffer. `work` is the cost of decoding the frame, in the unit of [`ImageHeader::work`].
    pub(super) fn header(
        &self,
        format: ImageFormat,
        frame: &FrameSize,
        inside: u64,
        work: u64,
    ) -> ImageHeader {
        let (width, height) = self.canvas.unwrap_or(frame.sides);
        let pixels = u64::from(width) * u64::from(height);
        let canvas_bytes = self.canvas_bytes(frame);
        let (decoded, rgb) = (frame.bytes.max(canvas_bytes), pixels * 3);
        // The maximum over three phases: decoding; frame and canvas together; the picture together with the second copy
        // that flattening or applying the orientation may make.
        let working_bytes = (self.file_bytes() + frame.bytes + inside)
            .max(frame.bytes + canvas_bytes)
            .max(decoded.max(rgb) + rgb);
        ImageHeader { format, width, height, working_bytes, work: work + pixels }
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
