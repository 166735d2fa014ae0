//! The field `images` of the Ollama API. BLIP reads one image, so the last one is used.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

use crate::http::extract::image_field::ImageField;

/// The last of a list of images; the others are dropped while the body is parsed.
#[derive(Debug, Default)]
pub(super) struct LastImage(pub(super) Option<ImageField>);

struct ImagesVisitor;

impl<'de> Visitor<'de> for ImagesVisitor {
    type Value = LastImage;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of images in base64")
    }

    fn visit_unit<E: Error>(self) -> Result<LastImage, E> {
        Ok(LastImage::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<LastImage, A::Error> {
        let mut last = LastImage::default();
        while let Some(image) = items.next_element()? {
            last = LastImage(Some(image));
        }
        Ok(last)
    }
}

impl<'de> Deserialize<'de> for LastImage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ImagesVisitor)
    }
}
