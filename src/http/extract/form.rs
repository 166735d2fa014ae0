//! Deserializes the fields of a multipart body or a query string into the same request types as JSON.
//!
//! A [`Form`] is a serde deserializer. The type of each field decides how its text is read, for example as a number, or
//! as a boolean in more spellings than JSON has. A list is read from repeated fields. Forms therefore need no
//! definitions of their own for types, ranges, unknown fields and error paths. `multipart` and `raw` fill a form;
//! `json::parse_form` reads it.
//!
//! An empty text means that the field is absent, because HTML forms and Swagger UI also send inputs that were left
//! empty. The field's name must still be known. A file of no bytes is a value: it keeps its place among the images, and
//! decoding it fails. `multipart` turns a file input without a selection into an empty text.

use serde::de::value::{Error, SeqDeserializer};
use serde::de::{
    self, DeserializeSeed, Deserializer, IgnoredAny, IntoDeserializer, MapAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::scalar::{FormValue, Scalar};

impl FormValue {
    fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::File(_) => false,
        }
    }
}

/// The fields of a form in the order of their first appearance, each with all of its values.
#[derive(Debug, Default)]
pub(crate) struct Form {
    fields: Vec<(String, Vec<FormValue>)>,
    /// In a batch call, the `image` values, each of which is one input; `None` in a single call.
    inputs: Option<Vec<FormValue>>,
}

impl Form {
    /// Creates the form of a batch call, in which each `image` becomes one input.
    pub(crate) fn of_batch() -> Self {
        Self { fields: Vec::new(), inputs: Some(Vec::new()) }
    }

    /// Returns the path that names the next value of a field in errors. It is the path that the value would have in
    /// JSON: `texts[1]` for an item of a list (`is_list`), `inputs[1].image` for an image of a batch.
    pub(crate) fn next_path(&self, name: &str, is_list: bool) -> String {
        match (&self.inputs, name) {
            (Some(inputs), "image") => format!("inputs[{}].image", inputs.len()),
            (_, list) if is_list => {
                let known = self.fields.iter().find(|(known, _)| known == name);
                format!("{list}[{}]", known.map_or(0, |(_, values)| values.len()))
            }
            (_, other) => other.to_owned(),
        }
    }

    /// Adds a value to a field. An empty text records only the name of the field. In a batch, an `image` that is an empty
    /// text adds no input.
    pub(crate) fn push(&mut self, name: &str, value: FormValue) {
        let value = Some(value).filter(|value| !value.is_empty());
        if let Some(inputs) = &mut self.inputs
            && name == "image"
        {
            inputs.extend(value);
            return;
        }
        match self.fields.iter_mut().find(|(known, _)| known == name) {
            Some((_, values)) => values.extend(value),
            None => self.fields.push((name.to_owned(), value.into_iter().collect())),
        }
    }
}

impl IntoDeserializer<'_, Error> for Form {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Form {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_struct("", &[], visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(FormMap {
            given: self.fields.into_iter(),
            inputs: self.inputs,
            known,
            value: None,
        })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// The fields of a form as a serde map. The images of a batch come last, as the list `inputs`.
struct FormMap {
    given: std::vec::IntoIter<(String, Vec<FormValue>)>,
    inputs: Option<Vec<FormValue>>,
    known: &'static [&'static str],
    value: Option<FieldValue>,
}

enum FieldValue {
    Given(FieldValues),
    Inputs(Vec<FormValue>),
    InputsAsText,
}

