//! Finds the parts of a `WebP` that its decoder reads: those of the picture, or of the first frame of an animation. The
//! checks examine exactly these parts. Data that the decoder skips costs nothing and needs no check; data that it reads
//! is always checked.
//!
//! Follows `image-webp` (`WebPDecoder::read_data`, `read_image`, `read_frame`) step by step, quirks included.

/// Flag of a `VP8X` chunk: the file is an animation.
const ANIMATED: u8 = 0x02;
/// Flag of a `VP8X` chunk: the picture has transparency.
const ALPHA: u8 = 0x10;
/// Size in bytes of the header of an ANMF chunk. The frame's own chunks follow it.
const FRAME_HEAD: usize = 16;

/// A VP8L bitstream, which contains a picture or the alpha channel of a lossy picture.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lossless<'a> {
    /// All data of the chunk.
    pub(super) bytes: &'a [u8],
    /// Width and height in pixels that the container declares, not yet compared with those in the bitstream.
    pub(super) sides: (u32, u32),
    /// True if the bitstream comes from an ALPH chunk, where it has no header of its own.
    pub(super) is_alpha: bool,
}

/// The parts of a file that the decoder reads.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DecoderParts<'a> {
    /// Data of a lossy (VP8) frame.
    pub(super) lossy: Option<&'a [u8]>,
    /// A lossless picture, or the compressed alpha channel of a lossy one.
    pub(super) lossless: Option<Lossless<'a>>,
    /// True if the alpha channel of a lossy frame is stored uncompressed.
    pub(super) plain_alpha: bool,
}

/// Finds the parts of a file whose header declares the size `canvas`. Visits each chunk header once.
pub(super) fn parts(file: &[u8], canvas: (u32, u32)) -> DecoderParts<'_> {
    let Some(first) = Chunk::at(file, 12) else { return DecoderParts::default() };
    match &first.name {
        b"VP8 " => DecoderParts::of_lossy(first.data(file)),
        b"VP8L" => DecoderParts::of_picture(first.data(file), canvas),
        b"VP8X" => {
            let flags = first.data(file).first().copied().unwrap_or_default();
            let found = FirstChunks::in_extended(file, first);
            match found.frame {
                Some(frame) if flags & ANIMATED != 0 => of_frame(file, frame),
                Some(_) | None => found.still(file, canvas, flags & ALPHA != 0),
            }
        }
        _ => DecoderParts::default(),
    }
}

/// True if a lossy frame is larger than the canvas. The decoder allocates memory for the size that the frame declares,
/// and only then compares this size with the canvas.
pub(super) fn frame_exceeds(file: &[u8], canvas: (u32, u32)) -> bool {
    let head = parts(file, canvas).lossy.and_then(|data| data.get(6..)?.first_chunk());
    head.is_some_and(|&[w0, w1, h0, h1]| {
        // The two sides follow the frame tag and the start code, with 14 bits each.
        let side = |bytes| u32::from(u16::from_le_bytes(bytes) & 0x3fff);
        side([w0, w1]) > canvas.0 || side([h0, h1]) > canvas.1
    })
}

/// True if an EXIF, XMP or ICC chunk declares more bytes than the file has. The decoder allocates a buffer of the
/// declared size, up to 4 GiB, before it reads the data.
pub(super) fn metadata_is_cut(file: &[u8]) -> bool {
    let mut at = 12;
    while let Some(chunk) = Chunk::at(file, at) {
        let is_metadata = matches!(&chunk.name, b"EXIF" | b"ICCP" | b"XMP ");
        if is_metadata && chunk.start.saturating_add(chunk.size) > file.len() {
            return true;
        }
        at = chunk.next();
    }
    false
}

impl<'a> DecoderParts<'a> {
    fn of_lossy(frame: &'a [u8]) -> Self {
        Self { lossy: Some(frame), lossless: None, plain_alpha: false }
    }

    fn of_picture(bytes: &'a [u8], sides: (u32, u32)) -> Self {
        let lossless = Some(Lossless { bytes, sides, is_alpha: false });
        Self { lossy: None, lossless, plain_alpha: false }
    }

    /// Returns the parts of a lossy frame with an alpha channel, which may be compressed like a lossless picture.
    fn of_alpha(lossy: Option<&'a [u8]>, alpha: &'a [u8], sides: (u32, u32)) -> Self {
        // The lowest two bits of the first byte give the compression method: 1 is lossless.
        let compressed = alpha.first().is_some_and(|head| head & 3 == 1);
        let lossless = compressed.then_some(Lossless { bytes: alpha, sides, is_alpha: true });
        Self { lossy, lossless, plain_alpha: !compressed }
    }
}

