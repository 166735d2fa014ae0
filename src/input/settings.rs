//! Settings for the images and texts that clients send, mostly limits, and the checks of these settings.

/// The order of the two resize passes when both sides of a picture change. Samples are rounded to 8 bits between the
/// passes, so the order affects the result: in tall pictures up to one value in six differs, by a few levels
/// (docs/preprocessing.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResizeOrder {
    /// The order of Pillow 13: the vertical pass comes first for tall pictures. transformers uses this order without
    /// torchvision, or with `backend="pil"`.
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

/// Limits on a single image and a single text, and how an image is converted.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// A setting whose value is out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} = {value} is not accepted: it must be {accepted}")]
pub struct InvalidInputSetting {
    /// Name of the field in [`InputSettings`].
    pub name: &'static str,
    /// The value that was rejected.
    pub value: u64,
    /// Description of the accepted range, for the message.
    pub accepted: &'static str,
}

impl InputSettings {
    /// Checks that every value is in range.
    ///
    /// # Errors
    /// The first setting that is out of range.
    pub fn check(&self) -> Result<(), InvalidInputSetting> {
        // With sides up to 65,535 and pixels of at most 8 bytes, no size computed from these settings overflows.
        let checks: [(&'static str, u64, bool, &'static str); 6] = [
            (
                "max_image_bytes",
                self.max_image_bytes as u64,
                self.max_image_bytes >= 64,
                "64 or more",
            ),
            ("max_pixels", self.max_pixels, self.max_pixels >= 1, "1 or more"),
            (
                "max_side",
                u64::from(self.max_side),
                (1..=65_535).contains(&self.max_side),
                "1 to 65535",
            ),
            (
                "max_decoded_bytes",
                self.max_decoded_bytes,
                (1024..=1 << 40).contains(&self.max_decoded_bytes),
                "1024 to 2^40",
            ),
            ("max_text_chars", self.max_text_chars as u64, self.max_text_chars >= 1, "1 or more"),
            ("max_text_bytes", self.max_text_bytes as u64, self.max_text_bytes >= 1, "1 or more"),
        ];
        match checks.into_iter().find(|&(_, _, holds, _)| !holds) {
            Some((name, value, _, accepted)) => Err(InvalidInputSetting { name, value, accepted }),
            None => Ok(()),
        }
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
