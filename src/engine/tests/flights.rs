//! Tests that images are encoded once, however many tasks want them, and that features stay within their limits.

use crate::engine::EngineSettings;
use crate::engine::testing::bench::*;
use crate::engine::testing::fake::{FakeCall, FakeFault, FakeMark};
use crate::task::{DecodeMode, GenerationParams};

fn uncached() -> EngineSettings {
    EngineSettings { feature_cache_bytes: 0, ..EngineSettings::default() }
}

fn lookups(bench: &Bench, result: &str) -> u64 {
    bench.metrics.cache_requests_total.with_label_values(&["features", result]).get()
}

#[test]
fn identical_images_in_flight_are_encoded_once_though_nothing_is_cached() {
    let bench = Bench::start(uncached());
    bench.control.hold();
    let admissions: Vec<_> = (0..8).map(|_| bench.admit(1)).collect();
    // The first task occupies the worker with another image, so that all the others wait.
    let other = admissions[0].submit(CAPTION, caption(99));
    bench.control.wait_until_held();
    let replies: Vec<_> =
        admissions[1..].iter().map(|admission| admission.submit(CAPTION, caption(1))).collect();
    bench.control.release();
    let outputs: Vec<_> = replies.into_iter().map(|reply| wait(reply).unwrap().output).collect();
    assert!(outputs.iter().all(|output| *output == outputs[0]));
    assert!(wait(other).is_ok());
    assert_eq!(bench.handle.stats().images_encoded, 2);
    assert_eq!((lookups(&bench, "miss"), lookups(&bench, "joined")), (2, 6));
}

#[test]
fn a_flight_survives_its_first_waiter() {
    let bench = Bench::start(uncached());
    bench.control.hold();
    let admissions: Vec<_> = (0..3).map(|_| bench.admit(1)).collect();
    let other = admissions[0].submit(CAPTION, caption(99));
    bench.control.wait_until_held();
    let first = admissions[1].submit(CAPTION, caption(1));
    let second = admissions[2].submit(CAPTION, caption(1));
    drop(first);
    bench.control.release();
    assert!(wait(second).is_ok() && wait(other).is_ok());
    let stats = bench.handle.stats();
    assert_eq!((stats.images_encoded, stats.answered, stats.cancelled), (2, 2, 1));
}

#[test]
fn a_waiter_that_leaves_during_the_encoding_does_not_harm_the_other() {
    let bench = Bench::start(uncached());
    bench.control.hold();
    let admissions: Vec<_> = (0..2).map(|_| bench.admit(1)).collect();
    let call = bench.admit(2);
    let other = call.submit(CAPTION, caption(99));
    bench.control.wait_until_held();
    let first = admissions[0].submit(CAPTION, caption(1));
    let second = admissions[1].submit(CAPTION, caption(1));
    // The first backend call encodes image 99. The second call is the first text step for image 99, or encodes image 1.
    // So when the third call waits at the gate, either image 1 has already been encoded, or the third call encodes it.
    bench.control.pass(2);
    bench.control.wait_until_held();
    drop(first);
    bench.control.release();
    assert!(wait(second).is_ok() && wait(other).is_ok());
    assert_eq!(bench.handle.stats().images_encoded, 2);
}

#[test]
fn nobody_left_means_nothing_encoded() {
    let bench = Bench::start(uncached());
    bench.control.hold();
    let admissions: Vec<_> = (0..3).map(|_| bench.admit(1)).collect();
    let other = admissions[0].submit(CAPTION, caption(99));
    bench.control.wait_until_held();
    drop(admissions[1].submit(CAPTION, caption(1)));
    drop(admissions[2].submit(CAPTION, caption(1)));
    bench.control.release();
    assert!(wait(other).is_ok());
    assert!(wait(admissions[0].submit(CAPTION, caption(99))).is_err(), "its row is used up");
    let mark = FakeMark::Image(1);
    let log = bench.control.log();
    assert!(log.iter().all(|unit| unit.items.iter().all(|marks| !marks.contains(&mark))));
    assert_eq!(bench.metrics.queue_cancelled_total.get(), 2);
}

#[test]
fn two_towers_encode_twice_and_models_of_one_tower_once() {
    let bench = Bench::start(EngineSettings::default());
    let admission = bench.admit(4);
    let greedy = DecodeMode::Generate(GenerationParams::greedy(5));
    assert!(wait(admission.submit(CAPTION, caption(1))).is_ok());
    assert!(wait(admission.submit(VQA, vqa(1, &[&[3]], greedy))).is_ok());
    assert_eq!(bench.handle.stats().images_encoded, 2);
    assert!(wait(admission.submit(RETRIEVAL, similarity(&[1], &[&[4]], true, false))).is_ok());
    assert!(wait(admission.submit(CLIP, similarity(&[1], &[&[4]], false, true))).is_ok());
    assert_eq!(bench.handle.stats().images_encoded, 3);
}

#[test]
fn a_cached_image_is_not_encoded_again() {
    let bench = Bench::start(EngineSettings::default());
    let admission = bench.admit(3);
    let first = wait(admission.submit(CAPTION, caption(1))).unwrap();
    let second = wait(admission.submit(CAPTION, caption(1))).unwrap();
    assert_eq!(first.output, second.output);
    assert_eq!(lookups(&bench, "hit"), 1);
    assert_eq!(bench.handle.stats().images_encoded, 1);
    assert_eq!(bench.metrics.cache_bytes.with_label_values(&["features"]).get(), 100);
}

#[test]
fn an_encoding_error_reaches_every_waiter_and_is_not_kept() {
    let bench = Bench::start(EngineSettings::default());
    bench.control.fault(FakeCall::Encode, FakeMark::Image(1), FakeFault::Error);
    bench.control.hold();
    let admission = bench.admit(4);
    let other = admission.submit(CAPTION, caption(99));
    bench.control.wait_until_held();
    let both = [admission.submit(CAPTION, caption(1)), admission.submit(CAPTION, caption(1))];
    bench.control.release();
    for reply in both {
        let error = wait(reply).unwrap_err();
        assert!(matches!(error, crate::engine::EngineError::InferenceFailed(_)), "{error}");
    }
    assert!(wait(other).is_ok());
    bench.control.clear_faults();
    assert!(wait(admission.submit(CAPTION, caption(1))).is_ok());
}

#[test]
fn vision_goes_on_image_by_image_when_one_fills_the_budget() {
    let settings = EngineSettings {
        max_pinned_feature_bytes: 100,
        feature_cache_bytes: 0,
        max_kv_bytes: 1000,
        ..EngineSettings::default()
    };
    let bench = Bench::start(settings);
    let admission = bench.admit(30);
    let pairs =
        admission.submit(RETRIEVAL, similarity(&[1, 2, 3, 4], &[&[4], &[5], &[6]], true, true));
    let captions: Vec<_> = (1..6).map(|mark| admission.submit(CAPTION, caption(mark))).collect();
    assert!(wait(pairs).is_ok());
    for reply in captions {
        assert!(wait(reply).is_ok());
    }
    let log = bench.control.log();
    let largest = log.iter().filter(|unit| unit.call == FakeCall::Encode);
    assert_eq!(largest.map(|unit| unit.items.len()).max(), Some(1));
    assert_eq!(bench.metrics.cache_bytes.with_label_values(&["features"]).get(), 0);
}
