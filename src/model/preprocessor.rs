//! The image preprocessing that a model was trained with: input size, resampling filter and normalisation. It is read
//! from `preprocessor_config.json`, or from the `image_processor` block of the newer `processor_config.json`. Source:
//! transformers `BlipImageProcessor` (5.23).
//!
//! If a field that enables a step (`do_rescale`, ...) is `null`, the step is disabled, because transformers treats
//! `null` as false. Any other field that is `null` gets the default of transformers' class, as in transformers 4;
//! transformers 5 fails to run such an image processor.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::config::VisionConfig;
use super::error::LoadError;
use super::load::File;
use crate::document::{self, DocumentError, ObjectFields};
use crate::task::{Preprocessing, Resample};

/// Preprocessing of an input image. Normalisation is `(value * rescale_factor - mean) / std` per channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocessor {
    /// Input size of the vision tower, and the filter that resizes images to it.
    pub preprocessing: Preprocessing,
    /// Factor by which 8-bit values are multiplied, usually 1/255.
    pub rescale_factor: f32,
    /// Mean of each channel, red first, subtracted after rescaling.
    pub mean: [f32; 3],
    /// Standard deviation of each channel, red first; the last step divides by it.
    pub std: [f32; 3],
}

/// Default mean and standard deviation: `OPENAI_CLIP_MEAN` and `OPENAI_CLIP_STD` of transformers' `image_utils`.
const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
/// Default of `size` in transformers' BLIP image processor, used when the file does not set it.
const DEFAULT_SIDE: u32 = 384;
const OLDER: &str = "preprocessor_config.json";
const NEWER: &str = "processor_config.json";
/// Field of `processor_config.json` whose object has the fields of a `preprocessor_config.json`.
const BLOCK: &str = "image_processor";
const ACCEPTED_BLOCK: &str = "an object with the fields of a preprocessor_config.json, \
                              or a preprocessor_config.json next to this file";
/// Field that names the class of the image processor. Before transformers 4.27, it was called `feature_extractor_type`.
const CLASS: &str = "image_processor_type";
const OLDER_CLASS: &str = "feature_extractor_type";
/// All names that BLIP's image processor class has had. The fields have the same meaning in all of them.
const CLASSES: [&str; 4] = [
    "BlipImageProcessor",
    "BlipImageProcessorFast",
    "BlipImageProcessorPil",
    "BlipFeatureExtractor",
];

const SIZE: &str = "a number, [height, width] or {\"height\": ..., \"width\": ...}; \
                    keeping the aspect ratio is not supported";
const SQUARE: &str =
    "true if size is a number (false makes it the shorter side, which is not supported)";

/// Returns the file to read. If a checkpoint has both files, that is `newer` (`processor_config.json`) when it contains
/// an `image_processor` block, and `older` (`preprocessor_config.json`) otherwise, as in transformers'
/// `ProcessorMixin.from_pretrained`.
#[must_use]
pub fn deciding_file(older: Option<PathBuf>, newer: Option<PathBuf>) -> Option<File> {
    let (Some(older), Some(newer)) = (&older, &newer) else {
        return older.or(newer).map(File::OnDisk);
    };
    let newer = File::OnDisk(newer.clone());
    let decides = match read_object(&newer) {
        Ok(document) => document.get(BLOCK).is_some_and(Value::is_object),
        // Choose `newer` here, so that `Preprocessor::read` reports what is wrong with it.
        Err(_) => true,
    };
    Some(if decides { newer } else { File::OnDisk(older.clone()) })
}

impl Preprocessor {
    /// Reads `file`, which is a `preprocessor_config.json` or a `processor_config.json`. If the checkpoint has no such
    /// file, returns the defaults of transformers' class, with the input size of the vision tower. `image_size` replaces
    /// both the size in the file and the vision tower's input size.
    ///
    /// # Errors
    /// When the file is not valid; without `image_size`, also when its `size` differs from the vision tower's input size.
    pub fn read(
        file: Option<&File>,
        vision: &VisionConfig,
        image_size: Option<u32>,
    ) -> Result<Self, LoadError> {
        let Some(given) = file else {
            let side = vision.image_size as u32;
            let fields = Map::from_iter([("size".to_owned(), Value::from(side))]);
            let fields = ObjectFields::new(Path::new(OLDER), &fields);
            return Self::checked(&fields, vision, image_size);
        };
        let object = read_object(given)?;
        let fields = ObjectFields::new(given.path(), &object);
        if given.path().file_name().is_none_or(|name| name != NEWER) {
            return Self::checked(&fields, vision, image_size);
        }
        let Some(block) = fields.block(BLOCK)? else {
            return Err(fields.refuse(BLOCK, ACCEPTED_BLOCK).into());
        };
        Self::checked(&block, vision, image_size)
    }

