//! Tests of admission control: capacity in rows and bytes, estimated waits, deadlines, and recovery from bad estimates.

use super::estimate::WorkAhead;
use super::*;
use crate::telemetry::metrics::Metrics;

fn admission(settings: &EngineSettings) -> (Arc<AdmissionController>, Arc<Metrics>, Instant) {
    let metrics = Arc::new(Metrics::try_new().unwrap());
    (
        AdmissionController::new(settings, Arc::clone(&metrics), CallNumbers::default()),
        metrics,
        Instant::now(),
    )
}

fn small() -> EngineSettings {
    EngineSettings {
        capacity_rows: 10,
        capacity_bytes: 1000,
        max_queue_wait: Duration::from_secs(3),
        ..EngineSettings::default()
    }
}

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_reservation_is_released_when_call_and_tasks_are_gone() {
    let (admission, metrics, now) = admission(&small());
    let reservation = admission.admit(ClientId::default(), 400, now + SOON, now).unwrap();
    assert_eq!((metrics.queue_rows.get(), metrics.queue_bytes.get()), (0, 0), "nothing came yet");
    reservation.reserve(6, 2, SOON).unwrap();
    reservation.reserve_bytes(500).unwrap();
    assert_eq!((metrics.queue_rows.get(), metrics.queue_bytes.get()), (6, 500));
    let task = reservation.reserve_task(4, 1).unwrap();
    drop(reservation);
    assert_eq!((metrics.queue_rows.get(), metrics.queue_bytes.get()), (6, 500));
    drop(task);
    assert_eq!((metrics.queue_rows.get(), metrics.queue_bytes.get()), (0, 0));
    assert_eq!(admission.state().usage, Usage::default());
}

#[test]
fn a_finished_task_frees_its_rows_before_its_call_ends() {
    let (admission, metrics, now) = admission(&small());
    let reservation = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    reservation.reserve(6, 0, SOON).unwrap();
    drop(reservation.reserve_task(4, 0).unwrap());
    assert_eq!(metrics.queue_rows.get(), 2);
    assert!(matches!(
        reservation.reserve_task(3, 0),
        Err(EngineError::TooManyRows { rows: 3, capacity: 2 })
    ));
    drop(reservation);
    assert_eq!(admission.rows(), 0);
}

#[test]
fn a_full_queue_rejects_calls_and_reserves_nothing_for_them() {
    let (admission, metrics, now) = admission(&small());
    let first = admission.admit(ClientId::default(), 900, now + SOON, now).unwrap();
    first.reserve_bytes(900).unwrap();
    let overloaded = EngineError::Overloaded { retry_after: Duration::from_secs(1) };
    assert_eq!(admission.admit(ClientId::default(), 101, now + SOON, now).unwrap_err(), overloaded);
    first.reserve(9, 0, SOON).unwrap();
    let second = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    assert_eq!(second.reserve(2, 0, SOON).unwrap_err(), overloaded);
    second.reserve(1, 0, SOON).unwrap();
    assert_eq!(admission.admit(ClientId::default(), 0, now + SOON, now).unwrap_err(), overloaded);
    assert_eq!(
        second.reserve(11, 0, SOON).unwrap_err(),
        EngineError::TooManyRows { rows: 11, capacity: 10 }
    );
    assert_eq!(admission.rows(), 10);
    assert_eq!(metrics.queue_rejected_total.with_label_values(&["full"]).get(), 4);
}

fn measured() -> Estimates {
    Estimates {
        image: Some(1.0),
        unit_fixed: Some(0.05),
        unit_per_token: Some(0.01),
        row_tokens: Some(20.0),
        row_units: Some(20.0),
        ..Estimates::default()
    }
}

#[test]
fn a_long_wait_is_refused_with_the_time_the_queue_needs() {
    let (admission, _, now) = admission(&small());
    admission.publish(measured());
    let reservation = || {
        let reservation = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
        reservation.reserve(1, 1, SOON).unwrap();
        reservation
    };
    let mut reservations: Vec<CallReservation> = (0..3).map(|_| reservation()).collect();
    // Three images of a second each are queued before the newcomer's image. The newcomer may wait three seconds, but
    // the estimated wait is multiplied by the safety factor.
    let newcomer = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    let refused = newcomer.reserve(1, 1, SOON).unwrap_err();
    assert_eq!(refused, EngineError::Overloaded { retry_after: Duration::from_secs(5) });
    reservations.pop();
    assert!(newcomer.reserve(1, 1, SOON).is_ok());
}

