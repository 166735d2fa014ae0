//! Images: an id, a description, decoded pixels, and pixels at the input size of a vision tower.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// SHA-256 of an image file's bytes, written as `sha256:<64 lower-case hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageId([u8; 32]);

/// Error: the text is not `sha256:` followed by 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseImageIdError;

impl ImageId {
    /// Returns the id of a file with this SHA-256 digest.
    #[must_use]
    pub fn from_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// Returns the 32 bytes of the SHA-256 digest.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ParseImageIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an image id is \"sha256:\" and 64 lower-case hexadecimal digits")
    }
}

impl std::error::Error for ParseImageIdError {}

impl FromStr for ImageId {
    type Err = ParseImageIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = text.strip_prefix("sha256:").ok_or(ParseImageIdError)?.as_bytes();
        if hex.len() != 64 {
            return Err(ParseImageIdError);
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = (hex_digit(pair[0])? << 4) | hex_digit(pair[1])?;
        }
        Ok(Self(digest))
    }
}

fn hex_digit(digit: u8) -> Result<u8, ParseImageIdError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(ParseImageIdError),
    }
}

/// The image file formats that the server accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// JPEG, the usual format of photographs.
    Jpeg,
    /// PNG; for an APNG, the default image.
    Png,
    /// WebP, lossy or lossless; for an animation, the first frame.
    WebP,
    /// GIF; for an animation, the first frame.
    Gif,
    /// BMP, the Windows bitmap format.
    Bmp,
}

impl ImageFormat {
    /// All formats, in the order in which errors list them.
    pub const ALL: [Self; 5] = [Self::Jpeg, Self::Png, Self::WebP, Self::Gif, Self::Bmp];

    /// Returns the lower-case name used on the wire and in metric labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::WebP => "webp",
            Self::Gif => "gif",
            Self::Bmp => "bmp",
        }
    }
}

/// Owner of image ids, of cached pixels and of cached features. Scopes isolate clients from each other: each API key
/// has its own scope. A server without keys has only [`Scope::EVERYONE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scope(pub u64);

impl Scope {
    /// The only scope of a server without API keys.
    pub const EVERYONE: Self = Self(0);
}

/// Facts about an image that the client who sent it may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageInfo {
    /// SHA-256 digest of the file's bytes.
    pub id: ImageId,
    /// Width in pixels after EXIF rotation.
    pub width: u32,
    /// Height in pixels after EXIF rotation.
    pub height: u32,
    /// The file's format, read from its first bytes.
    pub format: ImageFormat,
}

/// How the [`Pixels`] of a decoded image are prepared for a model: they are resized to exactly this size, ignoring the
/// aspect ratio. Two models with equal values share prepared pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Preprocessing {
    /// Target width in pixels, which is the width of the model's input.
    pub width: u32,
    /// Target height in pixels, which is the height of the model's input.
    pub height: u32,
    /// The resampling filter used for resizing.
    pub resample: Resample,
}

impl Preprocessing {
    /// Returns the preprocessing for this size with Pillow's BICUBIC filter, which every official checkpoint specifies.
    #[must_use]
    pub fn bicubic(width: u32, height: u32) -> Self {
        Self { width, height, resample: Resample::Bicubic }
    }
}

/// Pillow's resampling filters (`Image.Resampling`). The number at each filter is its value of `resample` in a
/// processor's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resample {
    /// 0: nearest neighbour, the sample at the centre.
    Nearest,
    /// 1: a windowed sinc of three lobes.
    Lanczos,
    /// 2: linear interpolation with a triangle kernel.
    Bilinear,
    /// 3: Keys' cubic kernel with a = -0.5.
    Bicubic,
    /// 4: the mean of all samples that a pixel covers.
    Box,
    /// 5: a windowed sinc of one lobe.
    Hamming,
}

impl Resample {
    /// All filters, in the order of Pillow's numbers.
    pub const ALL: [Self; 6] =
        [Self::Nearest, Self::Lanczos, Self::Bilinear, Self::Bicubic, Self::Box, Self::Hamming];

    /// Returns the filter's name in Pillow, in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::Lanczos => "lanczos",
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
            Self::Box => "box",
            Self::Hamming => "hamming",
        }
    }

    /// Returns the filter with this number in Pillow; `None` if there is none.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        usize::try_from(number).ok().and_then(|number| Self::ALL.get(number)).copied()
    }
}

/// An upright, opaque image as RGB pixels with 8 bits per channel, row-major `[height, width, 3]`, not yet normalised.
/// Decoding returns the pixels at the picture's own size; resizing returns them at the size in a [`Preprocessing`].
/// Models accept only their own input size.
#[derive(Clone, PartialEq, Eq)]
pub struct Pixels {
    width: u32,
    height: u32,
    data: Vec<u8>,
}

impl Pixels {
    /// Wraps `data`, row-major `[height, width, 3]`.
    ///
    /// # Panics
    /// If a side is zero, or if `data` does not hold `height * width * 3` bytes.
    #[must_use]
    pub fn new(width: u32, height: u32, data: Vec<u8>) -> Self {
        let expected = width as usize * height as usize * 3;
        assert!(expected > 0, "an image has pixels");
        assert_eq!(data.len(), expected, "pixels of {width}x{height} need {expected} bytes");
        Self { width, height, data }
    }

    /// Returns the width of the image in pixels.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Returns the height of the image in pixels.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Returns the pixel data, row-major `[height, width, 3]`.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.data
    }
}

impl fmt::Debug for Pixels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pixels({}x{})", self.width, self.height)
    }
}

/// A decoded, oriented and resized image, with facts about its file. Clones share the pixels.
#[derive(Debug, Clone)]
pub struct PreparedImage {
    /// Facts about the original file.
    pub info: ImageInfo,
    /// Owner of the image; part of every cache key.
    pub scope: Scope,
    /// How `pixels` were prepared; part of every cache key.
    pub preprocessing: Preprocessing,
    /// The pixels at the size in `preprocessing`, shared by the cache and all tasks that use them.
    pub pixels: Arc<Pixels>,
}

impl PreparedImage {
    /// True if both images have the same features in every vision tower, that is, if they are the same image, prepared
    /// in the same way, for the same owner.
    #[must_use]
    pub fn has_features_of(&self, other: &Self) -> bool {
        (self.info.id, self.scope, self.preprocessing)
            == (other.info.id, other.scope, other.preprocessing)
    }
}
