//! Tests that errors and panics fail only the item at fault, and that a dead worker is reported.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::engine::testing::bench::*;
use crate::engine::testing::fake::{self, FakeBackend, FakeCall, FakeFault, FakeMark};
use crate::engine::{Engine, EngineContext, EngineError, EngineSettings, Phase, Reply};
use crate::fairness::ClientId;
use crate::task::{DecodeMode, GenerationParams, ModelId, Task};
use crate::telemetry::metrics::Metrics;

/// Submits captions of images 1 to 8 while the worker is held, so that they share units. Returns their outcomes.
fn eight_captions(bench: &Bench) -> Vec<Result<(), EngineError>> {
    // First let the engine measure that units are cheap, so that all eight fit into one.
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
            assert_eq!(bench.handle.phase(), Phase::Ready);
            let log = bench.control.log();
            let shared = log.iter().filter(|unit| unit.call == call);
            assert!(shared.map(|unit| unit.items.len()).max() >= Some(4), "{call:?} was shared");
        }
    }
}

#[test]
fn a_poisoned_question_fails_its_own_task() {
    let bench = Bench::start(EngineSettings::default());
    bench.control.fault(FakeCall::SinglePass, FakeMark::Token(66), FakeFault::Panic);
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
        let fault = FakeFault::OutOfMemoryAbove(5);
        bench.control.fault(FakeCall::Step, FakeMark::Image(mark), fault);
    }
    assert!(eight_captions(&bench).into_iter().all(|outcome| outcome.is_ok()));
    assert!(bench.metrics.oom_total.get() > 0);
}

#[test]
fn a_single_item_too_large_for_the_device_is_load() {
    let bench = Bench::start(EngineSettings::default());
    let fault = FakeFault::OutOfMemoryAbove(0);
    bench.control.fault(FakeCall::Encode, FakeMark::Image(1), fault);
    let admission = bench.admit(1);
    let error = wait(admission.submit(CAPTION, caption(1))).unwrap_err();
    assert!(matches!(error, EngineError::Overloaded { .. }), "{error}");
    assert_eq!(bench.metrics.oom_total.get(), 1);
}

#[test]
fn numbers_that_are_not_finite_are_no_answer() {
    let bench = Bench::start(EngineSettings::default());
    bench.control.fault(FakeCall::SinglePass, FakeMark::Token(66), FakeFault::NonFinite);
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
    assert_eq!(bench.metrics.non_finite_outputs_total.get(), 3);
}

#[test]
fn a_dead_worker_resolves_every_reply_and_admits_nothing() {
    let (backend, control) = FakeBackend::new(fake::models());
    control.kill_worker();
    let metrics = std::sync::Arc::new(Metrics::try_new().unwrap());
    let settings = EngineSettings::default();
    let context = EngineContext::without_server(Arc::clone(&metrics));
    let engine = Engine::start(backend, settings, context).unwrap();
    let handle = engine.handle();
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    let mut admission = handle.admit(ClientId::default(), 10, deadline).unwrap();
    admission.reserve(3, 3).unwrap();
    let first = admission.submit(CAPTION, caption(1));
    let second = admission.submit(CAPTION, caption(2));
    assert_eq!(wait(first), Err(EngineError::WorkerDown));
    assert_eq!(wait(second), Err(EngineError::WorkerDown));
    wait(handle.ended());
    assert_eq!(wait(admission.submit(CAPTION, caption(3))), Err(EngineError::WorkerDown));
    assert_eq!(handle.phase(), Phase::Down);
    assert_eq!(
        handle.admit(ClientId::default(), 0, deadline).unwrap_err(),
        EngineError::WorkerDown
    );
    drop(admission);
    wait(handle.drained());
    engine.join();
    assert_eq!((metrics.queue_rows.get(), metrics.queue_bytes.get()), (0, 0));
    assert_eq!(metrics.worker_up.with_label_values(&["0"]).get(), 0);
}

/// Returns an engine whose worker waits at the gate with a caption for longer than its hang limit.
fn hanging() -> (Bench, Reply) {
    let settings =
        EngineSettings { worker_hang_limit: Duration::from_millis(1), ..EngineSettings::default() };
    let bench = Bench::start(settings);
    bench.control.hold();
    let admission = bench.admit(1);
    let reply = admission.submit(CAPTION, caption(1));
    bench.control.wait_until_held();
    (bench, reply)
}

