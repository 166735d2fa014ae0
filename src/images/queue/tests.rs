//! Tests which job is next, how long a new call would wait, and what the queue learns from jobs that ended.

use super::*;

pub(in crate::images) fn call(client: u64, number: u64) -> CallId {
    CallId { client: ClientId(client), number }
}

/// Returns the id of the only call of a client.
pub(in crate::images) fn lone(number: u64) -> CallId {
    call(number, number)
}

const SECOND: Duration = Duration::from_secs(1);

/// A job of a million pixels; the flag says whether it still has waiters.
struct Idle(bool);

const MEGAPIXEL: u64 = 1_000_000;

impl Job for Idle {
    fn is_wanted(&self) -> bool {
        self.0
    }

    fn work(&self) -> u64 {
        MEGAPIXEL
    }

    fn run(self: Box<Self>) -> JobOutcome {
        JobOutcome::Completed
    }
}

fn push(queue: &mut Queue, lane: Lane, call: CallId) -> bool {
    queue.push(Box::new(Idle(true)), lane, call).is_ok()
}

/// Reports to the queue that a job of the lane ran for `took`.
fn learn(queue: &mut Queue, lane: Lane, took: Duration, done: JobOutcome) {
    let began = Instant::now();
    let client = ClientId(1);
    queue.ended(
        Running { lane, client, began, work: MEGAPIXEL as f64, charged: 0.0 },
        began + took,
        done,
    );
}

/// Returns a queue that has learned that hashing takes a second and decoding two seconds per megapixel.
fn known() -> Queue {
    let work = MEGAPIXEL as f64;
    let means = Queue { hash_seconds: 1.0, decode_seconds: 2.0, ..Queue::new(512) };
    Queue { decode_work: work, typical_work: work, ..means }
}

/// Returns the estimated wait of a new client's call with one file.
fn estimated_wait(queue: &Queue, threads: usize, now: Instant) -> Duration {
    queue.estimated_wait(lone(99), 1, threads, now)
}

#[test]
fn the_estimated_wait_is_the_mean_time_of_the_jobs_ahead_divided_by_the_threads() {
    let (mut queue, now) = (Queue::new(9), Instant::now());
    push(&mut queue, Lane::Decodes, lone(1));
    assert_eq!(estimated_wait(&queue, 1, now), Duration::ZERO, "nothing is known yet");
    learn(&mut queue, Lane::Decodes, SECOND * 2, JobOutcome::Completed);
    learn(&mut queue, Lane::Hashes, SECOND, JobOutcome::Completed);
    assert_eq!(estimated_wait(&queue, 1, now), SECOND * 2);
    push(&mut queue, Lane::Hashes, lone(2));
    assert_eq!(estimated_wait(&queue, 1, now), SECOND * 4, "of others no more than the own work");
    assert_eq!(estimated_wait(&queue, 2, now), SECOND * 2);
    learn(&mut queue, Lane::Decodes, SECOND, JobOutcome::Completed);
    assert!(estimated_wait(&queue, 1, now) < SECOND * 4, "the average follows");
}

#[test]
fn other_calls_delay_a_call_by_one_turn_for_each_of_its_files() {
    let (mut queue, now) = (known(), Instant::now());
    for _ in 0..64 {
        push(&mut queue, Lane::Decodes, call(1, 1));
    }
    assert_eq!(estimated_wait(&queue, 1, now), SECOND * 2, "one turn of the batch");
    assert_eq!(
        queue.estimated_wait(call(1, 2), 1, 1, now),
        SECOND * 2,
        "also for its own client's calls"
    );
    for number in 2..12 {
        push(&mut queue, Lane::Decodes, call(1, number));
    }
    assert_eq!(estimated_wait(&queue, 1, now), SECOND * 2, "many calls of one client are one turn");
    assert_eq!(
        queue.estimated_wait(call(1, 99), 1, 1, now),
        SECOND * 22,
        "except for their own client"
    );
    assert_eq!(queue.estimated_wait(lone(99), 3, 1, now), SECOND * 6, "three files, three turns");
}

#[test]
fn small_pictures_of_one_client_do_not_wait_for_the_large_ones_of_another() {
    struct Sized(u64);
    impl Job for Sized {
        fn work(&self) -> u64 {
            self.0
        }

        fn run(self: Box<Self>) -> JobOutcome {
            JobOutcome::Completed
        }
    }
    let (mut queue, now) = (Queue::new(99), Instant::now());
    let mut push = |megapixels: u64, call| {
        assert!(queue.push(Box::new(Sized(megapixels * MEGAPIXEL)), Lane::Decodes, call).is_ok());
    };
    (0..10).for_each(|_| push(50, lone(1)));
    (0..20).for_each(|number| push(1, call(2, number)));
    let order: Vec<u64> =
        std::iter::from_fn(|| queue.next(now)).map(|(job, _)| job.work() / MEGAPIXEL).collect();
    // The first large picture is taken first. Together, the twenty small pictures are less work than the large one, so
    // they are next.
    assert_eq!(order[..21], [[50].as_slice(), &[1; 20]].concat());
    assert_eq!(order.len(), 30);
}

