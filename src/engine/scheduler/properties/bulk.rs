//! Bulk work runs behind interactive work, but always moves.

use super::*;

const LONG: Duration = Duration::from_secs(100_000);

fn roomy() -> EngineSettings {
    EngineSettings {
        linger: Duration::ZERO,
        max_batch_images: 4,
        max_batch_rows: 16,
        max_batch_tokens: 1000,
        max_pinned_feature_bytes: 1000 * BYTES,
        max_kv_bytes: 20 * KV,
        ..settings()
    }
}

fn bulk(client: u64, number: u64) -> CallId {
    CallId { client: ClientId(client).bulk(), number }
}

fn images(image: u64) -> FeatureKey {
    key(0, (image % 200) as u8)
}

const CAPTION: Need = Need::Group { beams: 1, steps: 4, tokens: 1 };

#[test]
fn a_single_call_goes_before_all_bulk_work_in_both_stages() {
    for need in [CAPTION, Need::Rows { count: 1, tokens: 10 }] {
        let mut world = SimulatedWorker::new(roomy());
        for number in 0..150 {
            world.submit_as(bulk(number % 3, number), images(number), need, LONG);
        }
        for _ in 0..40 {
            world.turn(|_| MILLI);
        }
        let task = world.submit_as(lone(900), images(199), need, LONG);
        let mut turns = 0;
        while !world.outcomes.contains_key(&task) {
            turns += 1;
            // Its image and its steps, each after a unit of the other stage, and the unit that may be owed to bulk work.
            assert!(turns <= 2 * (1 + 4) + 2, "{need:?}: it waits for bulk work");
            world.turn(|_| MILLI);
        }
    }
}

#[test]
fn bulk_work_gets_a_twentieth_while_interactive_work_fills_every_unit() {
    for need in [CAPTION, Need::Rows { count: 1, tokens: 90 }] {
        let unit_time = Some(4 * MILLI);
        let settings = EngineSettings { max_batch_tokens: 100, unit_time, ..roomy() };
        let mut world = SimulatedWorker::new(settings);
        // The open tasks, interactive and of bulk work, and how many of each were answered.
        let (mut number, mut open, mut answered) = (0, [Vec::new(), Vec::new()], [0, 0]);
        while answered[0] + answered[1] < 800 {
            for (class, most) in [(0, 40), (1, 20)] {
                while open[class].len() < most {
                    number += 1;
                    let client = ClientId(number % 4);
                    let client = if class == 0 { client } else { client.bulk() };
                    let call = CallId { client, number };
                    open[class].push(world.submit_as(call, images(number), need, LONG));
                }
                let before = open[class].len();
                open[class].retain(|task| !world.outcomes.contains_key(task));
                answered[class] += before - open[class].len();
            }
            number += 1;
            assert!(number < 20_000 && world.turn(|_| MILLI), "{need:?}: {answered:?}");
        }
        assert!((32..=120).contains(&answered[1]), "{need:?}: {answered:?}");
    }
}

#[test]
fn rows_of_bulk_work_gather_while_images_wait() {
    let mut world = SimulatedWorker::new(EngineSettings { max_kv_bytes: u64::MAX, ..roomy() });
    for number in 0..60 {
        world.submit_as(bulk(1, number), images(number), CAPTION, LONG);
    }
    let mut steps = Vec::new();
    while world.outcomes.len() < 60 {
        let rows = std::cell::Cell::new(None);
        world.turn(|work| {
            if let UnitWork::Step { groups, .. } = work {
                rows.set(Some(groups.len()));
            }
            // An image takes far longer than a step.
            if let UnitWork::Encode { images, .. } = work {
                50 * MILLI * images.len() as u32
            } else {
                MILLI
            }
        });
        steps.extend(rows.get());
    }
    let mean = steps.iter().sum::<usize>() as f64 / steps.len() as f64;
    assert!(mean > 6.0, "{mean} rows in a step: {steps:?}");
}
