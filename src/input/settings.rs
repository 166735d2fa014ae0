//! Settings for the images and texts that clients send, mostly limits, and the checks of these settings.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::settings::{InvalidSetting, NotAccepted, Section, require, text};

/// The order of the two resize passes when both sides of a picture change. Samples are rounded to 8 bits between the
/// passes, so the order affects the result: in tall pictures up to one value in six differs, by a few levels
/// (docs/preprocessing.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResizeOrder {
    /// The order of Pillow 13: the vertical pass comes first for tall pictures. transformers uses this order if
    /// torchvision is not installed, or with `backend="pil"`.
    #[default]
    Pillow13,
    /// The horizontal pass always comes first. This is the order of Pillow before 13, and of torchvision, which
    /// transformers 5 uses if it is installed.
    HorizontalFirst,
}

impl ResizeOrder {
    /// Every order, with the default first.
    pub const ALL: [Self; 2] = [Self::Pillow13, Self::HorizontalFirst];

    /// Returns the name of the order in settings files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pillow13 => "pillow13",
            Self::HorizontalFirst => "horizontal_first",
        }
    }
}

impl fmt::Display for ResizeOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ResizeOrder {
    type Err = NotAccepted;

    fn from_str(text: &str) -> Result<Self, NotAccepted> {
        let order = Self::ALL.into_iter().find(|order| order.name() == text);
        order.ok_or(NotAccepted("pillow13, horizontal_first"))
    }
}

/// Limits on a single image and a single text, and how an image is converted: the section `[input]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InputSettings {
    /// Maximum size of a picture file in bytes.
    pub max_image_bytes: usize,
    /// Maximum number of pixels of a picture.
    pub max_pixels: u64,
    /// Maximum width and height of a picture in pixels. At most 65,535, the largest side of a JPEG or GIF.
    pub max_side: u32,
    /// Maximum size in bytes of one decoded picture.
    pub max_decoded_bytes: u64,
    /// RGB colour that shows through transparent pixels.
    pub alpha_background: [u8; 3],
    /// Which resize pass comes first.
    #[serde(with = "text")]
    pub resize_order: ResizeOrder,
    /// Maximum length of a text in characters.
    pub max_text_chars: usize,
    /// Maximum length of a text in bytes of UTF-8.
    pub max_text_bytes: usize,
}

impl Default for InputSettings {
    fn default() -> Self {
        Self {
            max_image_bytes: 10 << 20,
            max_pixels: 50_000_000,
            max_side: 16_384,
            max_decoded_bytes: 384 << 20,
            alpha_background: [255; 3],
            resize_order: ResizeOrder::default(),
            max_text_chars: 4096,
            max_text_bytes: 16 << 10,
        }
    }
}

impl Section for InputSettings {
    const NAME: &'static str = "input";

    fn check(&self) -> Result<(), InvalidSetting> {
        // With sides up to 65,535 and pixels of at most 8 bytes, no size computed from these settings overflows.
        let Self { max_image_bytes, max_pixels, max_side, max_decoded_bytes, .. } = *self;
        require(max_image_bytes >= 64, "max_image_bytes", max_image_bytes, "64 or more")?;
        require(max_pixels >= 1, "max_pixels", max_pixels, "1 or more")?;
        require((1..=65_535).contains(&max_side), "max_side", max_side, "1 to 65535")?;
        let is_accepted = (1024..=1 << 40).contains(&max_decoded_bytes);
        require(is_accepted, "max_decoded_bytes", max_decoded_bytes, "1024 to 2^40")?;
        require(self.max_text_chars >= 1, "max_text_chars", self.max_text_chars, "1 or more")?;
        require(self.max_text_bytes >= 1, "max_text_bytes", self.max_text_bytes, "1 or more")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_pass_their_own_check() {
        assert_eq!(InputSettings::default().check(), Ok(()));
    }

    #[test]
    fn a_wrong_setting_is_named_with_its_value() {
        let settings = InputSettings { max_side: 70_000, ..InputSettings::default() };
        let error = settings.check().unwrap_err();
        assert_eq!(error.to_string(), "max_side = 70000 is not accepted: it must be 1 to 65535");
    }
}
