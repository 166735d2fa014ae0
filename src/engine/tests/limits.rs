//! Tests of overload, deadlines, disconnecting clients and graceful shutdown (drain).

use std::time::Duration;

use crate::engine::testing::bench::*;
use crate::engine::testing::fake::{FakeCall, FakeMark};
use crate::engine::{EngineError, EngineSettings, Phase};
use crate::fairness::ClientId;
use crate::task::GenerationParams;

#[test]
fn a_full_queue_refuses_and_keeps_serving() {
    let bench = Bench::start(EngineSettings { capacity_rows: 4, ..EngineSettings::default() });
    bench.control.hold();
    let admission = bench.admit(4);
    let replies: Vec<_> = (0..4).map(|mark| admission.submit(CAPTION, caption(mark))).collect();
    let deadline = bench.clock.now() + Duration::from_secs(30);
    for _ in 0..100 {
        let refused = bench.handle.admit(ClientId::default(), 0, deadline).unwrap_err();
        assert!(matches!(refused, EngineError::Overloaded { .. }));
    }
    assert_eq!(bench.metrics.queue_rejected_total.with_label_values(&["full"]).get(), 100);
    bench.control.release();
    for reply in replies {
        assert!(wait(reply).is_ok());
    }
    assert!(wait(bench.admit(1).submit(CAPTION, caption(9))).is_ok());
}

#[test]
fn a_task_beyond_the_calls_reservation_is_refused() {
    let bench = Bench::start(EngineSettings::default());
    let admission = bench.admit(2);
    let refused = wait(admission.submit(CAPTION, caption_with(1, beams(3, 1))));
    assert_eq!(refused, Err(EngineError::TooManyRows { rows: 3, capacity: 2 }));
    assert!(wait(admission.submit(CAPTION, caption_with(1, beams(2, 1)))).is_ok());
}

#[test]
fn a_task_past_its_deadline_is_dropped_before_the_next_unit() {
    let bench = Bench::start(EngineSettings::default());
    bench.control.hold();
    let busy = bench.admit(1);
    let running = busy.submit(CAPTION, caption(1));
    bench.control.wait_until_held();
    let hasty = bench.admit_for(1, Duration::from_secs(2));
    let late = hasty.submit(CAPTION, caption(2));
    bench.clock.advance(Duration::from_secs(3));
    bench.control.release();
    assert_eq!(wait(late), Err(EngineError::DeadlineExceeded));
    assert!(wait(running).is_ok());
    let started = |mark| {
        let marked = |marks: &Vec<FakeMark>| marks.contains(&FakeMark::Image(mark));
        bench.control.log().iter().any(|unit| unit.items.iter().any(marked))
    };
    assert!(started(1) && !started(2));
}

#[test]
fn a_running_group_stops_at_its_deadline() {
    let bench = Bench::start(EngineSettings::default());
    bench.control.set_text_length(20);
    bench.control.hold();
    let hasty = bench.admit_for(1, Duration::from_secs(2));
    let late = hasty.submit(CAPTION, caption(2));
    bench.control.pass(5);
    bench.control.wait_until_held();
    bench.clock.advance(Duration::from_secs(3));
    bench.control.release();
    assert_eq!(wait(late), Err(EngineError::DeadlineExceeded));
    // The log contains one vision batch, four steps, and the step that waited at the gate.
    assert_eq!(bench.control.log().len(), 6);
    assert_eq!(bench.control.open_groups(), 0);
}

#[test]
fn a_client_that_leaves_stops_the_work() {
    let bench = Bench::start(EngineSettings::default());
    bench.control.set_text_length(20);
    bench.control.hold();
    let admission = bench.admit(2);
    let gone = admission.submit(CAPTION, caption(1));
    bench.control.pass(5);
    bench.control.wait_until_held();
    drop(gone);
    bench.control.release();
    assert!(wait(admission.submit(CAPTION, caption(2))).is_ok());
    let steps = |mark| {
        let marked = |marks: &Vec<FakeMark>| marks.contains(&FakeMark::Image(mark));
        let log = bench.control.log();
        let steps = log.iter().filter(|unit| unit.call == FakeCall::Step);
        steps.filter(|unit| unit.items.iter().any(marked)).count()
    };
    assert_eq!(steps(1), 5);
    assert_eq!(steps(2), 20);
    assert_eq!(bench.metrics.queue_cancelled_total.get(), 1);
}

#[test]
fn a_reader_that_falls_behind_loses_its_task_and_blocks_no_other() {
    let bench = Bench::start(EngineSettings::default());
    bench.control.set_text_length(100);
    let admission = bench.admit(2);
    let long = caption_with(1, GenerationParams::greedy(100));
    let (reply, stream) = admission.submit_streaming(CAPTION, long);
    assert_eq!(wait(reply), Err(EngineError::SlowReader));
    drop(stream);
    assert!(wait(admission.submit(CAPTION, caption(2))).is_ok());
}