/// Returns the parts of an animation frame. The `FourCC` of its first chunk decides which parts it has.
fn of_frame(file: &[u8], frame: Chunk) -> DecoderParts<'_> {
    let sides = frame.data(file).get(6..).and_then(|data| data.first_chunk());
    let (Some(&[w0, w1, w2, h0, h1, h2]), Some(chunk)) =
        (sides, Chunk::at(file, frame.start + FRAME_HEAD))
    else {
        return DecoderParts::default();
    };
    let side = |bytes| u32::from_le_bytes(bytes) + 1;
    let sides = (side([w0, w1, w2, 0]), side([h0, h1, h2, 0]));
    match &chunk.name {
        b"VP8 " => DecoderParts::of_lossy(chunk.data(file)),
        b"VP8L" => DecoderParts::of_picture(chunk.data(file), sides),
        // The decoder reads the next chunk as the lossy frame, whatever its `FourCC` is.
        b"ALPH" => {
            let lossy = Chunk::at(file, chunk.next()).map(|next| next.data(file));
            DecoderParts::of_alpha(lossy, chunk.data(file), sides)
        }
        _ => DecoderParts::default(),
    }
}

/// The first chunk of each kind in an extended file.
#[derive(Default)]
struct FirstChunks {
    lossy: Option<Chunk>,
    lossless: Option<Chunk>,
    alpha: Option<Chunk>,
    frame: Option<Chunk>,
}

impl FirstChunks {
    fn in_extended(file: &[u8], head: Chunk) -> Self {
        let mut found = Self::default();
        let mut at = head.next();
        // Compute the end of the chunks exactly as the decoder does. If the VP8X chunk is longer than usual, this end is
        // a few bytes beyond the size that the file declares.
        let size = file.get(4..8).and_then(|size| size.first_chunk()).copied().unwrap_or_default();
        let end = at.saturating_add((u32::from_le_bytes(size) as usize).saturating_sub(12));
        while at < end
            && let Some(chunk) = Chunk::at(file, at)
        {
            found.keep(chunk);
            at = chunk.next();
        }
        // The decoder also uses up to two chunks of the first frame, even if the flags declare no animation.
        if let Some(frame) = found.frame {
            let mut at = frame.start + FRAME_HEAD;
            for _ in 0..2 {
                let Some(chunk) = Chunk::at(file, at) else { break };
                found.keep(chunk);
                at = chunk.next();
                if at.saturating_add(8) > frame.start.saturating_add(frame.size) {
                    break;
                }
            }
        }
        found
    }

    fn keep(&mut self, chunk: Chunk) {
        let place = match &chunk.name {
            b"VP8 " => &mut self.lossy,
            b"VP8L" => &mut self.lossless,
            b"ALPH" => &mut self.alpha,
            b"ANMF" => &mut self.frame,
            _ => return,
        };
        place.get_or_insert(chunk);
    }

    fn still(self, file: &[u8], canvas: (u32, u32), with_alpha: bool) -> DecoderParts<'_> {
        if let Some(picture) = self.lossless {
            return DecoderParts::of_picture(picture.data(file), canvas);
        }
        let lossy = self.lossy.map(|chunk| chunk.data(file));
        match self.alpha {
            Some(alpha) if with_alpha => DecoderParts::of_alpha(lossy, alpha.data(file), canvas),
            Some(_) | None => DecoderParts { lossy, lossless: None, plain_alpha: false },
        }
    }
}

#[derive(Clone, Copy)]
struct Chunk {
    name: [u8; 4],
    /// Offset of the chunk's data in the file.
    start: usize,
    /// Size of the data in bytes, as declared in the chunk header.
    size: usize,
}

impl Chunk {
    fn at(file: &[u8], at: usize) -> Option<Self> {
        let &[a, b, c, d, s0, s1, s2, s3] = file.get(at..)?.first_chunk()?;
        let size = u32::from_le_bytes([s0, s1, s2, s3]) as usize;
        Some(Self { name: [a, b, c, d], start: at + 8, size })
    }

    /// Returns the chunk's data, or as much of it as the file contains.
    fn data(self, file: &[u8]) -> &[u8] {
        file.get(self.start..self.start.saturating_add(self.size).min(file.len()))
            .unwrap_or_default()
    }

