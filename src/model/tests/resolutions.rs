//! Image sizes other than the checkpoint's equal transformers' `interpolate_pos_encoding=True`, and models from the same
//! files share everything but the position embeddings.

use std::sync::Arc;

use super::{CPU_F32, Reference, TOLERANCE, assert_close, spec};
use crate::engine::backend::Backend;
use crate::model::ops::Ops;
use crate::model::ops::candle::CandleOps;
use crate::model::{BlipBackend, LoadError, ModelSpec};
use crate::task::{Pixels, TowerId, VisionOutput};

fn load(specs: &[ModelSpec]) -> Result<BlipBackend<CandleOps>, LoadError> {
    BlipBackend::load(CPU_F32.candle_ops().unwrap(), specs, CPU_F32, |_| {})
}

fn sized(checkpoint: &str, image_size: u32) -> ModelSpec {
    ModelSpec { image_size: Some(image_size), ..spec(checkpoint) }
}

#[test]
fn features_of_smaller_and_larger_images_equal_the_reference() {
    let reference = Reference::read("resolutions");
    let cases = reference.list("cases");
    assert!(cases.len() >= 20);
    for case in cases {
        let (checkpoint, photo) =
            (case["checkpoint"].as_str().unwrap(), case["photo"].as_str().unwrap());
        let size = case["image_size"].as_u64().unwrap() as u32;
        let mut backend = load(&[sized(checkpoint, size)]).unwrap();
        let info = &backend.models()[0];
        assert_eq!(
            (info.vision_tower().preprocessing.width, info.vision_tower().preprocessing.height),
            (size, size)
        );
        let tokens = info.vision_tower().tokens;
        let pixels = Pixels::new(size, size, reference.bytes(&format!("pixels.{photo}.{size}")));
        let states = backend.encode(VisionOutput::last(TowerId(0)), &[&pixels]).unwrap().remove(0);
        let actual = backend.ops.to_host(states.states()).unwrap().concat();
        let what = format!("vision.{checkpoint}.{size}.{photo}");
        let expected = reference.tensor(&what);
        assert_eq!(tokens * (expected.len() / tokens), expected.len());
        assert_close(&what, &actual, &expected, TOLERANCE);
    }
}

#[test]
fn models_from_the_same_files_share_all_weights_but_their_position_embeddings() {
    let specs = [spec("retrieval"), sized("retrieval", 96), sized("retrieval", 64)];
    let backend = load(&specs).unwrap();
    // 64 is the size of the checkpoint, so the third model is the first once more.
    assert_eq!(backend.towers.len(), 2);
    assert_eq!(backend.models()[2].vision_tower().tower, backend.models()[0].vision_tower().tower);
    assert!(Arc::ptr_eq(backend.towers[0].encoder(), backend.towers[1].encoder()));
    assert!(Arc::ptr_eq(&backend.models[0], &backend.models[1]));
}

#[test]
fn a_size_that_does_not_fit_the_patches_is_refused_with_what_is_accepted() {
    for size in [0, 15, 100, 16 * 65] {
        let error = load(&[sized("retrieval", size)]).unwrap_err();
        assert!(matches!(error, LoadError::ImageSize { .. }) && error.is_content(), "{error}");
        let text = format!("image_size is {size}; accepted: a multiple of 16");
        assert!(error.to_string().starts_with(&text), "{error}");
    }
}
