//! What the model was trained to see: input size, filter and normalisation, from `preprocessor_config.json` or the
//! `image_processor` block of the newer `processor_config.json`. Source: transformers `BlipImageProcessor` (5.23).
//!
//! `null` switches a step off (`do_rescale`, ...), as any false value does there. In place of any other `null` stands the
//! class default, as in transformers 4; transformers 5 refuses to run such a processor.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::config::VisionConfig;
use super::error::LoadError;
use super::load::File;
use crate::task::{Preprocessing, Resample};

/// Normalisation of the input: `(value * rescale_factor - mean) / std` per channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocessor {
    /// Size of the tower's input, and how pictures come to it.
    pub preprocessing: Preprocessing,
    /// Multiplies 8-bit values.
    pub rescale_factor: f32,
    /// Per channel, red first.
    pub mean: [f32; 3],
    /// Per channel, red first.
    pub std: [f32; 3],
}

/// `OPENAI_CLIP_MEAN` and `OPENAI_CLIP_STD` of transformers' `image_utils`.
const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
/// The class's `size` where a file gives none.
const DEFAULT_SIDE: u32 = 384;
/// The block of the newer file.
const BLOCK: &str = "image_processor";

const SIZE: &str = "a number, [height, width] or {\"height\": ..., \"width\": ...}; nothing that keeps the aspect ratio";
const BOOLEAN: &str = "true or false";

/// The file that decides where a checkpoint has both: `newer` (`processor_config.json`) if it has an `image_processor`
/// block, else `older` (`preprocessor_config.json`), as `ProcessorMixin.from_pretrained` of transformers has it.
#[must_use]
pub fn deciding_file(older: Option<PathBuf>, newer: Option<PathBuf>) -> Option<File> {
    let (Some(older), Some(newer)) = (&older, &newer) else {
        return older.or(newer).map(File::OnDisk);
    };
    let newer = File::OnDisk(newer.clone());
    let decides = match super::json::read_json::<Map<String, Value>>(&newer) {
        Ok(document) => document.get(BLOCK).is_some_and(Value::is_object),
        // Whoever reads it next says what is wrong with it.
        Err(_) => true,
    };
    Some(if decides { newer } else { File::OnDisk(older.clone()) })
}

impl Preprocessor {
    /// Reads the file that the checkpoint has, or takes the class defaults where it has none.
    /// `file` is a `preprocessor_config.json` or a `processor_config.json`.
    ///
    /// # Errors
    /// When the file is not valid, or its size is not the vision tower's.
    pub fn read(file: Option<&File>, vision: &VisionConfig) -> Result<Self, LoadError> {
        let Some(given) = file else {
            let side = vision.image_size as u32;
            let fields = Map::from_iter([("size".to_owned(), Value::from(side))]);
            let path = Path::new("preprocessor_config.json");
            return Self::checked(&Fields { fields: &fields, path }, vision);
        };
        let document: Map<String, Value> = super::json::read_json(given)?;
        let newer = given.path().file_name().is_some_and(|name| name == "processor_config.json");
        let block = document.get(BLOCK).and_then(Value::as_object).filter(|_| newer);
        let fields = block.unwrap_or(&document);
        Self::checked(&Fields { fields, path: given.path() }, vision)
    }

