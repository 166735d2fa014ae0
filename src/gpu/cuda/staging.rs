//! Pinned host memory, through which uploads and downloads go.
//!
//! The device copies to and from pinned memory by itself, while the host goes on. An upload first copies the caller's
//! bytes into pinned memory, so they may be changed as soon as the call returns.

#![expect(unsafe_code, reason = "pinned memory by pointer, and calls of the CUDA driver")]

use std::ffi::c_void;
use std::ptr::{copy_nonoverlapping, null_mut};

use cudarc::driver::sys::{self, CUevent, CUevent_flags, CUevent_st};

use super::context::{Context, Handle};
use super::status::check;
use crate::gpu::device::{Address, DeviceError};

/// Segments of the upload buffer. While the device reads from some of them, the host writes into another.
const SEGMENTS: usize = 4;

/// Size of a segment, and of the download buffer. Copies of this size reach the full speed of PCI Express (about 25 GB/s,
/// so 0.2 ms); nine images of 384 x 384 pixels fit.
const SEGMENT_BYTES: usize = 4 << 20;

/// Page-locked host memory.
#[derive(Debug)]
struct Pinned {
    bytes: Handle<u8>,
}

impl Pinned {
    fn try_new(bytes: usize) -> Result<Self, DeviceError> {
        let mut pointer: *mut c_void = null_mut();
        // SAFETY: the pointer is to a local variable; without flags the memory is ordinary cached memory.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&raw mut pointer, bytes, 0) })?;
        Ok(Self { bytes: Handle(pointer.cast()) })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the memory is ours, and no copy is running: `CudaDevice` has synchronised the stream.
        let _ = unsafe { sys::cuMemFreeHost(self.bytes.0.cast()) };
    }
}

/// Marks a point in the stream.
#[derive(Debug)]
struct Event(Handle<CUevent_st>);

impl Event {
    fn try_new() -> Result<Self, DeviceError> {
        let mut event: CUevent = null_mut();
        let flags = CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the pointer is to a local variable.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut event, flags) })?;
        Ok(Self(Handle(event)))
    }

    /// Marks the current end of the stream.
    fn record(&self, context: &Context) -> Result<(), DeviceError> {
        // SAFETY: event and stream live.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.0.0, context.stream()) })
    }

    /// Waits for the work before the mark. Returns at once if nothing is marked yet.
    fn wait(&self) -> Result<(), DeviceError> {
        // SAFETY: the event lives.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.0.0) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is ours, and nobody waits for it.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0.0) };
    }
}

/// Where the next bytes of an upload go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    /// The segment that is full. The next upload into it must wait for the copies so far.
    left: Option<usize>,
    /// The segment of the piece.
    segment: usize,
    /// Offset of the piece in its segment.
    offset: usize,
    /// Number of bytes, at least one.
    bytes: usize,
}

/// Fills segments one after another. Many small uploads share a segment, so they need not wait for each other.
#[derive(Debug)]
struct Segments {
    count: usize,
    segment_bytes: usize,
    current: usize,
    used: usize,
}

impl Segments {
    fn new(count: usize, segment_bytes: usize) -> Self {
        Self { count, segment_bytes, current: 0, used: 0 }
    }

    /// Takes room for the next piece of an upload of which `bytes` are left.
    fn take(&mut self, bytes: usize) -> Piece {
        let mut left = None;
        if self.used == self.segment_bytes {
            left = Some(self.current);
            self.current = (self.current + 1) % self.count;
            self.used = 0;
        }
        let offset = self.used;
        let bytes = bytes.min(self.segment_bytes - offset);
        self.used += bytes;
        Piece { left, segment: self.current, offset, bytes }
    }
}

/// Pinned buffers for both directions.
#[derive(Debug)]
pub(super) struct Staging {
    segments: Segments,
    /// One per segment: the copies out of it are done.
    copied: Vec<Event>,
    upload: Pinned,
    download: Pinned,
}

impl Staging {
    pub(super) fn try_new() -> Result<Self, DeviceError> {
        Ok(Self {
            segments: Segments::new(SEGMENTS, SEGMENT_BYTES),
            copied: (0..SEGMENTS).map(|_| Event::try_new()).collect::<Result<_, _>>()?,
            upload: Pinned::try_new(SEGMENTS * SEGMENT_BYTES)?,
            download: Pinned::try_new(SEGMENT_BYTES)?,
        })
    }

