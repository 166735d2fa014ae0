//! Tests of an engine with several workers, as on a machine with several GPUs.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::engine::testing::ManualClock;
use crate::engine::testing::bench::*;
use crate::engine::testing::fake::{self, FakeBackend, FakeCall, FakeControl, FakeFault, FakeMark};
use crate::engine::{
    Admission, Engine, EngineError, EngineHandle, EngineSettings, Phase, Rebuild, Reply,
    WorkerBackend,
};
use crate::fairness::ClientId;
use crate::telemetry::metrics::Metrics;

/// An engine of two workers on fake backends.
struct Pair {
    handle: EngineHandle,
    controls: [FakeControl; 2],
    metrics: Arc<Metrics>,
    clock: ManualClock,
    engine: Engine,
}

impl Pair {
    fn start() -> Self {
        Self::supervised(None)
    }

    /// The first worker's backend can be rebuilt by `rebuild`.
    fn supervised(rebuild: Option<Rebuild<FakeBackend>>) -> Self {
        let (first, first_control) = FakeBackend::new(fake::models());
        let (second, second_control) = FakeBackend::new(fake::models());
        let (metrics, clock) = (Arc::new(Metrics::try_new().unwrap()), ManualClock::start());
        let engine = Engine::start_workers(
            WorkerBackend { backend: first, rebuild },
            vec![WorkerBackend { backend: second, rebuild: None }],
            EngineSettings::default(),
            context(&metrics, &clock),
        );
        let engine = engine.unwrap();
        let controls = [first_control, second_control];
        Self { handle: engine.handle(), controls, metrics, clock, engine }
    }

    fn admit(&self) -> Result<Admission, EngineError> {
        let deadline = self.clock.now() + Duration::from_secs(30);
        self.handle.admit(ClientId::default(), 0, deadline)
    }

    /// Submits a caption of image `mark` as a call of its own.
    fn caption(&self, mark: u8) -> Reply {
        let mut admission = self.admit().unwrap();
        admission.reserve(1, 1).unwrap();
        admission.submit(CAPTION, caption(mark))
    }

    /// Returns the marks of the images that each worker encoded, sorted.
    fn encoded(&self) -> [Vec<u8>; 2] {
        let marks = |control: &FakeControl| {
            let units = control.log().into_iter().filter(|unit| unit.call == FakeCall::Encode);
            let mut marks: Vec<u8> = units
                .flat_map(|unit| unit.items.into_iter().flatten())
                .filter_map(|mark| match mark {
                    FakeMark::Image(mark) => Some(mark),
                    FakeMark::Token(_) => None,
                })
                .collect();
            marks.sort_unstable();
            marks
        };
        self.controls.each_ref().map(marks)
    }

    fn end(self) {
        self.controls.iter().for_each(FakeControl::release);
        drop(self.handle);
        self.engine.join();
        let up = |worker| self.metrics.worker_up.with_label_values(&[worker]).get();
        let queued = [self.metrics.queue_rows.get(), self.metrics.queue_bytes.get()];
        assert_eq!((up("0"), up("1"), queued), (0, 0, [0, 0]));
    }
}

/// Polls once; the test polls again itself, so no waker is needed.
fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_call_goes_to_the_worker_with_the_shortest_queue() {
    let pair = Pair::start();
    pair.controls.iter().for_each(FakeControl::hold);
    let first: Vec<_> = (1..=4).map(|mark| pair.caption(mark)).collect();
    // A large call goes to the first worker, because both queues have the same length. So the next four calls go to the
    // second.
    let mut large = pair.admit().unwrap();
    large.reserve(8, 1).unwrap();
    let next: Vec<_> = (5..=8).map(|mark| pair.caption(mark)).collect();
    pair.controls.iter().for_each(FakeControl::release);
    for reply in first.into_iter().chain(next) {
        assert!(wait(reply).is_ok());
    }
    assert_eq!(pair.encoded(), [vec![1, 3], vec![2, 4, 5, 6, 7, 8]]);
    drop(large);
    pair.end();
}