#[test]
fn a_worker_that_hangs_is_down() {
    let (bench, reply) = hanging();
    let start = std::time::Instant::now();
    while bench.handle.phase() != Phase::Down {
        assert!(start.elapsed() < Duration::from_secs(20), "the hang goes unseen");
        std::thread::yield_now();
    }
    bench.control.release();
    assert!(wait(reply).is_ok());
}

/// Returns an engine whose backend can be rebuilt, and a counter of the rebuilds. The new backend has the same control
/// as the old one.
fn supervised(
    outcome: impl Fn(usize) -> Result<(), &'static str> + Send + 'static,
) -> (Bench, Arc<AtomicUsize>) {
    let rebuilt = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&rebuilt);
    let bench = Bench::supervised(move |control| {
        outcome(count.fetch_add(1, Ordering::SeqCst))?;
        control.clear_faults();
        Ok(FakeBackend::on(fake::models(), control))
    });
    (bench, rebuilt)
}

/// From now on, makes each backend call of this kind fail if it contains image 7 or belongs to a probe. A probe uses a
/// black image (mark 0) and text tokens that are all 0.
fn break_backend(bench: &Bench, call: FakeCall, fault: FakeFault) {
    for mark in [FakeMark::Image(0), FakeMark::Image(7), FakeMark::Token(0)] {
        bench.control.fault(call, mark, fault);
    }
}

#[test]
fn a_backend_that_fails_its_probe_is_rebuilt_and_serves_again() {
    for (call, fault) in [
        (FakeCall::Encode, FakeFault::Panic),
        (FakeCall::Encode, FakeFault::Error),
        (FakeCall::Step, FakeFault::Panic),
        (FakeCall::Step, FakeFault::NonFinite),
    ] {
        let (bench, rebuilt) = supervised(|_| Ok(()));
        break_backend(&bench, call, fault);
        let admission = bench.admit(2);
        let error = wait(admission.submit(CAPTION, caption(7))).unwrap_err();
        assert!(matches!(error, EngineError::InferenceFailed(_)), "{call:?} {fault:?}: {error}");
        wait(ready_again(&bench, &rebuilt, 1));
        assert!(wait(admission.submit(CAPTION, caption(7))).is_ok(), "{call:?} {fault:?}");
        assert_eq!(bench.metrics.worker_restarts_total.with_label_values(&["0"]).get(), 1);
        assert_eq!(bench.metrics.worker_up.with_label_values(&["0"]).get(), 1);
    }
}