#[test]
fn draining_finishes_what_was_admitted_and_admits_nothing() {
    let bench = Bench::start(EngineSettings::default());
    bench.control.hold();
    let admission = bench.admit(2);
    let running = admission.submit(CAPTION, caption(1));
    bench.control.wait_until_held();
    bench.handle.drain();
    assert_eq!(bench.handle.phase(), Phase::Draining);
    let deadline = bench.clock.now() + Duration::from_secs(30);
    assert_eq!(
        bench.handle.admit(ClientId::default(), 0, deadline).unwrap_err(),
        EngineError::ShuttingDown
    );
    // The call was admitted before the drain, so its second task still runs.
    let second = admission.submit(CAPTION, caption(2));
    bench.control.release();
    assert!(wait(running).is_ok() && wait(second).is_ok());
    drop(admission);
    wait(bench.handle.drained());
    assert_eq!(bench.handle.rows(), 0);
}

#[test]
fn clients_on_many_threads_that_come_and_go_while_draining_begins_all_get_one_outcome() {
    let bench = Bench::start(EngineSettings { capacity_rows: 64, ..EngineSettings::default() });
    let deadline = bench.clock.now() + Duration::from_secs(30);
    let outcomes: usize = std::thread::scope(|scope| {
        let client = |thread: usize| {
            let handle = bench.handle.clone();
            scope.spawn(move || {
                let mut outcomes = 0;
                for round in 0..60 {
                    if thread == 0 && round == 40 {
                        handle.drain();
                    }
                    let Ok(mut admission) = handle.admit(ClientId::default(), 0, deadline) else {
                        continue;
                    };
                    if admission.reserve(3, 3).is_err() {
                        continue;
                    }
                    let image = |place: usize| ((thread * round + place) % 7) as u8;
                    let mut replies: Vec<_> = (0..3)
                        .map(|place| admission.submit(CAPTION, caption(image(place))))
                        .collect();
                    // In one round out of three a client drops one reply early.
                    replies.truncate(3 - round % 3 / 2);
                    for reply in replies {
                        assert!(wait(reply).is_ok());
                        outcomes += 1;
                    }
                }
                outcomes
            })
        };
        let clients: Vec<_> = (0..8).map(client).collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    wait(bench.handle.drained());
    assert!(outcomes > 0);
    assert_eq!(bench.handle.phase(), Phase::Draining);
}

#[test]
fn the_end_of_the_drain_time_ends_every_task() {
    let bench = Bench::start(EngineSettings::default());
    bench.control.hold();
    let admission = bench.admit(9);
    let replies: Vec<_> = (0..8).map(|mark| admission.submit(CAPTION, caption(mark))).collect();
    bench.control.wait_until_held();
    bench.handle.drain();
    bench.handle.abort();
    bench.control.release();
    for reply in replies {
        assert_eq!(wait(reply), Err(EngineError::ShuttingDown));
    }
    assert_eq!(wait(admission.submit(CAPTION, caption(9))), Err(EngineError::ShuttingDown));
    assert_eq!(bench.control.log().len(), 1);
    drop(admission);
    wait(bench.handle.drained());
}

#[test]
fn a_wait_that_is_too_long_by_measurement_is_refused() {
    let max_queue_wait = Duration::from_secs(3);
    let bench = Bench::start(EngineSettings { max_queue_wait, ..EngineSettings::default() });
    let (second, image) = (Duration::from_secs(1), Duration::from_millis(900));
    bench.control.set_costs(&bench.clock, Duration::ZERO, image, Duration::from_millis(10));
    // The cost is now measured: nearly a second per image.
    assert!(wait(bench.admit(1).submit(CAPTION, caption(100))).is_ok());
    bench.control.hold();
    let admissions: Vec<_> = (0..3).map(|_| bench.admit(1)).collect();
    let captions = admissions.iter().zip(0..);
    let replies: Vec<_> =
        captions.map(|(admission, mark)| admission.submit(CAPTION, caption(mark))).collect();
    let deadline = bench.clock.now() + Duration::from_secs(30);
    let mut newcomer = bench.handle.admit(ClientId::default(), 0, deadline).unwrap();
    let EngineError::Overloaded { retry_after } = newcomer.reserve(1, 1).unwrap_err() else {
        panic!("refused for another reason")
    };
    assert!((4..=6).contains(&retry_after.as_secs()), "{retry_after:?}");
    bench.control.release();
    for reply in replies {
        assert!(wait(reply).is_ok());
    }
    drop((admissions, newcomer));
    let mut admission =
        bench.handle.admit(ClientId::default(), 0, bench.clock.now() + 5 * second).unwrap();
    let refused = admission.reserve(8, 8).unwrap_err();
    assert!(matches!(refused, EngineError::TooLargeForDeadline { .. }), "{refused}");
}