#[test]
fn a_worker_whose_device_is_full_does_not_attract_all_calls() {
    let pair = Pair::start();
    for mark in 1..=9 {
        let full = FakeFault::OutOfMemoryAbove(0);
        pair.controls[0].fault(FakeCall::Encode, FakeMark::Image(mark), full);
    }
    // The queues are equally long, so the first call goes to the first worker.
    let failed = wait(pair.caption(1));
    assert!(matches!(failed, Err(EngineError::Overloaded { .. })), "{failed:?}");
    for mark in 2..=5 {
        assert!(wait(pair.caption(mark)).is_ok());
    }
    // After a second the worker is tried again, and then avoided for two seconds.
    pair.clock.advance(Duration::from_secs(1));
    assert!(wait(pair.caption(6)).is_err());
    pair.clock.advance(Duration::from_secs(1));
    assert!(wait(pair.caption(7)).is_ok());
    pair.clock.advance(Duration::from_secs(1));
    assert!(wait(pair.caption(8)).is_err());
    pair.end();
}

#[test]
fn a_call_that_one_worker_would_refuse_goes_to_another() {
    let pair = Pair::start();
    let capacity = EngineSettings::default().capacity_bytes;
    let mut large = pair.admit().unwrap();
    large.reserve_bytes(capacity).unwrap();
    let mut rows = pair.admit().unwrap();
    rows.reserve(20, 1).unwrap();
    // The first worker has the shorter queue, but no bytes left.
    let deadline = pair.clock.now() + Duration::from_secs(30);
    let mut call = pair.handle.admit(ClientId(7), capacity / 2, deadline).unwrap();
    assert_eq!(pair.metrics.queue_rejected_total.with_label_values(&["full"]).get(), 0);
    // Its bytes are known only later, and keep it from moving to the first worker.
    call.reserve_with_bytes(1, 1, capacity / 2).unwrap();
    assert!(wait(call.submit(CAPTION, caption(1))).is_ok());
    assert_eq!(pair.encoded(), [vec![], vec![1]]);
    drop((large, rows, call));
    pair.end();
}

#[test]
fn calls_that_are_never_sent_and_bulk_work_do_not_make_a_queue_look_long() {
    let pair = Pair::start();
    let deadline = pair.clock.now() + Duration::from_secs(30);
    let requests: Vec<_> =
        (0..100).map(|_| pair.handle.admit_bulk(ClientId(1), deadline).unwrap()).collect();
    // Every other one ends, so that only one of the workers still has requests.
    let idle: Vec<_> = requests.into_iter().step_by(2).collect();
    let mut part = idle[0].admit_part(deadline);
    wait(part.reserve_when_room(50, 1, 0)).unwrap();
    for mark in 1..=6 {
        let mut admission = pair.admit().unwrap();
        admission.reserve(1, 1).unwrap();
        assert!(wait(admission.submit(CAPTION, caption(mark))).is_ok());
    }
    assert_eq!(pair.encoded()[0].len(), 6, "equal queues: the first worker");
    drop((part, idle));
    // Fifty calls that are never sent are at the second worker. They do not keep calls away from it.
    let silent: Vec<_> = (0..100).map(|_| pair.admit().unwrap()).collect();
    let silent: Vec<_> = silent.into_iter().skip(1).step_by(2).collect();
    let mut held = Vec::new();
    for mark in 100..140 {
        pair.controls.iter().for_each(FakeControl::hold);
        held.push(pair.caption(mark));
    }
    pair.controls.iter().for_each(FakeControl::release);
    for reply in held {
        assert!(wait(reply).is_ok());
    }
    let [first, second] =
        pair.encoded().map(|marks| marks.into_iter().filter(|&m| m >= 100).count());
    assert_eq!((first, second), (20, 20));
    drop(silent);
    pair.end();
}

