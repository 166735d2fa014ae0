//! What the model was trained to see: input size and normalisation, from `preprocessor_config.json` or the
//! `image_processor` block of the newer `processor_config.json`. Source: transformers `BlipImageProcessor`.

use std::path::Path;

use serde::Deserialize;

use super::config::VisionConfig;
use super::error::LoadError;
use super::load::File;
use crate::task::Preprocessing;

/// Normalisation of the input: `(value * rescale_factor - mean) / std` per channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocessor {
    /// Size of the tower's input.
    pub preprocessing: Preprocessing,
    /// Multiplies 8-bit values.
    pub rescale_factor: f32,
    /// Per channel, red first.
    pub mean: [f32; 3],
    /// Per channel, red first.
    pub std: [f32; 3],
}

/// The file; fields that BLIP ignores (`do_pad`, `size_divisor`, ...) are not read.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct PreprocessorFile {
    do_resize: bool,
    size: Size,
    resample: u8,
    do_rescale: bool,
    rescale_factor: f32,
    do_normalize: bool,
    image_mean: [f32; 3],
    image_std: [f32; 3],
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Sides { height: u32, width: u32 },
    Side(u32),
}

/// `processor_config.json` of transformers 5.
#[derive(Debug, Deserialize)]
struct ProcessorFile {
    image_processor: PreprocessorFile,
}

/// `OPENAI_CLIP_MEAN` and `OPENAI_CLIP_STD` of transformers' `image_utils`.
const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
/// Pillow's number of BICUBIC.
const BICUBIC: u8 = 3;

impl Default for PreprocessorFile {
    fn default() -> Self {
        Self {
            do_resize: true,
            size: Size::Side(384),
            resample: BICUBIC,
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: CLIP_MEAN,
            image_std: CLIP_STD,
        }
    }
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
            let file = PreprocessorFile { size: Size::Side(side), ..PreprocessorFile::default() };
            return Self::checked(&file, vision, Path::new("preprocessor_config.json"));
        };
        let newer = given.path().file_name().is_some_and(|name| name == "processor_config.json");
        let file = if newer {
            super::json::read_json::<ProcessorFile>(given)?.image_processor
        } else {
            super::json::read_json(given)?
        };
        Self::checked(&file, vision, given.path())
    }

    fn checked(
        file: &PreprocessorFile,
        vision: &VisionConfig,
        path: &Path,
    ) -> Result<Self, LoadError> {
        let refuse = |field, value: String, accepted| {
            Err(LoadError::Unsupported { path: path.to_owned(), field, value, accepted })
        };
        let (height, width) = match file.size {
            Size::Sides { height, width } => (height, width),
            Size::Side(side) => (side, side),
        };
        if !file.do_resize {
            return refuse("do_resize", "false".to_owned(), "true");
        }
        if file.resample != BICUBIC {
            return refuse("resample", file.resample.to_string(), "3 (bicubic)");
        }
        let side = vision.image_size as u32;
        if (height, width) != (side, side) {
            let value = format!("{height}x{width}");
            return refuse("size", value, "vision_config.image_size of config.json, squared");
        }
        if file.image_std.iter().any(|&std| std <= 0.0 || !std.is_finite()) {
            return refuse("image_std", format!("{:?}", file.image_std), "three positive numbers");
        }
        let (mean, std) = if file.do_normalize {
            (file.image_mean, file.image_std)
        } else {
            ([0.0; 3], [1.0; 3])
        };
        Ok(Self {
            preprocessing: Preprocessing { width, height },
            rescale_factor: if file.do_rescale { file.rescale_factor } else { 1.0 },
            mean,
            std,
        })
    }
}
