//! Reads the RIFF container of a `WebP` with the rules of libwebp (`demux.c`), which Pillow uses to open every such
//! file. Rewrites the first frame as a file that needs no special cases in the decoder.
//!
//! The flags of a `VP8X` chunk are wrong in some files, but the decoder trusts them: it rejects a file whose flags
//! declare an EXIF or XMP chunk that is missing, and it drops the transparency of a lossless picture if the flags do
//! not declare transparency. The file that [`Container::still`] writes contains only the first frame, so the checks of
//! `parts` and `codes` see exactly what is decoded.

use crate::input::memory::{self, OutOfMemory};

/// Flags of a `VP8X` chunk.
const ANIMATED: u8 = 0x02;
const XMP: u8 = 0x04;
const EXIF: u8 = 0x08;
const ALPHA: u8 = 0x10;
/// All the flags above and the flag for an ICC profile. libwebp rejects files with any other flag.
const KNOWN_FLAGS: u8 = 0x3e;

/// Size in bytes of a chunk header: `FourCC` and chunk size.
const CHUNK_HEAD: usize = 8;
/// Size in bytes of the header of an ANMF chunk: position, size, duration and blending. The frame's own chunks follow
/// it.
const FRAME_HEAD: usize = 16;
/// Size in bytes of the file header: `RIFF`, size, `WEBP`.
const FILE_HEAD: usize = 12;

/// The parsed container of a file: canvas, metadata and first frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Container<'a> {
    /// Width and height of the whole picture in pixels.
    pub(super) canvas: (u32, u32),
    /// Position of the first frame's left and top edges on the canvas in pixels.
    pub(super) place: (u32, u32),
    /// EXIF data, if the flags declare it.
    pub(super) exif: Option<&'a [u8]>,
    /// XMP data, if the flags declare it.
    pub(super) xmp: Option<&'a [u8]>,
    frame: FrameChunks<'a>,
    /// True if the transparency of the frame is used.
    with_alpha: bool,
}

/// The chunks of one frame, and the size of its image.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct FrameChunks<'a> {
    /// Width and height of the image in pixels.
    sides: (u32, u32),
    alpha: Option<&'a [u8]>,
    image: Option<Image<'a>>,
}

impl FrameChunks<'_> {
    /// True if there is an image and it lies within the canvas.
    fn fits(&self, place: (u32, u32), canvas: (u32, u32)) -> bool {
        let within = |at: u32, side: u32, most: u32| at.saturating_add(side) <= most;
        self.image.is_some()
            && within(place.0, self.sides.0, canvas.0)
            && within(place.1, self.sides.1, canvas.1)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Image<'a> {
    lossless: bool,
    data: &'a [u8],
    sides: (u32, u32),
    /// The alpha hint in the header of a lossless bitstream.
    alpha: bool,
}

/// Parses a file. Returns `None` if libwebp rejects the container. Visits each chunk header once.
pub(super) fn read(file: &[u8]) -> Option<Container<'_>> {
    let size = file.get(4..8)?.first_chunk()?;
    let size = u32::from_le_bytes(*size) as usize;
    // A missing final padding byte is tolerated, at the end of the file and of each chunk.
    let whole = file
        .get(..size.checked_add(CHUNK_HEAD)?)
        .or_else(|| file.get(..(size & !1) + CHUNK_HEAD))?;
    let mut chunks = Chunks { data: whole, at: FILE_HEAD };
    let (name, data) = chunks.peek()?;
    if name == *b"VP8X" {
        chunks.pass(data);
        return extended(chunks, data);
    }
    let frame = chunks.frame()?;
    let image = frame.image?;
    let with_alpha = image.lossless && image.alpha;
    Some(Container { canvas: image.sides, place: (0, 0), exif: None, xmp: None, frame, with_alpha })
}