/// Waits until the backend has been rebuilt `times` times and the engine is ready.
async fn ready_again(bench: &Bench, rebuilt: &AtomicUsize, times: usize) {
    while rebuilt.load(Ordering::SeqCst) < times || bench.handle.phase() != Phase::Ready {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_poisoned_item_alone_in_its_unit_does_not_cost_the_backend() {
    let (bench, rebuilt) = supervised(|_| Ok(()));
    for fault in [FakeFault::Panic, FakeFault::Error] {
        bench.control.clear_faults();
        bench.control.fault(FakeCall::Encode, FakeMark::Image(5), fault);
        let admission = bench.admit(2);
        assert!(wait(admission.submit(CAPTION, caption(5))).is_err());
        assert!(wait(admission.submit(CAPTION, caption(6))).is_ok());
    }
    assert_eq!(rebuilt.load(Ordering::SeqCst), 0);
    assert_eq!(bench.metrics.worker_restarts_total.with_label_values(&["0"]).get(), 0);
}

#[test]
fn while_the_backend_is_rebuilt_waiting_tasks_fail_and_nothing_is_admitted() {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (bench, rebuilt) = supervised(move |_| held.recv().map_err(|_| "the test has gone"));
    break_backend(&bench, FakeCall::Encode, FakeFault::Panic);
    bench.control.hold();
    let admission = bench.admit(2);
    let broken = admission.submit(CAPTION, caption(7));
    let spare = bench.admit(1);
    bench.control.wait_until_held();
    // This task arrives while the first task's image is being encoded, so it still waits when the backend is abandoned.
    let waiting =
        admission.submit(VQA, vqa(8, &[&[30]], DecodeMode::Generate(GenerationParams::greedy(4))));
    bench.control.release();
    assert!(matches!(wait(broken), Err(EngineError::InferenceFailed(_))));
    assert_eq!(wait(waiting), Err(EngineError::WorkerDown));
    assert_eq!(bench.handle.phase(), Phase::Rebuilding);
    assert_eq!(bench.metrics.ready.get(), 0);
    let deadline = bench.clock.now() + Duration::from_secs(30);
    assert_eq!(
        bench.handle.admit(ClientId::default(), 0, deadline).unwrap_err(),
        EngineError::WorkerDown
    );
    assert_eq!(wait(spare.submit(CAPTION, caption(9))), Err(EngineError::WorkerDown));
    release.send(()).unwrap();
    wait(ready_again(&bench, &rebuilt, 1));
    assert!(wait(bench.admit(1).submit(CAPTION, caption(7))).is_ok());
}

#[test]
fn a_backend_that_fails_again_soon_after_ends_the_worker_and_later_does_not() {
    let (bench, rebuilt) = supervised(|_| Ok(()));
    for round in 1..=2 {
        break_backend(&bench, FakeCall::Encode, FakeFault::Error);
        assert!(wait(bench.admit(1).submit(CAPTION, caption(7))).is_err());
        wait(ready_again(&bench, &rebuilt, round));
        bench.clock.advance(Duration::from_secs(601));
    }
    bench.clock.advance(Duration::from_secs(601));
    break_backend(&bench, FakeCall::Encode, FakeFault::Error);
    assert!(wait(bench.admit(1).submit(CAPTION, caption(7))).is_err());
    wait(ready_again(&bench, &rebuilt, 3));
    break_backend(&bench, FakeCall::Encode, FakeFault::Error);
    assert!(wait(bench.admit(1).submit(CAPTION, caption(7))).is_err());
    wait(bench.handle.lost());
    assert_eq!((rebuilt.load(Ordering::SeqCst), bench.handle.phase()), (3, Phase::Down));
}

#[test]
fn a_backend_that_cannot_be_rebuilt_ends_the_worker() {
    let (bench, _) = supervised(|_| Err("the file has gone"));
    break_backend(&bench, FakeCall::Encode, FakeFault::Panic);
    assert!(wait(bench.admit(1).submit(CAPTION, caption(7))).is_err());
    wait(bench.handle.lost());
    assert_eq!(bench.handle.phase(), Phase::Down);
    assert_eq!(bench.metrics.worker_restarts_total.with_label_values(&["0"]).get(), 0);
}

#[test]
fn a_lost_device_ends_the_worker_without_halves_probe_or_rebuild() {
    let (bench, rebuilt) = supervised(|_| Ok(()));
    bench.control.fault(FakeCall::Encode, FakeMark::Image(7), FakeFault::DeviceLost);
    bench.control.hold();
    let admission = bench.admit(3);
    let first = admission.submit(CAPTION, caption(5));
    bench.control.wait_until_held();
    // These two wait, so they are encoded together.
    let others = [7, 8].map(|image| admission.submit(CAPTION, caption(image)));
    bench.control.release();
    wait(bench.handle.lost());
    drop(wait(first));
    for other in others {
        assert!(wait(other).is_err());
    }
    assert_eq!((rebuilt.load(Ordering::SeqCst), bench.handle.phase()), (0, Phase::Down));
    let encoded = bench.control.log().iter().filter(|unit| unit.call == FakeCall::Encode).count();
    assert!(encoded <= 3, "{encoded} calls: the unit was halved or the backend probed");
}

#[test]
fn a_worker_that_panics_itself_is_replaced_with_its_backend() {
    let (bench, rebuilt) = supervised(|_| Ok(()));
    bench.control.kill_worker();
    let admission = bench.admit(2);
    assert_eq!(wait(admission.submit(CAPTION, caption(1))), Err(EngineError::WorkerDown));
    bench.control.spare_worker();
    wait(ready_again(&bench, &rebuilt, 1));
    assert!(wait(admission.submit(CAPTION, caption(1))).is_ok());
}

#[test]
fn callers_that_wait_for_a_hung_worker_get_worker_down() {
    let (bench, reply) = hanging();
    wait(bench.handle.lost());
    assert_eq!(wait(reply), Err(EngineError::WorkerDown));
    bench.control.release();
}

#[test]
fn a_probe_without_memory_says_nothing_about_the_backend() {
    let (bench, rebuilt) = supervised(|_| Ok(()));
    bench.control.fault(FakeCall::Encode, FakeMark::Image(7), FakeFault::Panic);
    bench.control.fault(FakeCall::Encode, FakeMark::Image(0), FakeFault::OutOfMemoryAbove(0));
    let admission = bench.admit(2);
    assert!(wait(admission.submit(CAPTION, caption(7))).is_err());
    assert!(wait(admission.submit(CAPTION, caption(6))).is_ok());
    assert_eq!(rebuilt.load(Ordering::SeqCst), 0);
}