#[test]
fn a_large_call_delays_a_single_one_by_one_turn_only() {
    let (admission, _, now) = admission(&small());
    admission.publish(measured());
    let large = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    large.reserve(8, 8, SOON).unwrap();
    let single = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    assert!(single.reserve(1, 1, SOON).is_ok());
    // Another large call would wait for eight turns.
    let refused = single.reserve(8, 8, SOON).unwrap_err();
    assert!(matches!(refused, EngineError::Overloaded { .. }), "{refused}");
    let mut task = large.reserve_task(8, 8).unwrap();
    (0..8).for_each(|_| task.record_cache_hit());
    drop(task);
    assert!(single.reserve(8, 8, SOON).is_ok());
}

#[test]
fn a_call_that_an_idle_server_cannot_finish_is_not_retryable() {
    let (admission, metrics, now) = admission(&small());
    admission.publish(measured());
    let reservation = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    let refused = reservation.reserve(8, 8, Duration::from_secs(5)).unwrap_err();
    assert!(matches!(refused, EngineError::TooLargeForDeadline { .. }), "{refused:?}");
    assert!(reservation.reserve(8, 2, Duration::from_secs(5)).is_ok());
    let late = reservation.reserve(8, 2, Duration::ZERO).unwrap_err();
    assert_eq!(late, EngineError::DeadlineExceeded);
    assert_eq!(metrics.queue_rejected_total.with_label_values(&["deadline"]).get(), 2);
}

#[test]
fn a_wait_beyond_the_deadline_is_refused_though_short() {
    let (admission, metrics, now) = admission(&small());
    admission.publish(measured());
    let first = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    first.reserve(2, 2, SOON).unwrap();
    let second = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    second.reserve(1, 1, SOON).unwrap();
    let third = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    let refused = third.reserve(1, 1, Duration::from_millis(2500)).unwrap_err();
    assert!(matches!(refused, EngineError::Overloaded { .. }));
    assert_eq!(metrics.queue_rejected_total.with_label_values(&["deadline"]).get(), 1);
}

#[test]
fn calls_whose_bodies_do_not_arrive_reserve_no_rows_and_delay_no_other_call() {
    let (admission, metrics, now) = admission(&small());
    admission.publish(measured());
    let silent: Vec<CallReservation> =
        (0..100).map(|_| admission.admit(ClientId(1), 1000, now + SOON, now).unwrap()).collect();
    for reservation in &silent {
        reservation.reserve_bytes(1).unwrap();
    }
    assert_eq!((metrics.queue_rows.get(), metrics.queue_bytes.get()), (0, 100));
    for client in [ClientId(1), ClientId(2)] {
        let reservation = admission.admit(client, 800, now + SOON, now).unwrap();
        reservation.reserve_bytes(800).unwrap();
        reservation.reserve(10, 1, SOON).unwrap();
    }
}

#[test]
fn a_client_with_many_calls_delays_another_by_one_turn_and_itself_by_all() {
    let (admission, _, now) = admission(&EngineSettings { capacity_rows: 100, ..small() });
    admission.publish(measured());
    let _rooms: Vec<CallReservation> = (0..8)
        .filter_map(|_| {
            let reservation = admission.admit(ClientId(1), 0, now + SOON, now).unwrap();
            reservation.reserve(1, 1, SOON).is_ok().then_some(reservation)
        })
        .collect();
    let own = admission.admit(ClientId(1), 0, now + SOON, now).unwrap();
    assert!(matches!(own.reserve(1, 1, SOON), Err(EngineError::Overloaded { .. })));
    let other = admission.admit(ClientId(2), 0, now + SOON, now).unwrap();
    assert!(other.reserve(1, 1, SOON).is_ok());
}

#[test]
fn a_client_that_has_taken_everything_leaves_a_part_to_others() {
    let (admission, _, now) = admission(&small());
    let all = admission.admit(ClientId(1), 0, now + SOON, now).unwrap();
    all.reserve(10, 0, SOON).unwrap();
    all.reserve_bytes(1000).unwrap();
    let own = admission.admit(ClientId(1), 0, now + SOON, now);
    assert!(matches!(own, Err(EngineError::Overloaded { .. })));
    let other = admission.admit(ClientId(2), 250, now + SOON, now).unwrap();
    other.reserve(2, 0, SOON).unwrap();
    other.reserve_bytes(250).unwrap();
    assert!(other.reserve(3, 0, SOON).is_err() && other.reserve_bytes(1).is_err());
}

/// Returns a queue of `rows` rows and nothing else.
fn rows(rows: usize) -> WorkAhead {
    WorkAhead { rows: rows as f64, ..WorkAhead::default() }
}

