//! The first frame of a WebP or GIF as a file of its own: what the decoder gets instead of the client's file. Both
//! containers are read with the rules of Pillow (`riff`, `gif`) and written in a form that the decoder reads without
//! exceptions, so every check of this file is a check of what is decoded.

use std::borrow::Cow;

use image::{DynamicImage, imageops};

use super::{gif, riff};
use crate::task::ImageFormat;

/// A file for the decoder.
#[derive(Debug)]
pub(super) struct Still<'a> {
    /// One frame; as long as the client's file at most, but for 900 bytes.
    pub(super) file: Cow<'a, [u8]>,
    /// Width and height of the whole picture in pixels, where the container tells them.
    pub(super) canvas: Option<(u32, u32)>,
    /// Where the frame lies on the canvas, if the decoder does not see to that.
    place: Option<(u32, u32)>,
}

impl<'a> Still<'a> {
    /// Reads the container; `None` where it breaks off or contradicts itself.
    pub(super) fn of(file: &'a [u8], format: ImageFormat) -> Option<Self> {
        match format {
            ImageFormat::WebP => {
                let container = riff::read(file)?;
                let place = (container.sides() != container.canvas).then_some(container.place);
                let file = Cow::Owned(container.still());
                Some(Self { file, canvas: Some(container.canvas), place })
            }
            ImageFormat::Gif => {
                let frame = gif::first_frame(file)?;
                let file = Cow::Owned(frame.still());
                Some(Self { file, canvas: Some(frame.screen), place: None })
            }
            ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::Bmp => {
                Some(Self { file: Cow::Borrowed(file), canvas: None, place: None })
            }
        }
    }

    /// Bytes held beside the decoder's: the file, and the canvas that the frame is put on.
    pub(super) fn bytes(&self) -> u64 {
        let file = if matches!(self.file, Cow::Owned(_)) { self.file.len() as u64 } else { 0 };
        let canvas = self.canvas.filter(|_| self.place.is_some());
        file + canvas.map_or(0, |(width, height)| u64::from(width) * u64::from(height) * 4)
    }

    /// The whole picture: the frame on its canvas, clear or black around it.
    pub(super) fn on_canvas(&self, frame: DynamicImage) -> DynamicImage {
        let (Some((width, height)), Some((x, y))) = (self.canvas, self.place) else { return frame };
        let mut canvas = DynamicImage::new(width, height, frame.color());
        imageops::replace(&mut canvas, &frame, i64::from(x), i64::from(y));
        canvas
    }
}