    /// Copies bytes into pinned memory, and starts their copies to the device.
    pub(super) fn upload(
        &mut self,
        context: &Context,
        to: Address,
        bytes: &[u8],
    ) -> Result<(), DeviceError> {
        let mut done = 0;
        while done < bytes.len() {
            let piece = self.segments.take(bytes.len() - done);
            if let Some(left) = piece.left {
                self.copied[left].record(context)?;
                self.copied[piece.segment].wait()?;
            }
            let source = &bytes[done..done + piece.bytes];
            // SAFETY: the piece lies within its segment, which lies within the buffer. No copy to the device reads it:
            // the copies out of this segment are done, and the pieces after them do not overlap.
            let status = unsafe {
                let pinned = self.upload.bytes.0.add(piece.segment * SEGMENT_BYTES + piece.offset);
                copy_nonoverlapping(source.as_ptr(), pinned, piece.bytes);
                sys::cuMemcpyHtoDAsync_v2(
                    to.offset(done).0,
                    pinned.cast(),
                    piece.bytes,
                    context.stream(),
                )
            };
            check("cuMemcpyHtoDAsync", status)?;
            done += piece.bytes;
        }
        Ok(())
    }

    /// Waits for all work in the stream, and copies bytes from the device.
    pub(super) fn download(
        &mut self,
        context: &Context,
        from: Address,
        bytes: &mut [u8],
    ) -> Result<(), DeviceError> {
        for (index, part) in bytes.chunks_mut(SEGMENT_BYTES).enumerate() {
            let pinned = self.download.bytes.0;
            // SAFETY: a part is at most as large as the buffer, which lives until the stream is synchronised below. If
            // the copy fails, the buffer is only written again or freed after another synchronisation.
            let status = unsafe {
                sys::cuMemcpyDtoHAsync_v2(
                    pinned.cast(),
                    from.offset(index * SEGMENT_BYTES).0,
                    part.len(),
                    context.stream(),
                )
            };
            check("cuMemcpyDtoHAsync", status)?;
            context.synchronize()?;
            // SAFETY: the device has written the bytes, and nothing writes them now.
            unsafe { copy_nonoverlapping(pinned, part.as_mut_ptr(), part.len()) };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_uploads_share_a_segment() {
        let mut segments = Segments::new(2, 10);
        assert_eq!(segments.take(4), Piece { left: None, segment: 0, offset: 0, bytes: 4 });
        assert_eq!(segments.take(6), Piece { left: None, segment: 0, offset: 4, bytes: 6 });
        // The first segment is full, so its copies are marked.
        assert_eq!(segments.take(1), Piece { left: Some(0), segment: 1, offset: 0, bytes: 1 });
    }

    #[test]
    fn a_large_upload_goes_through_all_segments_in_turn() {
        let mut segments = Segments::new(3, 8);
        segments.take(5);
        let mut pieces = Vec::new();
        let mut left = 30;
        while left > 0 {
            let piece = segments.take(left);
            left -= piece.bytes;
            pieces.push((piece.left, piece.segment, piece.offset, piece.bytes));
        }
        assert_eq!(
            pieces,
            [
                (None, 0, 5, 3),
                (Some(0), 1, 0, 8),
                (Some(1), 2, 0, 8),
                (Some(2), 0, 0, 8),
                (Some(0), 1, 0, 3)
            ]
        );
    }

    /// Bytes that a running copy may still read are never written.
    #[test]
    fn a_segment_is_only_reused_after_its_copies_were_marked() {
        let mut segments = Segments::new(4, 64);
        let mut marked = [true; 4];
        let mut written = [0_usize; 4];
        for step in 0..2_000_usize {
            let mut left = 1 + step * 37 % 150;
            while left > 0 {
                let piece = segments.take(left);
                if let Some(full) = piece.left {
                    marked[full] = true;
                    assert!(marked[piece.segment], "step {step}");
                    written[piece.segment] = 0;
                }
                assert_eq!(piece.offset, written[piece.segment], "step {step}");
                marked[piece.segment] = false;
                written[piece.segment] += piece.bytes;
                assert!(written[piece.segment] <= 64);
                left -= piece.bytes;
            }
        }
    }
}