#[test]
fn a_stage_that_others_keep_at_work_slows_the_other_one_down() {
    let settings = EngineSettings::default();
    let wait = |queue: WorkAhead| measured().estimated_wait(&queue, &settings).as_secs_f64();
    // Two images of a second each with their two rows; no other work.
    let images = || WorkAhead {
        rows: 2.0,
        images: 2.0,
        vision_has_other_work: true,
        ..WorkAhead::default()
    };
    assert!(wait(images()) < 3.5, "{}", wait(images()));
    // If there are also rows that do not wait for images, the images get only half of the worker's time.
    assert!(wait(WorkAhead { text_has_other_work: true, ..images() }) >= 4.0);
    // Both queues hold more rows than fit into one unit. `alone` has no other work. `beside` has other work in both
    // stages, but its images are not scheduled before the call.
    let (alone, beside) = (
        rows(10),
        WorkAhead { text_has_other_work: true, vision_has_other_work: true, ..rows(10) },
    );
    let (alone, beside) = (wait(alone), wait(beside));
    assert!((beside - 2.0 * alone).abs() < 1e-6, "{alone} {beside}");
}

#[test]
fn rows_that_share_units_do_not_wait_for_each_other() {
    let settings = EngineSettings::default();
    // A unit takes 100 ms: a fixed part of 50 ms, and 5 tokens of 10 ms each.
    assert_eq!(measured().estimated_wait(&rows(5), &settings), Duration::ZERO);
    let wait = measured().estimated_wait(&rows(10), &settings).as_secs_f64();
    // Five rows wait until the five before them have finished: 20 units of 100 ms.
    assert!((wait - 2.0).abs() < 1e-6, "{wait}");
}

#[test]
fn draining_admits_nothing_but_lets_admitted_calls_go_on() {
    let (admission, metrics, now) = admission(&small());
    let reservation = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    admission.close();
    assert_eq!(
        admission.admit(ClientId::default(), 0, now + SOON, now).unwrap_err(),
        EngineError::ShuttingDown
    );
    assert!(reservation.reserve(3, 0, SOON).is_ok());
    assert_eq!(metrics.queue_rejected_total.with_label_values(&["draining"]).get(), 1);
}

/// Returns estimates with a bad measurement: an image takes longer than any deadline.
fn spoilt() -> Estimates {
    Estimates { image: Some(1000.0), ..measured() }
}

#[test]
fn an_idle_engine_admits_a_small_call_whatever_the_estimates_say() {
    let (admission, _, now) = admission(&small());
    admission.publish(Estimates { unit_fixed: Some(1000.0), ..spoilt() });
    let reservation = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    assert!(reservation.reserve(8, 1, SOON).is_ok());
    // Not `TooLargeForDeadline`: a call of one row cannot be split, and the estimate may soon be right again.
    let refused = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap_err();
    assert!(matches!(refused, EngineError::Overloaded { .. }), "{refused}");
    drop(reservation);
    assert!(
        admission
            .admit(ClientId::default(), 0, now + SOON, now)
            .unwrap()
            .reserve(1, 1, SOON)
            .is_ok()
    );
}

#[test]
fn one_image_is_admitted_beside_text_calls_so_that_its_cost_is_measured_again() {
    let (admission, _, now) = admission(&small());
    admission.publish(spoilt());
    let text = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    let image = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    assert!(image.reserve(1, 1, SOON).is_ok());
    let second = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    assert!(second.reserve(1, 1, SOON).is_err());
    drop(text);
}

#[test]
fn stale_estimates_do_not_refuse_a_large_call_on_an_idle_engine() {
    let (admission, _, now) = admission(&small());
    admission.publish(spoilt());
    let reservation = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    let refused = reservation.reserve(4, 4, SOON).unwrap_err();
    assert!(matches!(refused, EngineError::TooLargeForDeadline { .. }), "{refused}");
    admission.publish(Estimates { stale: true, ..spoilt() });
    assert!(reservation.reserve(4, 4, SOON).is_ok());
}

#[test]
fn a_text_call_does_not_wait_for_images() {
    let (admission, _, now) = admission(&small());
    admission.publish(measured());
    let reservations: Vec<CallReservation> = (0..3)
        .map(|_| {
            let reservation = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
            reservation.reserve(1, 1, SOON).unwrap();
            reservation
        })
        .collect();
    // The deadline is shorter than the time to encode one image.
    let text =
        admission.admit(ClientId::default(), 0, now + Duration::from_millis(500), now).unwrap();
    assert!(text.reserve(1, 0, Duration::from_millis(500)).is_ok());
    drop(reservations);
}

#[test]
fn a_call_that_alone_exceeds_its_deadline_is_too_large_however_long_the_queue() {
    let (admission, _, now) = admission(&small());
    admission.publish(measured());
    let first = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    first.reserve(4, 4, SOON).unwrap();
    let second = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    let refused = second.reserve(4, 4, Duration::from_secs(2)).unwrap_err();
    assert!(matches!(refused, EngineError::TooLargeForDeadline { .. }), "{refused}");
    let refused = second.reserve(4, 4, SOON).unwrap_err();
    assert!(matches!(refused, EngineError::Overloaded { .. }), "{refused}");
}