/// The worker is chosen when the head of a request has arrived. Many bodies may arrive much later, and together.
#[test]
fn calls_whose_bodies_arrive_late_are_spread_over_the_workers() {
    let pair = Pair::start();
    let mut calls: Vec<_> = (0..40).map(|_| pair.admit().unwrap()).collect();
    for call in &mut calls {
        call.reserve_bytes(10).unwrap();
    }
    // Only the calls of one worker are sent. The others stay open.
    let mut sent: Vec<_> = calls.iter_mut().step_by(2).collect();
    pair.controls.iter().for_each(FakeControl::hold);
    let replies: Vec<_> = sent
        .iter_mut()
        .zip(1..)
        .map(|(call, mark)| {
            call.reserve(1, 1).unwrap();
            call.reserve_bytes(1).unwrap();
            call.submit(CAPTION, caption(mark))
        })
        .collect();
    assert_eq!(pair.metrics.queue_bytes.get(), 420, "the bytes of a call move with it");
    pair.controls.iter().for_each(FakeControl::release);
    for reply in replies {
        assert!(wait(reply).is_ok());
    }
    assert_eq!(pair.encoded().map(|marks| marks.len()), [10, 10]);
    drop(calls);
    assert_eq!(pair.metrics.queue_bytes.get(), 0);
    pair.end();
}

#[test]
fn a_call_whose_bytes_are_held_elsewhere_or_have_no_room_stays_at_its_worker() {
    let pair = Pair::start();
    let capacity = EngineSettings::default().capacity_bytes;
    // In turn at the first and at the second worker.
    let [mut first, mut second, mut third, other, mut fifth] =
        [(); 5].map(|()| pair.admit().unwrap());
    first.reserve(5, 1).unwrap();
    third.reserve_bytes(10).unwrap();
    let guard = third.hold();
    third.reserve(1, 1).unwrap();
    assert!(wait(third.submit(CAPTION, caption(1))).is_ok());
    assert_eq!(pair.encoded(), [vec![1], vec![]], "a guard holds its bytes at the first worker");
    second.reserve_bytes(capacity).unwrap();
    fifth.reserve_bytes(10).unwrap();
    fifth.reserve(1, 1).unwrap();
    assert!(wait(fifth.submit(CAPTION, caption(2))).is_ok());
    assert_eq!(pair.encoded(), [vec![1, 2], vec![]], "the second worker has no bytes left");
    drop((first, second, third, other, fifth, guard));
    pair.end();
}

#[test]
fn a_drain_waits_for_a_call_that_has_moved_to_another_worker() {
    let pair = Pair::start();
    let (mut first, mut second, mut third) =
        (pair.admit().unwrap(), pair.admit().unwrap(), pair.admit().unwrap());
    first.reserve(5, 1).unwrap();
    pair.handle.drain();
    third.reserve(1, 1).unwrap();
    {
        let handle = pair.handle.clone();
        let mut drained = pin!(handle.drained());
        drop(first);
        assert!(poll(drained.as_mut()).is_pending());
        second.reserve(1, 1).unwrap();
        drop(second);
        assert!(poll(drained.as_mut()).is_pending());
        drop(third);
        assert!(poll(drained.as_mut()).is_ready());
    }
    pair.end();
}

/// Calls whose bodies are still arriving have no rows yet.
#[test]
fn calls_that_are_being_read_count_as_queued() {
    let pair = Pair::start();
    let calls: Vec<_> = (0..6).map(|_| pair.admit().unwrap()).collect();
    for (index, mut admission) in calls.into_iter().enumerate() {
        admission.reserve(1, 1).unwrap();
        assert!(wait(admission.submit(CAPTION, caption(index as u8))).is_ok());
    }
    assert_eq!(pair.encoded(), [vec![0, 2, 4], vec![1, 3, 5]]);
    pair.end();
}