#[test]
fn a_decode_that_takes_longer_than_it_said_is_paid_for() {
    let (mut queue, now) = (known(), Instant::now());
    for client in [1, 2, 1, 2, 2] {
        push(&mut queue, Lane::Decodes, lone(client));
    }
    let mut next = |took| {
        let (_, running) = queue.next(now).unwrap();
        queue.ended(running, now + took, JobOutcome::Completed);
        running.client
    };
    assert_eq!(next(SECOND * 60), ClientId(1));
    let order: Vec<ClientId> = (0..4).map(|_| next(SECOND * 2)).collect();
    assert_eq!(order, [2, 2, 2, 1].map(ClientId));
}

#[test]
fn a_wrong_expectation_is_made_good_at_the_end_of_the_decode() {
    // A small picture has taught the queue next to nothing when two clients send large ones.
    let (mut queue, now) = (Queue::new(9), Instant::now());
    let (lane, client) = (Lane::Decodes, ClientId(3));
    let small = Running { lane, client, began: now, work: LEAST_WORK, charged: 0.0 };
    queue.ended(small, now + Duration::from_micros(2), JobOutcome::Completed);
    for client in [1, 2, 2, 2, 2, 1] {
        push(&mut queue, Lane::Decodes, lone(client));
    }
    let mut next = |took| {
        let (_, running) = queue.next(now).unwrap();
        queue.ended(running, now + took, JobOutcome::Completed);
        running.client
    };
    let order: Vec<ClientId> = (0..6).map(|_| next(SECOND)).collect();
    assert_eq!(order, [1, 2, 1, 2, 2, 2].map(ClientId), "equal times, equal turns");
}

#[test]
fn a_client_that_fills_the_queue_leaves_room_for_others() {
    let mut queue = Queue::new(8);
    let mut fill = |client| {
        (0..99).take_while(|&number| push(&mut queue, Lane::Decodes, call(client, number))).count()
    };
    assert_eq!(fill(1), 8, "alone it may take everything");
    assert_eq!(fill(2), 2, "a quarter more");
    assert_eq!(fill(1), 0);
    queue.close();
    assert!(queue.next(Instant::now()).is_none());
}

#[test]
fn files_that_are_refused_do_not_bring_the_estimate_down() {
    let (mut queue, now) = (Queue::new(9), Instant::now());
    let broken = Duration::from_micros(50);
    learn(&mut queue, Lane::Decodes, broken, JobOutcome::EndedEarly);
    learn(&mut queue, Lane::Decodes, SECOND, JobOutcome::Completed);
    push(&mut queue, Lane::Decodes, lone(1));
    assert_eq!(
        estimated_wait(&queue, 1, now),
        SECOND,
        "the first that is decoded is believed in full"
    );
    for _ in 0..1000 {
        learn(&mut queue, Lane::Decodes, broken, JobOutcome::EndedEarly);
    }
    assert_eq!(estimated_wait(&queue, 1, now), SECOND);
    // Even a job that failed raises the estimate if it has occupied a thread for longer than the estimate.
    learn(&mut queue, Lane::Decodes, SECOND * 11, JobOutcome::EndedEarly);
    assert!(estimated_wait(&queue, 1, now) > SECOND * 5);
}

#[test]
fn a_file_costs_by_its_work_and_small_ones_do_not_change_what_a_pixel_costs() {
    struct Large;
    impl Job for Large {
        fn work(&self) -> u64 {
            50 * MEGAPIXEL
        }

        fn run(self: Box<Self>) -> JobOutcome {
            JobOutcome::Completed
        }
    }
    let (mut queue, now) = (known(), Instant::now());
    assert!(queue.push(Box::new(Large), Lane::Decodes, call(99, 1)).is_ok());
    assert_eq!(estimated_wait(&queue, 1, now), SECOND * 100);
    for _ in 0..1000 {
        let began = Instant::now();
        let (lane, client) = (Lane::Decodes, ClientId(1));
        let small = Running { lane, client, began, work: LEAST_WORK, charged: 0.0 };
        queue.ended(small, began + Duration::from_micros(50), JobOutcome::Completed);
    }
    let seconds = estimated_wait(&queue, 1, now).as_secs_f64();
    assert!((5.0..100.0).contains(&seconds), "{seconds}");
}

#[test]
fn the_fixed_cost_of_a_small_picture_says_nothing_about_the_pixels_of_a_large_one() {
    let took = Duration::from_micros(800);
    let queue_after = |small: u32| {
        let mut queue = Queue::new(9);
        for _ in 0..small {
            let (began, lane, client) = (Instant::now(), Lane::Decodes, ClientId(1));
            let job = Running { lane, client, began, work: LEAST_WORK, charged: 0.0 };
            queue.ended(job, began + took, JobOutcome::Completed);
        }
        queue
    };
    let queue = queue_after(1);
    assert!(
        (queue.decode_time(LEAST_WORK) - 0.0008).abs() < 1e-9,
        "another small one as the first"
    );
    // 99 of 100 parts of a megapixel are assumed to take 10 ns per pixel: 0.8 ms + 9.9 ms per megapixel.
    let seconds = queue.decode_time(128.0 * MEGAPIXEL as f64);
    assert!((seconds - 128.0 * 0.0107).abs() < 1e-6, "{seconds}");
    // Between the two, a larger picture never has the shorter estimate.
    let estimates: Vec<f64> =
        (1..500).map(|n| queue.decode_time(f64::from(n) * LEAST_WORK)).collect();
    assert!(estimates.is_sorted(), "{estimates:?}");
    let seconds = queue_after(1000).decode_time(MEGAPIXEL as f64);
    assert!((seconds - 0.08).abs() < 1e-4, "what was measured over enough work holds: {seconds}");
}