fn extended<'a>(mut chunks: Chunks<'a>, head: &[u8]) -> Option<Container<'a>> {
    let &[flags, _, _, _, w0, w1, w2, h0, h1, h2] = head else { return None };
    if flags & !KNOWN_FLAGS != 0 {
        return None;
    }
    let canvas = (side([w0, w1, w2]), side([h0, h1, h2]));
    let has = |flag| flags & flag != 0;
    // Position and data of the first frame, and whether it belongs to an animation.
    let mut first = None;
    let (mut exif, mut xmp, mut seen_anim) = (None, None, false);
    // libwebp requires at least one chunk here, so the end is tested after each chunk.
    loop {
        let (name, data) = chunks.peek()?;
        match &name {
            b"ALPH" | b"VP8 " | b"VP8L" => {
                // libwebp rejects a second picture, and a still picture in an animation.
                if first.is_some() || seen_anim || has(ANIMATED) {
                    return None;
                }
                first = Some(((0, 0), chunks.frame()?, false));
            }
            b"ANIM" if data.len() >= 6 => {
                seen_anim = true;
                chunks.pass(data);
            }
            b"ANMF" if seen_anim => {
                let (place, frame) = chunks.animation_frame()?;
                if has(ANIMATED) {
                    // libwebp rejects the file if any frame is invalid, not only if the first one is.
                    if !frame.fits(place, canvas) {
                        return None;
                    }
                    first.get_or_insert((place, frame, true));
                }
            }
            b"EXIF" => {
                exif = exif.or(has(EXIF).then_some(data));
                chunks.pass(data);
            }
            b"XMP " => {
                xmp = xmp.or(has(XMP).then_some(data));
                chunks.pass(data);
            }
            // libwebp rejects a second VP8X chunk, an ANIM chunk that is too short, and a frame before the ANIM chunk.
            b"VP8X" | b"ANIM" | b"ANMF" => return None,
            _ => chunks.pass(data),
        }
        if chunks.at_end() {
            break;
        }
    }
    let (place, frame, animated) = first?;
    let image = frame.image?;
    if !frame.fits(place, canvas) || (!has(ANIMATED) && frame.sides != canvas) {
        return None;
    }
    // A lossless still picture has an alpha hint in its bitstream; all others rely on the flag in the VP8X chunk.
    let with_alpha = if image.lossless && !animated { image.alpha } else { has(ALPHA) };
    Some(Container { canvas, place, exif, xmp, frame, with_alpha })
}

impl Container<'_> {
    /// Returns the width and height of the first frame in pixels, which are at most those of the canvas.
    pub(super) fn sides(&self) -> (u32, u32) {
        self.frame.sides
    }

    /// Returns a file with the first frame as a still picture: a `VP8X` chunk with correct flags, then the frame's
    /// data. The file is at most 64 bytes longer than the data.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub(super) fn still(&self) -> Result<Vec<u8>, OutOfMemory> {
        let Some(image) = self.frame.image else { return Ok(Vec::new()) };
        let alpha = self.frame.alpha.filter(|_| self.with_alpha && !image.lossless);
        let flags = if self.with_alpha && (image.lossless || alpha.is_some()) { ALPHA } else { 0 };
        let (width, height) = self.frame.sides;
        let [[w0, w1, w2, _], [h0, h1, h2, _]] =
            [width, height].map(|side| (side - 1).to_le_bytes());
        let name = if image.lossless { b"VP8L" } else { b"VP8 " };
        let length = image.data.len() + alpha.map_or(0, <[u8]>::len) + 64;
        let mut file = memory::with_capacity(length)?;
        file.extend(b"RIFF\0\0\0\0WEBP");
        push(&mut file, *b"VP8X", &[flags, 0, 0, 0, w0, w1, w2, h0, h1, h2]);
        if let Some(alpha) = alpha {
            push(&mut file, *b"ALPH", alpha);
        }
        push(&mut file, *name, image.data);
        let size = (file.len() - CHUNK_HEAD) as u32;
        file[4..8].copy_from_slice(&size.to_le_bytes());
        Ok(file)
    }
}