#[test]
fn images_count_by_the_recent_miss_rate_of_the_feature_cache() {
    // One second of encoding is queued before ten calls. The calls are admitted nevertheless, because their own images
    // are probably cached.
    let max_queue_wait = Duration::from_secs(10);
    let settings = EngineSettings { max_queue_wait, ..EngineSettings::default() };
    let (admission, _, now) = admission(&settings);
    let estimates = Estimates { unit_per_token: Some(0.001), ..measured() };
    admission.publish(Estimates { image_misses: Some(0.0), ..estimates });
    let new = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    new.reserve(1, 1, SOON).unwrap();
    let mut encoding = new.reserve_task(1, 1).unwrap();
    encoding.record_cache_miss();
    let cached: Vec<CallReservation> = (0..10)
        .map(|_| {
            let reservation = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
            reservation.reserve(1, 1, SOON).unwrap();
            reservation
        })
        .collect();
    drop((cached, encoding));
    // A call with 64 images that are probably cached is not too large. With 64 new images it would be.
    let many = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    assert!(many.reserve(64, 64, SOON).is_ok());
    drop(many);
    admission.publish(Estimates { image_misses: Some(1.0), ..estimates });
    let other = admission.admit(ClientId(2), 0, now + SOON, now).unwrap();
    let refused = other.reserve(64, 64, SOON).unwrap_err();
    assert!(matches!(refused, EngineError::TooLargeForDeadline { .. }), "{refused}");
}

#[test]
fn a_client_is_estimated_by_what_its_own_images_and_rows_have_cost() {
    // `admitted` returns how many of sixty calls are admitted at the same time. `shape` is the number of rows and of
    // images of each call.
    let settings = EngineSettings { capacity_rows: 1000, ..small() };
    let admitted = |shape: (usize, usize), learn: &dyn Fn(&mut TaskReservation)| {
        let (admission, _, now) = admission(&settings);
        admission.publish(Estimates { image_misses: Some(0.1), ..measured() });
        let first = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
        first.reserve(1, 1, SOON).unwrap();
        let mut task = first.reserve_task(1, 1).unwrap();
        (0..100).for_each(|_| learn(&mut task));
        drop(task);
        let calls = (0..60).map(|_| {
            let call = admission.admit(ClientId::default(), 0, now + SOON, now).ok()?;
            call.reserve(shape.0, shape.1, SOON).ok().map(|()| call)
        });
        calls.flatten().collect::<Vec<_>>().len()
    };
    let (image, rows) = ((1, 1), (8, 0));
    assert!(
        admitted(image, &|task| task.record_cache_miss())
            < admitted(image, &|task| task.record_cache_hit())
    );
    assert!(
        admitted(rows, &|task| task.record_row(200.0))
            < admitted(rows, &|task| task.record_row(1.0))
    );
}

#[test]
fn an_image_that_missed_the_cache_counts_in_full_until_it_is_encoded() {
    let (admission, _, now) = admission(&small());
    admission.publish(Estimates { image_misses: Some(0.0), ..measured() });
    let mut tasks: Vec<TaskReservation> = (0..3)
        .map(|_| {
            let reservation = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
            reservation.reserve(1, 1, SOON).unwrap();
            reservation.reserve_task(1, 1).unwrap()
        })
        .collect();
    let newcomer = admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    assert!(newcomer.reserve(1, 1, SOON).is_ok());
    tasks.iter_mut().for_each(TaskReservation::record_cache_miss);
    let refused = newcomer.reserve(1, 1, SOON).unwrap_err();
    assert!(matches!(refused, EngineError::Overloaded { .. }), "{refused}");
    let mut first = tasks.remove(0);
    first.record_encoded();
    drop(first);
    assert!(newcomer.reserve(1, 1, SOON).is_ok());
    drop(tasks);
    drop(newcomer);
    assert_eq!(admission.state().usage, Usage::default());
}

#[test]
fn estimates_follow_what_calls_have_really_waited() {
    let (admission, _, now) = admission(&small());
    admission.publish(measured());
    let call = || admission.admit(ClientId::default(), 0, now + SOON, now).unwrap();
    let first = call();
    first.reserve(1, 1, SOON).unwrap();
    let learner = call();
    learner.reserve(1, 1, SOON).unwrap();
    let task = learner.reserve_task(1, 1).unwrap();
    let passes = || call().reserve(1, 1, SOON).is_ok();
    assert!(passes());
    // The expected wait plus service time is about two seconds.
    (0..300).for_each(|_| task.record_answered(Duration::from_secs(6)));
    assert!(!passes());
    (0..3000).for_each(|_| task.record_answered(Duration::from_secs(2)));
    assert!(passes());
}
