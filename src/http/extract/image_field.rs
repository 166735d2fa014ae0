//! The field type for images: a string (base64, data URI, URL or id) or the bytes of a file. The content is examined in
//! `image_args`, not here.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::fields::{Field, string_schema};
use crate::http::error::ApiError;
use crate::input::{self, InputSettings};

/// An image as the client sent it. Clones share the bytes.
#[derive(Clone)]
pub(crate) enum ImageField {
    /// A string: data URI, base64, URL or id.
    Value(Arc<String>),
    /// The bytes of an image file, from a multipart part or a raw body.
    Bytes(Bytes),
}

impl ImageField {
    /// Creates an image from a body that is the file itself.
    ///
    /// # Errors
    /// `payload_too_large`, naming `field`.
    pub(crate) fn raw(
        body: Bytes,
        field: &str,
        settings: &InputSettings,
    ) -> Result<Self, ApiError> {
        if body.len() > settings.max_image_bytes {
            return Err(super::image_file_too_large(field, settings.max_image_bytes));
        }
        Ok(Self::Bytes(body))
    }

    /// Returns the address and length of the bytes in memory. All clones return the same address and length, so a
    /// caller can recognise an image that many inputs share, and process it only once.
    pub(crate) fn address(&self) -> (usize, usize) {
        match self {
            Self::Value(text) => (text.as_ptr().addr(), text.len()),
            Self::Bytes(bytes) => (bytes.as_ptr().addr(), bytes.len()),
        }
    }
}

impl fmt::Debug for ImageField {
    /// Shows only the kind and size: image bytes must not get into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(text) => write!(f, "ImageField::Value({} characters)", text.len()),
            Self::Bytes(bytes) => write!(f, "ImageField::Bytes({} bytes)", bytes.len()),
        }
    }
}

/// The whole message of serde's error if there is no memory for an image value. Serde's errors hold only text, so `json`
/// recognises the error by it. No client can cause an error with this text: serde puts what a client sent into
/// sentences.
pub(super) const OUT_OF_MEMORY: &str = "there is no memory for this image value";

/// Copies a text that may be a whole image.
///
/// # Errors
/// [`OUT_OF_MEMORY`].
pub(crate) fn copy_text<E: Error>(text: &str) -> Result<String, E> {
    let mut copy = Vec::new();
    input::reserve(&mut copy, text.len()).map_err(|_| E::custom(OUT_OF_MEMORY))?;
    copy.extend_from_slice(text.as_bytes());
    // The bytes come from a `str`, so they are valid UTF-8.
    Ok(String::from_utf8(copy).unwrap_or_default())
}

struct ImageVisitor;

impl Visitor<'_> for ImageVisitor {
    type Value = ImageField;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an image value: a data URI, base64, an https:// URL, or \"sha256:\" and 64 hexadecimal digits")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<ImageField, E> {
        self.visit_string(copy_text(text)?)
    }

    fn visit_string<E: Error>(self, text: String) -> Result<ImageField, E> {
        Ok(ImageField::Value(Arc::new(text)))
    }

    fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<ImageField, E> {
        Ok(ImageField::Bytes(bytes.into()))
    }
}

impl<'de> Deserialize<'de> for ImageField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_string(ImageVisitor)
    }
}

/// The JSON Schema pattern of an image value, which is one of:
///
/// - base64 in either alphabet, with or without padding, alone or in a data URI; the unused bits of the last character
///   must be 0, and ASCII white space may occur anywhere in the base64 text;
/// - an id, with optional ASCII white space around it;
/// - an `http://` or `https://` URL, with optional ASCII white space before it.
const IMAGE_VALUE: &str = concat!(
    r"^[ \t\n\f\r]*(?:[Dd][Aa][Tt][Aa]:[^,]*;[ \t\n\f\r]*[Bb][Aa][Ss][Ee]64[ \t\n\f\r]*,[ \t\n\f\r]*)?",
    r"(?:(?:[A-Za-z0-9+/_-][ \t\n\f\r]*){4})*",
    r"(?:(?:[A-Za-z0-9+/_-][ \t\n\f\r]*){4}",
    r"|(?:[A-Za-z0-9+/_-][ \t\n\f\r]*){2}[AEIMQUYcgkosw048][ \t\n\f\r]*(?:=[ \t\n\f\r]*)?",
    r"|[A-Za-z0-9+/_-][ \t\n\f\r]*[AQgw][ \t\n\f\r]*(?:=[ \t\n\f\r]*=[ \t\n\f\r]*)?)$",
    r"|^[ \t\n\f\r]*[Ss][Hh][Aa]256:[0-9A-Fa-f]{64}[ \t\n\f\r]*$",
    r"|^[ \t\n\f\r]*[Hh][Tt][Tt][Pp][Ss]?://",
);

impl PartialSchema for ImageField {
    fn schema() -> RefOr<Schema> {
        string_schema().min_length(Some(1)).pattern(Some(IMAGE_VALUE)).into()
    }
}

impl ToSchema for ImageField {}

impl Field for ImageField {}