#[test]
fn what_runs_counts_with_the_rest_of_its_time_where_no_thread_is_free() {
    let (mut queue, now) = (known(), Instant::now());
    assert_eq!(estimated_wait(&queue, 1, now), Duration::ZERO, "nothing waits and nothing runs");
    push(&mut queue, Lane::Decodes, lone(1));
    push(&mut queue, Lane::Hashes, lone(1));
    let (_, hash) = queue.next(now).unwrap();
    let (_, decode) = queue.next(now).unwrap();
    assert_eq!((hash.lane, decode.lane), (Lane::Hashes, Lane::Decodes));
    assert_eq!(estimated_wait(&queue, 2, now), SECOND * 5 / 2);
    assert_eq!(estimated_wait(&queue, 3, now), Duration::ZERO, "a third thread would be free");
    assert_eq!(estimated_wait(&queue, 2, now + SECOND), SECOND * 3 / 2);
    queue.ended(hash, now + SECOND, JobOutcome::Completed);
    assert_eq!(estimated_wait(&queue, 1, now + SECOND), SECOND);
    assert_eq!(
        estimated_wait(&queue, 1, now + SECOND * 7),
        SECOND * 7,
        "it overruns: as long again"
    );
    queue.ended(decode, now + SECOND * 2, JobOutcome::Completed);
    assert_eq!(estimated_wait(&queue, 1, now), Duration::ZERO, "an idle pool takes whatever comes");
}

#[test]
fn jobs_that_no_call_wants_any_more_are_removed() {
    let mut queue = Queue::new(2);
    for lane in [Lane::Hashes, Lane::Decodes] {
        assert!(queue.push(Box::new(Idle(false)), lane, lone(1)).is_ok());
    }
    assert!(!push(&mut queue, Lane::Decodes, lone(1)), "full");
    assert_eq!(queue.take_unwanted().len(), 2);
    assert!(push(&mut queue, Lane::Decodes, lone(1)));
    assert_eq!(queue.take_unwanted().len(), 0);
    assert!(queue.next(Instant::now()).is_some());
    assert!(queue.next(Instant::now()).is_none());
}

#[test]
fn bulk_work_waits_for_other_work_but_gets_a_twentieth_of_the_time() {
    let mut queue = known();
    let bulk = CallId { client: ClientId(7).bulk(), number: 7 };
    for _ in 0..600 {
        // The capacity of the queue does not limit bulk work; admission control does.
        assert!(push(&mut queue, Lane::Decodes, bulk));
    }
    assert!((0..400).all(|number| push(&mut queue, Lane::Decodes, call(1 + number % 2, number))));
    let (mut now, mut of_bulk) = (Instant::now(), 0);
    for _ in 0..200 {
        let (_, running) = queue.next(now).unwrap();
        of_bulk += usize::from(running.client.is_bulk());
        now += 2 * SECOND;
        queue.ended(running, now, JobOutcome::Completed);
    }
    assert!((8..=11).contains(&of_bulk), "{of_bulk} of 200");
    // Others do not wait for it.
    let wait = estimated_wait(&queue, 1, now);
    assert!(wait <= 5 * SECOND, "{wait:?}");
}

#[test]
fn a_decode_that_several_clients_wait_for_runs_at_the_first_turn_of_any() {
    let (mut queue, now) = (known(), Instant::now());
    let bulk = |number| CallId { client: ClientId(1).bulk(), number };
    let mut ids = Vec::new();
    for number in 0..3 {
        let pushed = queue.push(Box::new(Idle(true)), Lane::Decodes, bulk(number));
        ids.push(pushed.ok().unwrap());
    }
    push(&mut queue, Lane::Decodes, lone(2));
    queue.join(ids[2], lone(3));
    queue.join(ids[2], lone(3));
    // Bulk work has a turn after the first, very long, decode. Its last decode runs in the turn of client 3.
    let clients: Vec<ClientId> = (0..4).map(|_| queue.next(now).unwrap().1.client).collect();
    let bulk = ClientId(1).bulk();
    assert_eq!(clients, [ClientId(2), bulk, ClientId(3), bulk]);
    assert!(queue.next(now).is_none(), "each job ran once");
    assert_eq!(queue.bulk_jobs, 0);
    // The number of a job that has started means nothing any more.
    queue.join(ids[2], lone(3));
    assert!(queue.next(now).is_none());
}