#[test]
fn the_lines_of_one_bulk_request_use_all_workers() {
    let pair = Pair::start();
    let deadline = pair.clock.now() + Duration::from_secs(30);
    let request = pair.handle.admit_bulk(ClientId(1), deadline).unwrap();
    let mut parts: Vec<_> = (0..6).map(|_| request.admit_part(deadline)).collect();
    let mut calls: Vec<_> = parts.iter().map(Admission::call).collect();
    calls.push(request.call());
    calls.dedup();
    assert_eq!(calls.len(), 7, "every call has an id of its own");
    for (mark, part) in parts.iter_mut().enumerate() {
        wait(part.reserve_when_room(1, 1, 10)).unwrap();
        assert!(wait(part.submit(CAPTION, caption(mark as u8))).is_ok());
    }
    // The request itself counts as a call of the first worker.
    assert_eq!(pair.encoded().map(|marks| marks.len()), [3, 3]);
    assert_eq!(pair.metrics.queue_bytes.get(), 60, "the gauge is the sum of both queues");
    drop((parts, request));
    pair.end();
}

#[test]
fn a_drain_waits_for_a_line_on_another_worker_than_its_request() {
    let pair = Pair::start();
    let deadline = pair.clock.now() + Duration::from_secs(30);
    let request = pair.handle.admit_bulk(ClientId(1), deadline).unwrap();
    let part = request.admit_part(deadline);
    pair.handle.drain();
    assert!(matches!(pair.admit(), Err(EngineError::ShuttingDown)));
    {
        let handle = pair.handle.clone();
        let mut drained = pin!(handle.drained());
        assert!(poll(drained.as_mut()).is_pending());
        // The request ends before its last line.
        drop(request);
        assert!(poll(drained.as_mut()).is_pending());
        drop(part);
        assert!(poll(drained.as_mut()).is_ready());
    }
    pair.end();
}

#[test]
fn a_worker_whose_backend_is_rebuilt_gets_no_calls_while_the_other_serves() {
    let (begun, rebuilding) = channel();
    let (go_on, waiting) = channel::<()>();
    let rebuild: Rebuild<FakeBackend> = Box::new(move || {
        begun.send(())?;
        waiting.recv()?;
        Ok(FakeBackend::new(fake::models()).0)
    });
    let pair = Pair::supervised(Some(rebuild));
    pair.controls[0].kill_worker();
    assert_eq!(wait(pair.caption(1)), Err(EngineError::WorkerDown));
    rebuilding.recv().unwrap();
    assert_eq!(pair.handle.phase(), Phase::Ready);
    for mark in 2..=4 {
        assert!(wait(pair.caption(mark)).is_ok());
    }
    assert_eq!(pair.encoded()[1], [2, 3, 4]);
    go_on.send(()).unwrap();
    pair.end();
}

#[test]
fn the_loss_of_one_device_ends_the_engine() {
    let pair = Pair::start();
    pair.controls[1].fault(FakeCall::Encode, FakeMark::Image(2), FakeFault::DeviceLost);
    pair.controls.iter().for_each(FakeControl::hold);
    let replies = [1, 2].map(|mark| pair.caption(mark));
    pair.controls.iter().for_each(FakeControl::release);
    let [_, lost] = replies.map(wait);
    assert!(lost.is_err());
    wait(pair.handle.lost());
    assert_eq!(pair.handle.phase(), Phase::Down);
    pair.end();
}

#[test]
fn capacity_and_warm_up_count_for_every_worker() {
    let pair = Pair::start();
    let capacity = EngineSettings::default().capacity_rows;
    assert_eq!(pair.metrics.queue_capacity.get(), (2 * capacity).cast_signed() as i64);
    wait(pair.handle.warm_up()).unwrap();
    for control in &pair.controls {
        assert!(control.log().iter().any(|unit| unit.call == FakeCall::Step));
    }
    assert_eq!(pair.handle.devices().count(), 2);
    pair.end();
}
