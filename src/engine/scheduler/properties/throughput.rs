//! Predicts the throughput of a served model from measured costs, without running it: clients that send captions one after
//! another, on the simulated worker. `docs/performance.md` compares the prediction with a server.

use super::*;

/// Costs of a base model in bf16 on two cores of an AMD EPYC (Zen 4), 2026-11-27: seconds per image, and seconds per step for
/// these numbers of rows. Between them, the line counts.
const IMAGE: f64 = 0.297;
const STEPS: [(f64, f64); 7] = [
    (1.0, 0.0101),
    (2.0, 0.0108),
    (4.0, 0.0120),
    (8.0, 0.0190),
    (12.0, 0.0299),
    (16.0, 0.0354),
    (24.0, 0.0495),
];

/// Number of tokens of a caption.
const TOKENS: usize = 20;

/// What a server would reach.
struct Prediction {
    /// Captions per second.
    rate: f64,
    /// Median time of a caption, in seconds.
    median: f64,
    /// Longest time between two steps of a caption, in seconds.
    longest_pause: f64,
}

fn step_seconds(rows: usize) -> f64 {
    let rows = rows as f64;
    let place =
        STEPS.iter().position(|&(known, _)| known >= rows).unwrap_or(STEPS.len() - 1).max(1);
    let ((low, before), (high, after)) = (STEPS[place - 1], STEPS[place]);
    before + (after - before) * (rows - low) / (high - low)
}

fn measured(work: &UnitWork) -> Duration {
    Duration::from_secs_f64(match work {
        UnitWork::Encode { images, .. } => IMAGE * images.len() as f64,
        UnitWork::SinglePass { .. } => 0.01,
        UnitWork::Step { groups, .. } => step_seconds(groups.len()),
    })
}

/// Predicts what this many clients get, each of which sends its next picture when it has its caption, beside `others` that
/// do the same for scores.
fn predict(clients: u64, others: u64, gather_rows: usize) -> Prediction {
    let mut world = SimulatedWorker::new(EngineSettings {
        gather_rows,
        max_batch_images: 32,
        max_batch_rows: 256,
        max_batch_tokens: 4096,
        max_pinned_feature_bytes: u64::MAX,
        max_kv_bytes: u64::MAX,
        linger: Duration::ZERO,
        ..settings()
    });
    let caption = Need::Group { beams: 1, steps: TOKENS, tokens: 1 };
    let score = Need::Rows { count: 1, tokens: 10 };
    let start = world.now;
    let (mut sent, mut image) = (BTreeMap::new(), 0_u32);
    let (mut times, mut longest_pause) = (Vec::new(), 0.0_f64);
    let mut last_step: Option<Instant> = None;
    let mut idle: Vec<u64> = (0..clients + others).collect();
    while world.now - start < Duration::from_secs(200) {
        for client in idle.drain(..) {
            image += 1;
            let picture = numbered_key(0, image);
            let need = if client < clients { caption } else { score };
            let task = world.submit(client, picture, need, Duration::from_secs(600));
            world.scheduler.tasks.get_mut(&task).unwrap().traits.is_streamed = false;
            sent.insert(task, (client, world.now));
        }
        let joined = world.items.iter().filter(|(_, item)| item.joined);
        let before: Vec<(ItemId, usize)> = joined.map(|(&id, item)| (id, item.steps)).collect();
        let began = world.now;
        world.turn(measured);
        let stepped = |(id, steps): &(ItemId, usize)| {
            world.items.get(id).is_none_or(|item| item.steps != *steps)
        };
        if before.is_empty() {
            last_step = None;
        } else if before.iter().any(stepped) {
            if let Some(last) = last_step {
                longest_pause = longest_pause.max((began - last).as_secs_f64());
            }
            last_step = Some(world.now);
        }
        let done = |(task, _): &(&TaskId, &(u64, Instant))| world.outcomes.contains_key(*task);
        let done: Vec<TaskId> = sent.iter().filter(done).map(|(task, _)| *task).collect();
        for task in done {
            let (client, at) = sent.remove(&task).unwrap();
            idle.push(client);
            // The first half minute is the start of the load.
            if client < clients && world.now - start > Duration::from_secs(30) {
                times.push((world.now - at).as_secs_f64());
            }
        }
    }
    times.sort_by(f64::total_cmp);
    Prediction { rate: times.len() as f64 / 170.0, median: times[times.len() / 2], longest_pause }
}

#[test]
fn gathering_raises_the_throughput_of_many_clients_and_leaves_few_alone() {
    let mut lines = Vec::new();
    for clients in [1, 2, 4, 8, 16, 32] {
        let [at_once, gathered] = [1, 8].map(|rows| predict(clients, 0, rows));
        lines.push(format!(
            "{clients} clients: {:.2} -> {:.2} captions/s, median {:.2} -> {:.2} s, longest pause {:.2} -> {:.2} s",
            at_once.rate, gathered.rate, at_once.median, gathered.median, at_once.longest_pause, gathered.longest_pause,
        ));
        if clients >= 4 {
            assert!(gathered.rate > 1.12 * at_once.rate, "{lines:#?}");
            assert!(gathered.median < at_once.median, "{lines:#?}");
        }
        if clients < 4 {
            assert!((gathered.rate - at_once.rate).abs() < 1e-9, "{lines:#?}");
        }
        // Two images for which rows wait, and one that the shares of the stages choose.
        assert!(gathered.longest_pause < 3.0 * IMAGE + 0.05, "{lines:#?}");
    }
    println!("{}", lines.join("\n"));
}

#[test]
fn captions_beside_many_other_calls_are_not_slower() {
    for (clients, others) in [(1, 15), (4, 12), (8, 24)] {
        let [at_once, gathered] = [1, 8].map(|rows| predict(clients, others, rows));
        let (before, after) = (at_once.median, gathered.median);
        println!("{clients} beside {others}: median {before:.2} -> {after:.2} s");
        assert!(after < 1.02 * before, "{clients} beside {others}: {before} s, {after} s");
    }
}