    fn checked(fields: &Fields<'_>, vision: &VisionConfig) -> Result<Self, LoadError> {
        if !fields.boolean("do_resize")?.unwrap_or(true) {
            return Err(fields.refuse("do_resize", "true"));
        }
        if fields.boolean("do_center_crop")?.unwrap_or(false) {
            return Err(fields.refuse("do_center_crop", "false: cropping is not built"));
        }
        let (height, width) = fields.size()?;
        let side = vision.image_size as u32;
        if (height, width) != (side, side) {
            return Err(fields.refuse(
                "size",
                "vision_config.image_size of config.json, both ways: another size needs \
                 interpolated position embeddings, which are not built",
            ));
        }
        let rescale = fields.boolean("do_rescale")?.unwrap_or(true);
        let normalise = fields.boolean("do_normalize")?.unwrap_or(true);
        let rescale_factor = fields.number("rescale_factor")?.unwrap_or(1.0 / 255.0);
        let mean = fields.channels("image_mean")?.unwrap_or(CLIP_MEAN);
        let std = fields.channels("image_std")?.unwrap_or(CLIP_STD);
        if std.iter().any(|&std| std <= 0.0) {
            return Err(fields.refuse("image_std", "a positive number, or three of them"));
        }
        let (mean, std) = if normalise { (mean, std) } else { ([0.0; 3], [1.0; 3]) };
        Ok(Self {
            preprocessing: Preprocessing { width, height, resample: fields.resample()? },
            rescale_factor: if rescale { rescale_factor } else { 1.0 },
            mean,
            std,
        })
    }
}

/// The fields of a processor. Those that BLIP ignores (`do_pad`, `size_divisor`, ...) are not read.
struct Fields<'a> {
    fields: &'a Map<String, Value>,
    path: &'a Path,
}

impl Fields<'_> {
    /// A field's value, where it has one.
    fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    fn refuse(&self, field: &'static str, accepted: &'static str) -> LoadError {
        let value = self.fields.get(field).map_or_else(|| "missing".to_owned(), Value::to_string);
        LoadError::Unsupported { path: self.path.to_owned(), field, value, accepted }
    }

    /// The field as `read` takes it; `None` where the file does not give it.
    fn optional<T>(
        &self,
        field: &'static str,
        accepted: &'static str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        let read = |value| read(value).ok_or_else(|| self.refuse(field, accepted));
        self.get(field).map(read).transpose()
    }

    /// A switch; `None` where the file does not name it.
    fn boolean(&self, field: &'static str) -> Result<Option<bool>, LoadError> {
        match self.fields.get(field) {
            Some(Value::Null) => Ok(Some(false)),
            _ => self.optional(field, BOOLEAN, Value::as_bool),
        }
    }

    fn number(&self, field: &'static str) -> Result<Option<f32>, LoadError> {
        self.optional(field, "a number", finite)
    }

    /// One number for all channels, or one for each.
    fn channels(&self, field: &'static str) -> Result<Option<[f32; 3]>, LoadError> {
        self.optional(field, "a number, or three of them", |value| match value.as_array() {
            Some(list) => {
                let numbers: Option<Vec<f32>> = list.iter().map(finite).collect();
                numbers?.try_into().ok()
            }
            None => finite(value).map(|number| [number; 3]),
        })
    }

    fn resample(&self) -> Result<Resample, LoadError> {
        let accepted =
            "0 (nearest), 1 (lanczos), 2 (bilinear), 3 (bicubic), 4 (box) or 5 (hamming)";
        let number = |value: &Value| value.as_u64().and_then(Resample::from_number);
        Ok(self.optional("resample", accepted, number)?.unwrap_or(Resample::Bicubic))
    }

    /// Height and width (`get_size_dict`).
    fn size(&self) -> Result<(u32, u32), LoadError> {
        let side = |value: &Value| value.as_u64().and_then(|side| u32::try_from(side).ok());
        let size = self.optional("size", SIZE, |value| match value {
            Value::Array(list) => match list.as_slice() {
                [height, width] => Some((side(height)?, side(width)?)),
                _ => None,
            },
            Value::Object(sides) => {
                let only_sides = sides.iter().all(|(name, value)| {
                    value.is_null() || ["height", "width"].contains(&name.as_str())
                });
                let sides = (side(sides.get("height")?)?, side(sides.get("width")?)?);
                only_sides.then_some(sides)
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                side(value).map(|side| (side, side))
            }
        })?;
        Ok(size.unwrap_or((DEFAULT_SIDE, DEFAULT_SIDE)))
    }
}

fn finite(value: &Value) -> Option<f32> {
    value.as_f64().map(|number| number as f32).filter(|number| number.is_finite())
}
