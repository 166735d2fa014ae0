//! Limits on what clients send, and their checks.

/// In which order a picture is resized where both sides change. Samples are rounded to 8 bits in between, so the order
/// shows: in tall pictures up to one value of six differs, by some levels (docs/preprocessing.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResizeOrder {
    /// As Pillow 13: the vertical pass first for tall pictures. transformers without torchvision, or with
    /// `backend="pil"`.
    #[default]
    Pillow13,
    /// The horizontal pass always first: Pillow before 13, and the order of torchvision, which transformers 5 uses
    /// where it is installed.
    HorizontalFirst,
}

impl ResizeOrder {
    /// Every order, the default first.
    pub const ALL: [Self; 2] = [Self::Pillow13, Self::HorizontalFirst];

    /// The name in settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pillow13 => "pillow13",
            Self::HorizontalFirst => "horizontal_first",
        }
    }
}

/// Bounds of one image and one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputSettings {
    /// Most bytes of a picture file.
    pub max_image_bytes: usize,
    /// Most pixels of a picture.
    pub max_pixels: u64,
    /// Longest side of a picture in pixels; at most 65,535, what the formats can say.
    pub max_side: u32,
    /// Most bytes that one decoded picture may take.
    pub max_decoded_bytes: u64,
    /// What lies behind transparent pixels, RGB.
    pub alpha_background: [u8; 3],
    /// Which pass of resizing comes first.
    pub resize_order: ResizeOrder,
    /// Most characters of a text.
    pub max_text_chars: usize,
    /// Most bytes of a text in UTF-8.
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

/// A setting whose value cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} = {value} is not accepted: it must be {accepted}")]
pub struct InvalidInputSetting {
    /// The field's name.
    pub name: &'static str,
    /// Its value.
    pub value: u64,
    /// What is accepted.
    pub accepted: &'static str,
}

impl InputSettings {
    /// Checks every value.
    ///
    /// # Errors
    /// The first setting that cannot work.
    pub fn check(&self) -> Result<(), InvalidInputSetting> {
        // Sides up to 65,535 and a pixel of 8 bytes stay far from overflow everywhere below.
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