fn push(file: &mut Vec<u8>, name: [u8; 4], data: &[u8]) {
    file.extend(name);
    file.extend((data.len() as u32).to_le_bytes());
    file.extend(data);
    file.extend(&[0][..data.len() % 2]);
}

fn side([low, middle, high]: [u8; 3]) -> u32 {
    u32::from_le_bytes([low, middle, high, 0]) + 1
}

/// A cursor over the chunks of a file. As in libwebp, the chunks inside an animation frame are read as if they were
/// top-level chunks after the frame header.
struct Chunks<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Chunks<'a> {
    /// Returns the `FourCC` and data of the next chunk; `None` if the chunk is truncated.
    fn peek(&self) -> Option<([u8; 4], &'a [u8])> {
        let (name, rest) = self.data.get(self.at..)?.split_first_chunk()?;
        let (size, rest) = rest.split_first_chunk()?;
        Some((*name, rest.get(..u32::from_le_bytes(*size) as usize)?))
    }

    /// Moves the cursor past a chunk with this data, including its padding byte.
    fn pass(&mut self, data: &[u8]) {
        self.at += CHUNK_HEAD + data.len() + data.len() % 2;
    }

    fn at_end(&self) -> bool {
        self.at >= self.data.len()
    }

    /// Consumes the ALPH chunk, if there is one, and the image chunk at the cursor. Returns `None` if one of them is
    /// broken.
    fn frame(&mut self) -> Option<FrameChunks<'a>> {
        let mut frame = FrameChunks::default();
        while !self.at_end() {
            let (name, data) = self.peek()?;
            match &name {
                b"ALPH" if frame.alpha.is_none() => {
                    // ALPH must precede the image.
                    if frame.image.is_some() {
                        return None;
                    }
                    frame.alpha = Some(data);
                }
                b"VP8L" if frame.alpha.is_some() => return None,
                b"VP8 " | b"VP8L" if frame.image.is_none() => {
                    let image = Image::read(name, data)?;
                    frame.sides = image.sides;
                    frame.image = Some(image);
                }
                _ => break,
            }
            self.pass(data);
        }
        Some(frame)
    }

    fn animation_frame(&mut self) -> Option<((u32, u32), FrameChunks<'a>)> {
        let (_, data) = self.peek()?;
        // libwebp uses the width and height in the frame header only to check the area; it takes the actual size from
        // the image.
        let &[x0, x1, x2, y0, y1, y2, w0, w1, w2, h0, h1, h2, ..] =
            data.first_chunk::<FRAME_HEAD>()?;
        let place = |bytes| (side(bytes) - 1) * 2;
        if u64::from(side([w0, w1, w2])) * u64::from(side([h0, h1, h2])) >= 1 << 32 {
            return None;
        }
        self.at += CHUNK_HEAD + FRAME_HEAD;
        Some(((place([x0, x1, x2]), place([y0, y1, y2])), self.frame()?))
    }
}