impl<'de> MapAccess<'de> for FormMap {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        if let Some((name, values)) = self.given.next() {
            if self.inputs.is_some() && name == "inputs" {
                // Do not reject the field yet: `serde_path_to_error` has not recorded its name. The field is rejected
                // when its value is read.
                self.value = Some(FieldValue::InputsAsText);
                return seed.deserialize(name.into_deserializer()).map(Some);
            }
            let plural = self
                .known
                .iter()
                .copied()
                .find(|known| known.strip_suffix('s').is_some_and(|singular| singular == name));
            let key = seed.deserialize(name.as_str().into_deserializer())?;
            let has_images = self.known.contains(&"images");
            self.value = Some(FieldValue::Given(FieldValues { name, values, plural, has_images }));
            return Ok(Some(key));
        }
        let Some(inputs) = self.inputs.take() else { return Ok(None) };
        self.value = Some(FieldValue::Inputs(inputs));
        seed.deserialize("inputs".into_deserializer()).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        match self.value.take() {
            Some(FieldValue::Given(values)) => seed.deserialize(values),
            Some(FieldValue::Inputs(images)) => {
                let inputs = images.into_iter().map(|image| {
                    let mut form = Form::default();
                    form.push("image", image);
                    form
                });
                seed.deserialize(SeqDeserializer::new(inputs))
            }
            Some(FieldValue::InputsAsText) => seed.deserialize(InputsAsText),
            None => Err(de::Error::custom("value requested before its field name")),
        }
    }
}

/// A deserializer that rejects the field `inputs` of a form, because a form cannot express a list of inputs.
struct InputsAsText;