    /// Returns the offset of the next chunk, after the padding byte of odd-sized data.
    fn next(self) -> usize {
        self.start.saturating_add(self.size).saturating_add(self.size & 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANVAS: (u32, u32) = (16, 32);
    /// The headers of two lossy key frames: tag, start code, width and height.
    const FITTING: &[u8] = b"\x10\0\0\x9d\x01\x2a\x10\0\x20\0";
    const LARGE: &[u8] = b"\x10\0\0\x9d\x01\x2a\x11\0\x20\0";
    /// The header of an ANMF chunk with a frame of 4 x 5 pixels.
    const FRAME: &[u8] = b"\0\0\0\0\0\0\x03\0\0\x04\0\0\0\0\0\0";

    fn chunk(name: [u8; 4], data: &[u8]) -> Vec<u8> {
        let padding = &[0][..data.len() % 2];
        [&name, &(data.len() as u32).to_le_bytes()[..], data, padding].concat()
    }

    fn riff(chunks: &[Vec<u8>]) -> Vec<u8> {
        let chunks = chunks.concat();
        let size = (chunks.len() as u32 + 4).to_le_bytes();
        [b"RIFF", &size[..], b"WEBP", &chunks].concat()
    }

    fn extended(flags: u8, chunks: &[Vec<u8>]) -> Vec<u8> {
        let head = chunk(*b"VP8X", &[flags, 0, 0, 0, 15, 0, 0, 31, 0, 0]);
        riff(&[vec![head], chunks.to_vec()].concat())
    }

    #[test]
    fn metadata_must_be_there_in_full() {
        let exif = |size: u32| {
            let chunk = [b"EXIF", &size.to_le_bytes()[..], b"abcd"].concat();
            extended(8, &[chunk])
        };
        assert!(!metadata_is_cut(&exif(4)));
        assert!(metadata_is_cut(&exif(5)));
        assert!(metadata_is_cut(&exif(u32::MAX)));
    }

    fn frame(chunks: &[Vec<u8>]) -> Vec<u8> {
        chunk(*b"ANMF", &[FRAME, &chunks.concat()].concat())
    }

    fn picture(bytes: &[u8], sides: (u32, u32)) -> DecoderParts<'_> {
        DecoderParts::of_picture(bytes, sides)
    }

    #[test]
    fn behind_a_plain_picture_nothing_is_read() {
        let more = frame(&[chunk(*b"ALPH", b"\x01xx")]);
        let file = riff(&[chunk(*b"VP8L", b"first"), chunk(*b"VP8L", b"second"), more.clone()]);
        assert_eq!(parts(&file, CANVAS), picture(b"first", CANVAS));
        let file = riff(&[chunk(*b"VP8 ", FITTING), more]);
        assert_eq!(parts(&file, CANVAS), DecoderParts::of_lossy(FITTING));
    }

    #[test]
    fn the_first_chunk_of_a_kind_is_read_up_to_the_announced_size() {
        let pictures = [chunk(*b"VP8L", b"first"), chunk(*b"VP8L", b"second")];
        let mut file = extended(0, &pictures);
        assert_eq!(parts(&file, CANVAS), picture(b"first", CANVAS));
        file[4..8].copy_from_slice(&12_u32.to_le_bytes());
        assert_eq!(parts(&file, CANVAS), DecoderParts::default(), "behind the end");
    }

    #[test]
    fn of_an_animation_the_first_frame_is_read_with_its_own_sides() {
        let first = frame(&[chunk(*b"VP8L", b"inner")]);
        let file = extended(ANIMATED, &[chunk(*b"VP8L", b"outer"), first, frame(&[])]);
        assert_eq!(parts(&file, CANVAS), picture(b"inner", (4, 5)));
        // Without the flag `ANIMATED`, the decoder reads the outer picture, or the picture in the frame if there is no
        // outer one.
        let file = extended(0, &[frame(&[chunk(*b"VP8L", b"inner")]), chunk(*b"VP8L", b"outer")]);
        assert_eq!(parts(&file, CANVAS), picture(b"outer", CANVAS));
        let file = extended(0, &[frame(&[chunk(*b"VP8L", b"inner")]), chunk(*b"VP8 ", FITTING)]);
        assert_eq!(parts(&file, CANVAS), picture(b"inner", CANVAS));
    }

    #[test]
    fn transparency_is_read_where_the_flags_tell_of_it_and_it_is_compressed() {
        let alpha = |flags, head: &[u8]| {
            let file = extended(flags, &[chunk(*b"ALPH", head), chunk(*b"VP8 ", FITTING)]);
            parts(&file, CANVAS).lossless.map(|stream| (stream.sides, stream.is_alpha))
        };
        assert_eq!(alpha(ALPHA, b"\x01xx"), Some((CANVAS, true)));
        assert_eq!(alpha(ALPHA, b"\x00xx"), None);
        assert_eq!(alpha(0, b"\x01xx"), None);
    }

    #[test]
    fn a_lossy_frame_beyond_its_canvas_is_found_wherever_it_is_read() {
        let files = |data: &[u8]| {
            let lossy = chunk(*b"VP8 ", data);
            // The chunk inside the frame claims to extend over the chunk that follows the frame.
            let mut hiding = frame(&[chunk(*b"blip", b"")]);
            hiding[8 + FRAME.len() + 4..][..4].fill(0xff);
            [
                riff(std::slice::from_ref(&lossy)),
                extended(0, &[chunk(*b"XMP ", b"x"), lossy.clone()]),
                extended(0, &[hiding, lossy.clone()]),
                extended(ANIMATED, &[frame(std::slice::from_ref(&lossy))]),
                // The decoder ignores the `FourCC` of the chunk after ALPH.
                extended(ANIMATED, &[frame(&[chunk(*b"ALPH", b"\0"), chunk(*b"blip", data)])]),
            ]
        };
        for (large, fitting) in files(LARGE).iter().zip(&files(FITTING)) {
            assert!(frame_exceeds(large, CANVAS));
            assert!(!frame_exceeds(fitting, CANVAS));
            assert!(frame_exceeds(fitting, (16, 31)));
            assert!(!frame_exceeds(&large[..large.len() - 4], CANVAS));
        }
    }
}