impl<'a> Image<'a> {
    /// Parses the header of the bitstream (libwebp `VP8GetInfo`, `VP8LGetInfo`).
    fn read(name: [u8; 4], data: &'a [u8]) -> Option<Self> {
        if name == *b"VP8L" {
            let &[0x2f, a, b, c, d] = data.first_chunk()? else { return None };
            let head = u32::from_le_bytes([a, b, c, d]);
            let sides = ((head & 0x3fff) + 1, (head >> 14 & 0x3fff) + 1);
            let alpha = head >> 28 & 1 == 1;
            return (head >> 29 == 0).then_some(Self { lossless: true, data, sides, alpha });
        }
        let &[t0, t1, t2, 0x9d, 0x01, 0x2a, w0, w1, h0, h1] = data.first_chunk()? else {
            return None;
        };
        let tag = u32::from_le_bytes([t0, t1, t2, 0]);
        let side = |bytes| u32::from(u16::from_le_bytes(bytes) & 0x3fff);
        let sides = (side([w0, w1]), side([h0, h1]));
        // The frame must be a visible key frame of a known profile, and its first partition must fit into the data.
        let sound = tag & 1 == 0 && tag >> 1 & 7 <= 3 && tag >> 4 & 1 == 1;
        let fits = ((tag >> 5) as usize) < data.len() && sides.0 > 0 && sides.1 > 0;
        (sound && fits).then_some(Self { lossless: false, data, sides, alpha: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the start of a lossless bitstream of 3 x 2 pixels with this alpha hint.
    fn lossless(alpha: bool) -> Vec<u8> {
        let head = 2 | 1 << 14 | u32::from(alpha) << 28;
        [&[0x2f][..], &head.to_le_bytes(), b"codes"].concat()
    }

    fn file(chunks: &[([u8; 4], &[u8])]) -> Vec<u8> {
        let mut file = b"RIFF\0\0\0\0WEBP".to_vec();
        for &(name, data) in chunks {
            push(&mut file, name, data);
        }
        let size = (file.len() - CHUNK_HEAD) as u32;
        file[4..8].copy_from_slice(&size.to_le_bytes());
        file
    }

    fn head(flags: u8) -> [u8; 10] {
        [flags, 0, 0, 0, 2, 0, 0, 1, 0, 0]
    }

    #[test]
    fn a_still_has_true_flags_and_nothing_but_the_frame() {
        for (flags, alpha) in [(0, true), (ALPHA, false), (EXIF | XMP | 0x20, true)] {
            let picture = lossless(alpha);
            let found = file(&[(*b"VP8X", &head(flags)), (*b"VP8L", &picture), (*b"what", b"abc")]);
            let still = read(&found).unwrap().still().unwrap();
            let true_flags = if alpha { ALPHA } else { 0 };
            let expected = file(&[(*b"VP8X", &head(true_flags)), (*b"VP8L", &picture)]);
            assert_eq!(still, expected, "{flags}");
        }
    }

    #[test]
    fn a_still_is_read_as_the_same_picture() {
        let picture = lossless(true);
        let frame =
            [&[1, 0, 0, 2, 0, 0, 9, 9, 0, 9, 9, 0, 0, 0, 0, 0][..], b"VP8L\x0a\0\0\0", &picture]
                .concat();
        let mut canvas = head(ANIMATED | ALPHA);
        (canvas[4], canvas[7]) = (9, 9);
        let found = file(&[(*b"VP8X", &canvas), (*b"ANIM", &[0; 6]), (*b"ANMF", &frame)]);
        let found = read(&found).unwrap();
        assert_eq!((found.canvas, found.place, found.sides()), ((10, 10), (2, 4), (3, 2)));
        let still = found.still().unwrap();
        let again = read(&still).unwrap();
        assert_eq!((again.canvas, again.frame), ((3, 2), found.frame));
        assert_eq!(again.still().unwrap(), still);
    }

    #[test]
    fn announced_sizes_beyond_the_file_are_refused() {
        let picture = lossless(false);
        let whole = file(&[(*b"VP8X", &head(EXIF)), (*b"VP8L", &picture), (*b"EXIF", b"abcd")]);
        assert!(read(&whole).is_some());
        // Offsets of the size fields of the file and of each chunk.
        for at in [4, 16, 34, 52] {
            let mut file = whole.clone();
            file[at..at + 4].fill(0xff);
            assert_eq!(read(&file), None, "{at}");
        }
        for length in 0..whole.len() {
            assert_eq!(read(&whole[..length]), None, "{length}");
        }
    }

    #[test]
    fn a_missing_last_byte_of_padding_is_forgiven() {
        let picture = lossless(false);
        let odd = file(&[(*b"VP8X", &head(EXIF)), (*b"VP8L", &picture), (*b"EXIF", b"abc")]);
        let exif = |file: &[u8]| read(file).and_then(|found| found.exif.map(<[u8]>::to_vec));
        assert_eq!(exif(&odd), Some(b"abc".to_vec()));
        let mut short = odd[..odd.len() - 1].to_vec();
        short[4] -= 1;
        assert_eq!(exif(&short), Some(b"abc".to_vec()));
    }
}