impl<'de> Deserializer<'de> for InputsAsText {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(de::Error::custom(
            "send a list of inputs as application/json; in multipart, each image part is one input",
        ))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// What to do with several images on a path that takes one.
pub(super) const SEVERAL_IMAGES: &str =
    "only one is allowed here; to send several images, use this path followed by /batch";

/// True if this is a text that is a list in JSON. In a form, a list field is repeated. Such a text would be taken for one
/// value, for example for the only label, whose probability is always 1.
fn is_json_list(value: &FormValue) -> bool {
    match value {
        FormValue::Text(text) => {
            let is_list = || serde_json::from_str::<Vec<IgnoredAny>>(text).is_ok();
            text.trim_start().starts_with('[') && is_list()
        }
        FormValue::File(_) => false,
    }
}

/// All values of one field. The field's type decides whether they are read as a list or must be exactly one value.
struct FieldValues {
    name: String,
    values: Vec<FormValue>,
    /// The list field for several values of this field.
    plural: Option<&'static str>,
    /// True if the request has the list field `images`.
    has_images: bool,
}

impl FieldValues {
    fn single(mut self) -> Result<Scalar, Error> {
        let count = self.values.len();
        match (self.values.pop(), count) {
            (Some(value), 1) => Ok(Scalar(value)),
            (_, _) => Err(de::Error::custom(match self.plural {
                Some(plural) => format!("given {count} times; for several values repeat {plural}"),
                None if self.name == "image" && !self.has_images => {
                    format!("given {count} times; {SEVERAL_IMAGES}")
                }
                None => format!("given {count} times; only one value is allowed"),
            })),
        }
    }
}

macro_rules! forward_to_single {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.single()?.$method(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for FieldValues {
    type Error = Error;

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.values.iter().any(is_json_list) {
            return Err(de::Error::custom(format_args!(
                "a JSON list is not read here; repeat {0}, once for each value, or send the whole request as \
                 application/json",
                self.name
            )));
        }
        visitor.visit_seq(SeqDeserializer::new(self.values.into_iter().map(Scalar)))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.values.is_empty() {
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.single()?.deserialize_enum(name, variants, visitor)
    }

    forward_to_single! { deserialize_any deserialize_bool deserialize_u64 deserialize_f64 deserialize_str deserialize_string }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u128 f32 char bytes byte_buf unit unit_struct
        newtype_struct tuple tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::error::ApiError;
    use crate::http::extract::json::parse_form;
    use crate::http::routes::caption::{CaptionBatchRequest, CaptionRequest};
    use crate::http::routes::similarity::SimilarityRequest;
    use bytes::Bytes;

    fn form_of(form: Form, fields: &[(&str, &str)]) -> Form {
        let each = fields.iter();
        each.fold(form, |mut form, (name, value)| {
            form.push(name, FormValue::Text((*value).to_owned()));
            form
        })
    }

    fn caption(fields: &[(&str, &str)]) -> Result<CaptionRequest, ApiError> {
        parse_form(form_of(Form::default(), fields))
    }

    fn fault(fields: &[(&str, &str)]) -> (String, String) {
        let error = caption(fields).unwrap_err();
        (error.errors[0].field.clone(), error.errors[0].detail.clone())
    }

    #[test]
    fn numbers_and_booleans_are_read_as_in_json() {
        let request = caption(&[
            ("num_beams", "4"),
            ("temperature", "0.5"),
            ("stream", "true"),
            ("seed", "1e3"),
        ]);
        let request = request.unwrap();
        assert_eq!(request.num_beams.unwrap().0, 4);
        assert!((request.temperature.unwrap().0 - 0.5).abs() < f32::EPSILON);
        assert_eq!(request.stream, Some(true));
        assert_eq!(request.seed.unwrap().0, 1000);
        for good in [" 4", "4\r\n", "\t4 ", "4.0", "\u{a0}4"] {
            assert_eq!(
                caption(&[("num_beams", good)]).unwrap().num_beams.unwrap().0,
                4,
                "{good:?}"
            );
        }
        for wrong in ["04", "+4", "four", " ", "0x4", "4 4", "4,"] {
            let (field, detail) = fault(&[("num_beams", wrong)]);
            assert_eq!(field, "num_beams", "{wrong}");
            assert!(detail.ends_with("expected an integer from 1 to 8"), "{detail}");
        }
        for (flag, words) in [
            (true, ["true", "True", "TRUE", "1", "on", "ON", " true ", "1\n"]),
            (false, ["false", "False", "FALSE", "0", "off", "Off", " false", "\t0"]),
        ] {
            for word in words {
                assert_eq!(caption(&[("stream", word)]).unwrap().stream, Some(flag), "{word:?}");
            }
        }
        for wrong in ["yes", "no", "t", "2", "-1", "1.0", " ", "true true"] {
            let (field, detail) = fault(&[("stream", wrong)]);
            assert_eq!(field, "stream", "{wrong}");
            assert!(detail.ends_with("expected true or false"), "{detail}");
        }
    }

    #[test]
    fn either_kind_of_early_stopping_is_read() {
        for value in ["true", "False", "1", "off", "never"] {
            assert!(caption(&[("early_stopping", value)]).is_ok(), "{value}");
        }
        assert_eq!(fault(&[("early_stopping", "maybe")]).0, "early_stopping");
    }

    #[test]
    fn lists_repeat_and_commas_do_not_split_them() {
        let fields = [("texts", "a, b"), ("texts", "c"), ("scores", "match"), ("scores", "cosine")];
        let request: SimilarityRequest = parse_form(form_of(Form::default(), &fields)).unwrap();
        let texts: Vec<String> =
            request.texts.unwrap().iter().map(|text| text.0.to_string()).collect();
        assert_eq!(texts, ["a, b", "c"]);
        assert_eq!(request.scores.unwrap().len(), 2);
    }

    #[test]
    fn a_repeated_single_field_names_its_plural_where_there_is_one() {
        let twice = form_of(Form::default(), &[("text", "a"), ("text", "b")]);
        let error = parse_form::<SimilarityRequest>(twice).unwrap_err();
        assert_eq!(error.errors[0].field, "text");
        assert_eq!(error.errors[0].detail, "given 2 times; for several values repeat texts");
        let (field, detail) = fault(&[("prompt", "a"), ("prompt", "b")]);
        assert_eq!((&*field, &*detail), ("prompt", "given 2 times; only one value is allowed"));
    }

    #[test]
    fn a_json_list_is_not_taken_for_one_value_of_a_list() {
        for list in ["[\"a\", \"b\"]", " [1, 2]\n", "[]"] {
            let given = form_of(Form::default(), &[("texts", "a"), ("texts", list)]);
            let error = parse_form::<SimilarityRequest>(given).unwrap_err();
            assert_eq!(error.errors[0].field, "texts");
            let detail = &error.errors[0].detail;
            assert!(detail.contains("repeat texts, once for each value"), "{detail}");
        }
        for text in ["[a] cat", "[", "a [1]", "{}"] {
            let given = form_of(Form::default(), &[("texts", text)]);
            assert!(parse_form::<SimilarityRequest>(given).is_ok(), "{text}");
        }
        assert!(caption(&[("prompt", "[1]")]).is_ok());
    }

    #[test]
    fn a_repeated_image_leads_to_the_field_or_the_path_for_several() {
        let twice = [("image", "MQ=="), ("image", "Mg==")];
        let (_, detail) = fault(&twice);
        assert!(detail.contains("this path followed by /batch"), "{detail}");
        let error = parse_form::<SimilarityRequest>(form_of(Form::default(), &twice)).unwrap_err();
        assert!(error.errors[0].detail.ends_with("repeat images"), "{}", error.errors[0].detail);
    }

    #[test]
    fn an_item_of_a_list_is_named_by_its_place() {
        let fields = [("texts", "a"), ("texts", "b\u{0}")];
        let error = parse_form::<SimilarityRequest>(form_of(Form::default(), &fields)).unwrap_err();
        assert_eq!(error.errors[0].field, "texts[1]");
    }

    #[test]
    fn an_empty_value_is_an_absent_field_but_its_name_must_be_known() {
        let request = caption(&[("num_beams", ""), ("prompt", ""), ("stream", ""), ("model", "")]);
        let request = request.unwrap();
        assert!(request.num_beams.is_none() && request.prompt.is_none());
        assert!(request.stream.is_none() && request.model.is_none());
        assert_eq!(fault(&[("unheard_of", "")]).0, "unheard_of");
        // An empty value does not count, so the field is not repeated here.
        assert_eq!(
            caption(&[("num_beams", ""), ("num_beams", "3")]).unwrap().num_beams.unwrap().0,
            3
        );
        let fields = [("texts", ""), ("texts", "a"), ("texts", ""), ("scores", "")];
        let request: SimilarityRequest = parse_form(form_of(Form::default(), &fields)).unwrap();
        assert_eq!(request.texts.unwrap().len(), 1);
        assert!(request.scores.is_none());
        let images = form_of(Form::of_batch(), &[("image", ""), ("image", "MQ=="), ("image", "")]);
        assert_eq!(parse_form::<CaptionBatchRequest>(images).unwrap().inputs.len(), 1);
    }

    #[test]
    fn a_file_of_no_bytes_keeps_its_place() {
        let mut form = Form::of_batch();
        for bytes in [&b"1"[..], b"", b"2"] {
            form.push("image", FormValue::File(Bytes::copy_from_slice(bytes)));
        }
        assert_eq!(parse_form::<CaptionBatchRequest>(form).unwrap().inputs.len(), 3);
    }

    #[test]
    fn unknown_fields_are_refused_with_those_that_are_known() {
        let (field, detail) = fault(&[("beams", "2")]);
        assert_eq!(field, "beams");
        assert!(detail.contains("num_beams"), "{detail}");
    }

    #[test]
    fn each_image_of_a_batch_is_one_input() {
        let mut form = form_of(Form::of_batch(), &[("prompt", "a")]);
        form.push("image", FormValue::File(Bytes::from_static(b"1")));
        form.push("image", FormValue::Text("MQ==".to_owned()));
        let request: CaptionBatchRequest = parse_form(form).unwrap();
        assert_eq!(request.inputs.len(), 2);
        assert_eq!(&*request.prompt.unwrap().0, "a");
        let error =
            parse_form::<CaptionBatchRequest>(form_of(Form::of_batch(), &[("inputs", "[]")]));
        let error = error.unwrap_err();
        assert_eq!(error.errors[0].field, "inputs");
        assert!(error.detail.contains("application/json"));
    }

    #[test]
    fn a_file_is_an_image_and_nothing_else() {
        let mut form = Form::default();
        form.push("prompt", FormValue::File(Bytes::from_static(b"words")));
        let error = parse_form::<CaptionRequest>(form).unwrap_err();
        assert_eq!(error.errors[0].field, "prompt");
        assert!(error.errors[0].detail.contains("file name"), "{}", error.errors[0].detail);
    }
}
