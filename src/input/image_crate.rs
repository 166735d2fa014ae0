//! Decodes a file with the `image` crate, into a buffer that this module allocates. The formats PNG, WebP and GIF use
//! this module; each of them says which decoder of the crate reads its files and how much memory that decoder
//! allocates.
//!
//! If an allocation inside one of the crate's decoders fails, the process aborts. Before a decoder runs,
//! [`memory::probe_available`] therefore checks that memory is available for its large buffers: the colour indices of a
//! GIF, the planes and the transparency of a WebP. Rows, metadata and code tables are not checked, because each of them
//! is either below 16 MiB or counted by `formats/webp/codes`.

use std::cell::Cell;

use image::{ImageDecoder, ImageError, ImageReader};

use super::error::{DAMAGED_DATA, NO_PIXELS, TRUNCATED_FILE, UNSUPPORTED_VARIANT, undecodable};
use super::format::ImageHeader;
use super::limits::{check_decoded, check_size};
use super::memory;
use super::raster::{Layout, Raster};
use super::standalone::{FrameSize, StandaloneFrame};
use super::stop::{Stop, StoppableFile};
use super::{InputError, InputSettings};
use crate::task::ImageFormat;

/// Limit in bytes on what a decoder may allocate while it reads the header. It is far above any row or ICC profile of a
/// real PNG, and far below a decompression bomb.
pub(super) const METADATA_BYTES: u64 = 16 << 20;

/// A decoder of the `image` crate, and what `input` needs to know about it.
#[derive(Debug, Clone, Copy)]
pub(super) struct CrateDecoder {
    /// The format that the decoder reads.
    pub(super) format: ImageFormat,
    /// The `image` crate's identifier of the format.
    pub(super) name: image::ImageFormat,
    /// Estimates how many bytes the decoder allocates besides the frame buffer. The arguments are the file and the
    /// width and height of the frame in pixels.
    pub(super) bytes_inside: fn(&[u8], (u32, u32)) -> u64,
}

impl CrateDecoder {
    /// Reads the size of a frame from its header, and checks frame and canvas against the limits.
    ///
    /// # Errors
    /// `ImageTooLarge`, `DecodedImageTooLarge`, `UndecodableImage`.
    pub(super) fn read_size(
        &self,
        still: &StandaloneFrame<'_>,
        settings: &InputSettings,
    ) -> Result<FrameSize, InputError> {
        if let Some((width, height)) = still.canvas {
            check_size(width, height, settings)?;
        }
        let stopped = Cell::new(false);
        let decoder = self.open(StoppableFile::new(&still.file, &|| false, &stopped), settings)?;
        let sides = decoder.dimensions();
        let pixels = check_size(sides.0, sides.1, settings)?;
        if pixels == 0 {
            return Err(undecodable(self.format, NO_PIXELS));
        }
        let size = FrameSize { sides, pixels, bytes: decoder.total_bytes() };
        check_decoded(size.bytes.max(still.canvas_bytes(&size)), settings)?;
        Ok(size)
    }

    /// Decodes a frame and places it on its canvas.
    ///
    /// # Errors
    /// `UndecodableImage`, `DecodedImageTooLarge`, `OutOfMemory`, `Stopped`.
    pub(super) fn decode(
        &self,
        still: StandaloneFrame<'_>,
        header: &ImageHeader,
        settings: &InputSettings,
        stop: Stop<'_>,
    ) -> Result<Raster, InputError> {
        let stopped = Cell::new(false);
        let source = StoppableFile::new(&still.file, stop, &stopped);
        let frame = self.decode_frame(source, &still.file, (header, settings), stop);
        if stopped.get() {
            return Err(InputError::Stopped);
        }
        Ok(still.on_canvas(frame?)?)
    }

    fn decode_frame(
        &self,
        source: StoppableFile<'_>,
        file: &[u8],
        (header, settings): (&ImageHeader, &InputSettings),
        stop: Stop<'_>,
    ) -> Result<Raster, InputError> {
        let refused = |error: &ImageError| self.refused(header, error, settings);
        let mut decoder = self.open(source, settings)?;
        decoder.set_limits(limits(settings.max_decoded_bytes)).map_err(|error| refused(&error))?;
        let (width, height) = decoder.dimensions();
        let layout = Layout::of(decoder.color_type())
            .ok_or_else(|| undecodable(self.format, UNSUPPORTED_VARIANT))?;
        let length = usize::try_from(decoder.total_bytes())
            .map_err(|_| memory::OutOfMemory { bytes: decoder.total_bytes() })?;
        let mut data: Vec<u8> = memory::filled_until::<_, InputError>(0, length, stop)?;
        memory::probe_available((self.bytes_inside)(file, (width, height)))?;
        decoder.read_image(&mut data).map_err(|error| refused(&error))?;
        Ok(Raster { width, height, layout, data })
    }

    fn open<'file>(
        &self,
        file: StoppableFile<'file>,
        settings: &InputSettings,
    ) -> Result<impl ImageDecoder + 'file + use<'file>, InputError> {
        let mut reader = ImageReader::with_format(file, self.name);
        reader.limits(limits(METADATA_BYTES.min(settings.max_decoded_bytes)));
        reader.into_decoder().map_err(|error| undecodable(self.format, describe(&error)))
    }

    fn refused(
        &self,
        header: &ImageHeader,
        error: &ImageError,
        settings: &InputSettings,
    ) -> InputError {
        if matches!(error, ImageError::Limits(_)) {
            let (bytes, max_bytes) = (header.working_bytes, settings.max_decoded_bytes);
            return InputError::DecodedImageTooLarge { bytes, max_bytes };
        }
        undecodable(self.format, describe(error))
    }
}

/// Returns the limits for a decoder: `max_bytes` bounds the decoder's own allocations, such as rows and metadata of a
/// PNG.
fn limits(max_bytes: u64) -> image::Limits {
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(max_bytes);
    limits
}

/// Maps a decoder error to one of a fixed set of reasons for the client. The decoder's own message goes to the log.
fn describe(error: &ImageError) -> &'static str {
    tracing::debug!(%error, "an image decoder rejected a file");
    if let ImageError::IoError(io) = error
        && io.kind() == std::io::ErrorKind::UnexpectedEof
    {
        return TRUNCATED_FILE;
    }
    match error {
        ImageError::Unsupported(_) => UNSUPPORTED_VARIANT,
        ImageError::Limits(_) => "its header asks for too much memory",
        ImageError::Decoding(_)
        | ImageError::Encoding(_)
        | ImageError::Parameter(_)
        | ImageError::IoError(_) => DAMAGED_DATA,
    }
}