    fn checked(
        fields: &ObjectFields<'_>,
        vision: &VisionConfig,
        image_size: Option<u32>,
    ) -> Result<Self, LoadError> {
        check_class(fields)?;
        if !switch(fields, "do_resize")?.unwrap_or(true) {
            return Err(fields.refuse("do_resize", "true").into());
        }
        if switch(fields, "do_center_crop")?.unwrap_or(false) {
            return Err(fields.refuse("do_center_crop", "false; cropping is not supported").into());
        }
        let (height, width) = image_size.map_or_else(|| size(fields), |side| Ok((side, side)))?;
        let side = vision.image_size as u32;
        if image_size.is_none() && (height, width) != (side, side) {
            let accepted = format!(
                "{side} for both sides, as vision_config.image_size of config.json; for another size, set \
                 image_size of the model (SRC?image_size=N)"
            );
            return Err(fields.refuse("size", accepted).into());
        }
        let rescale = switch(fields, "do_rescale")?.unwrap_or(true);
        let normalise = switch(fields, "do_normalize")?.unwrap_or(true);
        let rescale_factor =
            fields.optional("rescale_factor", "a number", finite)?.unwrap_or(1.0 / 255.0);
        let mean = channels(fields, "image_mean")?.unwrap_or(CLIP_MEAN);
        let std = channels(fields, "image_std")?.unwrap_or(CLIP_STD);
        if std.iter().any(|&std| std <= 0.0) {
            return Err(fields.refuse("image_std", "a positive number, or three of them").into());
        }
        let (mean, std) = if normalise { (mean, std) } else { ([0.0; 3], [1.0; 3]) };
        Ok(Self {
            preprocessing: Preprocessing { width, height, resample: resample(fields)? },
            rescale_factor: if rescale { rescale_factor } else { 1.0 },
            mean,
            std,
        })
    }
}

/// Rejects a file that names the class of another image processor. transformers runs the class that the file names;
/// only BLIP's class is implemented here.
fn check_class(fields: &ObjectFields<'_>) -> Result<(), DocumentError> {
    // `AutoImageProcessor` reads the older field only if the newer one is missing.
    let newer = fields.text(CLASS)?.map(|class| (CLASS, class));
    let older = || Ok(fields.text(OLDER_CLASS)?.map(|class| (OLDER_CLASS, class)));
    let Some((field, class)) = newer.map_or_else(older, |class| Ok(Some(class)))? else {
        return Ok(());
    };
    if CLASSES.contains(&class) { Ok(()) } else { Err(fields.refuse(field, "BlipImageProcessor")) }
}

/// Returns a boolean field: `None` if the file does not have the field, false if it is `null`.
fn switch(fields: &ObjectFields<'_>, field: &'static str) -> Result<Option<bool>, DocumentError> {
    match fields.raw(field) {
        Some(Value::Null) => Ok(Some(false)),
        _ => fields.boolean(field),
    }
}

/// Returns one number per channel. The file may have a single number, for all channels, or three numbers.
fn channels(
    fields: &ObjectFields<'_>,
    field: &'static str,
) -> Result<Option<[f32; 3]>, DocumentError> {
    fields.optional(field, "a number, or three of them", |value| match value.as_array() {
        Some(list) => {
            let numbers: Option<Vec<f32>> = list.iter().map(finite).collect();
            numbers?.try_into().ok()
        }
        None => finite(value).map(|number| [number; 3]),
    })
}

fn resample(fields: &ObjectFields<'_>) -> Result<Resample, DocumentError> {
    let accepted = "0 (nearest), 1 (lanczos), 2 (bilinear), 3 (bicubic), 4 (box) or 5 (hamming)";
    let number = |value: &Value| value.as_u64().and_then(Resample::from_number);
    Ok(fields.optional("resample", accepted, number)?.unwrap_or(Resample::Bicubic))
}

/// Returns height and width in pixels. Source: transformers `get_size_dict`.
fn size(fields: &ObjectFields<'_>) -> Result<(u32, u32), DocumentError> {
    let side = |value: &Value| value.as_u64().and_then(|side| u32::try_from(side).ok());
    let size = fields.optional("size", SIZE, |value| match value {
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
    // A single number stands for both sides, unless `default_to_square` is false (it is true by default). If the field
    // is false, the number is the shorter side, which is not supported.
    let number = fields.get("size").is_some_and(Value::is_number);
    if number && !switch(fields, "default_to_square")?.unwrap_or(true) {
        return Err(fields.refuse("default_to_square", SQUARE));
    }
    Ok(size.unwrap_or((DEFAULT_SIDE, DEFAULT_SIDE)))
}

fn finite(value: &Value) -> Option<f32> {
    value.as_f64().map(|number| number as f32).filter(|number| number.is_finite())
}

fn read_object(file: &File) -> Result<Map<String, Value>, LoadError> {
    Ok(document::parse_object(file.path(), &file.read()?)?)
}
