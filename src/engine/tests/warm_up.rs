//! Tests of the warm-up, which measures costs before the first request.

use std::time::Duration;

use crate::engine::testing::bench::*;
use crate::engine::testing::fake::{FakeCall, FakeFault, FakeMark};
use crate::engine::{EngineError, EngineSettings, WarmUpError, shared::EngineStats};
use crate::fairness::ClientId;

fn bench() -> Bench {
    let max_queue_wait = Duration::from_secs(3);
    let bench = Bench::start(EngineSettings { max_queue_wait, ..EngineSettings::default() });
    let (second, tick) = (Duration::from_secs(1), Duration::from_millis(10));
    bench.control.set_costs(&bench.clock, tick, second, Duration::from_millis(1));
    bench
}

#[test]
fn a_first_burst_meets_estimates() {
    let bench = bench();
    wait(bench.handle.warm_up()).unwrap();
    assert_eq!(bench.handle.estimates().image, Some(1.01));
    let admissions: Vec<_> = (0..2).map(|_| bench.admit(1)).collect();
    let mut third = bench
        .handle
        .admit(ClientId::default(), 0, bench.clock.now() + Duration::from_secs(30))
        .unwrap();
    let refused = third.reserve(1, 1).unwrap_err();
    assert!(matches!(refused, EngineError::Overloaded { .. }), "{refused}");
    drop(admissions);
}

#[test]
fn a_warm_up_runs_every_kind_of_unit_on_every_model_and_counts_for_nothing() {
    let bench = bench();
    wait(bench.handle.warm_up()).unwrap();
    let ran = |call, of| bench.control.log().iter().any(|unit| unit.call == call && unit.of == of);
    for tower in 0..3 {
        assert!(ran(FakeCall::Encode, tower), "tower {tower}");
    }
    for (call, model) in [
        (FakeCall::Step, CAPTION),
        (FakeCall::SinglePass, VQA),
        (FakeCall::Step, VQA),
        (FakeCall::SinglePass, RETRIEVAL),
        (FakeCall::SinglePass, CLIP),
    ] {
        assert!(ran(call, model.0), "{call:?} of {model:?}");
    }
    let estimates = bench.handle.estimates();
    assert!(estimates.unit_fixed.is_some() && estimates.row_units.is_some(), "{estimates:?}");
    assert_eq!(bench.handle.stats(), EngineStats::default());
    assert_eq!(bench.metrics.images_encoded_total.get(), 0);
    assert_eq!(bench.metrics.generated_tokens_total.get(), 0);
    assert_eq!(bench.metrics.time_to_first_token_seconds.get_sample_count(), 0);
    for stage in ["vision", "text"] {
        let batches = bench.metrics.batches_total.with_label_values(&[stage, "idle"]);
        assert_eq!(batches.get(), 0, "{stage}");
    }
    assert_eq!(bench.control.open_groups(), 0);
}

#[test]
fn a_unit_that_fails_in_the_warm_up_teaches_nothing_and_names_its_model() {
    let bench = bench();
    bench.control.fault(FakeCall::Encode, FakeMark::Image(0), FakeFault::Panic);
    let error = wait(bench.handle.warm_up()).unwrap_err();
    let WarmUpError::ModelFailed { model, unit, cause } = error else { panic!("{error}") };
    assert_eq!((model.as_str(), unit), ("fake-caption", "encoding an image"));
    assert!(cause.starts_with("panic: "), "{cause}");
    assert_eq!(bench.handle.estimates().image, None);
}

/// Checks every kind of failure: an error, a panic, out of memory, non-finite numbers.
#[test]
fn every_kind_of_unit_that_fails_in_any_way_fails_the_warm_up() {
    let (image, text) = (FakeMark::Image(0), FakeMark::Token(0));
    for (call, mark, fault, expected) in [
        (FakeCall::Encode, image, FakeFault::Error, "fake-caption: encoding an image"),
        (
            FakeCall::Encode,
            image,
            FakeFault::OutOfMemoryAbove(0),
            "fake-caption: encoding an image",
        ),
        (FakeCall::Step, image, FakeFault::Panic, "fake-caption: generating a token"),
        (FakeCall::Step, image, FakeFault::NonFinite, "fake-caption: generating a token"),
        (FakeCall::Step, text, FakeFault::NonFinite, "fake-vqa: generating a token"),
        (FakeCall::SinglePass, text, FakeFault::Error, "fake-vqa: encoding a question"),
        (FakeCall::SinglePass, text, FakeFault::NonFinite, "fake-retrieval: embedding a text"),
    ] {
        let bench = bench();
        bench.control.fault(call, mark, fault);
        match wait(bench.handle.warm_up()) {
            Err(WarmUpError::ModelFailed { model, unit, .. }) => {
                assert_eq!(format!("{model}: {unit}"), expected, "{fault:?}");
            }
            other => panic!("{call:?} {fault:?}: {other:?}"),
        }
    }
}

#[test]
fn a_warm_up_on_a_worker_that_dies_is_an_error_too() {
    let bench = bench();
    bench.control.kill_worker();
    let reply = bench.admit(1).submit(CAPTION, caption(1));
    assert!(wait(reply).is_err());
    assert_eq!(wait(bench.handle.warm_up()), Err(WarmUpError::WorkerDown));
}
