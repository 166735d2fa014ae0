//! Errors and panics cost the item at fault and nobody else; a dead worker says so.

use std::time::Duration;

use super::support::*;
use crate::engine::fake::{self, FakeBackend, FakeCall, FakeFault, FakeMark};
use crate::engine::{Engine, EngineError, EngineSettings, EngineState};
use crate::task::{ModelId, Task};
use crate::telemetry::metrics::Metrics;

/// Submits captions of images 1 to 8 while the worker is held, so that they share units; gives the outcomes.
fn eight_captions(bench: &Bench) -> Vec<Result<(), EngineError>> {
    // Units are learnt to be cheap first, so that all eight fit one.
    let warm = bench.admit(1);
    assert!(wait(warm.submit(CAPTION, caption(99))).is_ok());
    bench.control.hold();
    let admission = bench.admit(9);
    let other = admission.submit(CAPTION, caption(98));
    bench.control.wait_until_held();
    let replies: Vec<_> = (1..=8).map(|mark| admission.submit(CAPTION, caption(mark))).collect();
    bench.control.release();
    assert!(wait(other).is_ok());
    replies.into_iter().map(|reply| wait(reply).map(|_| ())).collect()
}

#[test]
fn the_poisoned_item_alone_fails_in_every_kind_of_unit() {
    for call in [FakeCall::Encode, FakeCall::Step] {
        for fault in [FakeFault::Panic, FakeFault::Error] {
            let bench = Bench::start(EngineSettings::default());
            bench.control.fault(call, FakeMark::Image(5), fault);
            let outcomes = eight_captions(&bench);
            for (mark, outcome) in (1..=8).zip(outcomes) {
                let failed = matches!(outcome, Err(EngineError::InferenceFailed(_)));
                assert_eq!(failed, mark == 5, "image {mark}, {call:?}, {fault:?}: {outcome:?}");
            }
            let panics = bench.metrics.panics_total.with_label_values(&["worker"]).get();
            assert_eq!(panics > 0, fault == FakeFault::Panic);
            assert_eq!(bench.handle.state(), EngineState::Ready);
            let log = bench.control.log();
            let shared = log.iter().filter(|unit| unit.call == call);
            assert!(shared.map(|unit| unit.items.len()).max() >= Some(4), "{call:?} was shared");
        }
    }
}

#[test]
fn a_poisoned_question_fails_its_own_task() {
    let bench = Bench::start(EngineSettings::default());
    bench.control.fault(FakeCall::Score, FakeMark::Token(66), FakeFault::Panic);
    let admission = bench.admit(8);
    let pairs = |text| similarity(&[1, 2], &[&[40], &[text]], true, false);
    let bad = admission.submit(RETRIEVAL, pairs(66));
    let good = admission.submit(RETRIEVAL, pairs(41));
    assert!(matches!(wait(bad), Err(EngineError::InferenceFailed(_))));
    assert!(wait(good).is_ok());
}

#[test]
fn a_unit_too_large_for_the_device_is_halved() {
    let bench = Bench::start(EngineSettings::default());
    for mark in 1..=8 {
        let fault = FakeFault::OutOfMemoryAbove(2);
        bench.control.fault(FakeCall::Step, FakeMark::Image(mark), fault);
    }
    assert!(eight_captions(&bench).into_iter().all(|outcome| outcome.is_ok()));
}

#[test]
fn a_single_item_too_large_for_the_device_is_load() {
    let bench = Bench::start(EngineSettings::default());
    let fault = FakeFault::OutOfMemoryAbove(0);
    bench.control.fault(FakeCall::Encode, FakeMark::Image(1), fault);
    let admission = bench.admit(1);
    let error = wait(admission.submit(CAPTION, caption(1))).unwrap_err();
    assert!(matches!(error, EngineError::Overloaded { .. }), "{error}");
}

#[test]
fn numbers_that_are_not_finite_are_no_answer() {
    let bench = Bench::start(EngineSettings::default());
    bench.control.fault(FakeCall::Score, FakeMark::Token(66), FakeFault::NonFinite);
    bench.control.fault(FakeCall::Step, FakeMark::Image(5), FakeFault::NonFinite);
    let admission = bench.admit(8);
    let tasks: [(ModelId, Task); 3] = [
        (RETRIEVAL, similarity(&[1], &[&[66]], true, false)),
        (RETRIEVAL, embed_text(&[66])),
        (CAPTION, caption(5)),
    ];
    for (model, task) in tasks {
        let error = wait(admission.submit(model, task)).unwrap_err();
        assert!(matches!(&error, EngineError::InferenceFailed(text) if text.contains("finite")));
    }
}

#[test]
fn a_dead_worker_resolves_every_reply_and_admits_nothing() {
    let (backend, control) = FakeBackend::new(fake::models());
    control.kill_worker();
    let metrics = std::sync::Arc::new(Metrics::try_new().unwrap());
    let settings = EngineSettings::default();
    let engine = Engine::start(backend, settings, std::sync::Arc::clone(&metrics)).unwrap();
    let handle = engine.handle();
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    let mut admission = handle.admit(10, deadline).unwrap();
    admission.reserve(3, 3).unwrap();
    let first = admission.submit(CAPTION, caption(1));
    let second = admission.submit(CAPTION, caption(2));
    assert_eq!(wait(first), Err(EngineError::WorkerDown));
    assert_eq!(wait(second), Err(EngineError::WorkerDown));
    wait(handle.ended());
    assert_eq!(wait(admission.submit(CAPTION, caption(3))), Err(EngineError::WorkerDown));
    assert_eq!(handle.state(), EngineState::WorkerDown);
    assert_eq!(handle.admit(0, deadline).unwrap_err(), EngineError::WorkerDown);
    drop(admission);
    wait(handle.drained());
    engine.join();
    assert_eq!((metrics.queue_rows.get(), metrics.queue_bytes.get()), (0, 0));
    assert_eq!(metrics.worker_up.get(), 0);
}

#[test]
fn a_worker_that_hangs_is_down() {
    let settings =
        EngineSettings { worker_hang_limit: Duration::from_millis(1), ..EngineSettings::default() };
    let bench = Bench::start(settings);
    bench.control.hold();
    let admission = bench.admit(1);
    let reply = admission.submit(CAPTION, caption(1));
    bench.control.wait_until_held();
    let start = std::time::Instant::now();
    while bench.handle.state() != EngineState::WorkerDown {
        assert!(start.elapsed() < Duration::from_secs(20), "the hang goes unseen");
        std::thread::yield_now();
    }
    bench.control.release();
    assert!(wait(reply).is_ok());
}
