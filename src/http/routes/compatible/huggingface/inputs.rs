//! What the requests of the task API have in common: the model in the query string, and the image in `inputs`.

use std::fmt;

use axum::extract::Request as HttpRequest;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::value::StrDeserializer;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use crate::http::error::{ApiError, Code};
use crate::http::extract::fields::Text;
use crate::http::extract::image_field::ImageField;

/// Returns the value of the query parameter `model`.
pub(super) fn model_of(http: &HttpRequest) -> Option<String> {
    let query = http.uri().query().unwrap_or_default().as_bytes();
    let mut fields = form_urlencoded::parse(query);
    fields.find_map(|(name, value)| (name == "model").then(|| value.into_owned()))
}

/// True if the body is a JSON object. Otherwise it is an image: clients send images without a content type, and no image
/// format begins with a brace.
pub(super) fn is_json(body: &Bytes) -> bool {
    body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
}

/// The field `inputs` of an image task: an image value, or an object with the image and perhaps a question.
#[derive(Debug, Default)]
pub(super) struct ImageInputs {
    pub(super) image: Option<ImageField>,
    pub(super) question: Option<Text>,
}

impl ImageInputs {
    /// Returns the image.
    ///
    /// # Errors
    /// `invalid_request` if there is none.
    pub(super) fn image(self) -> Result<ImageField, ApiError> {
        let detail = "an image in base64 is needed";
        self.image.ok_or_else(|| ApiError::field(Code::InvalidRequest, "inputs", detail))
    }
}

struct InputsVisitor;

impl<'de> Visitor<'de> for InputsVisitor {
    type Value = ImageInputs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an image in base64, or an object with one")
    }

    fn visit_unit<E: Error>(self) -> Result<ImageInputs, E> {
        Ok(ImageInputs::default())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<ImageInputs, E> {
        let image = ImageField::deserialize(StrDeserializer::new(text))?;
        Ok(ImageInputs { image: Some(image), question: None })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ImageInputs, A::Error> {
        let mut inputs = ImageInputs::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "image" => inputs.image = map.next_value()?,
                "question" => inputs.question = map.next_value()?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(inputs)
    }
}

impl<'de> Deserialize<'de> for ImageInputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputsVisitor)
    }
}
