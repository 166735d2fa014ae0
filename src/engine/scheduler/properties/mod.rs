//! Property tests of the scheduling policy, with a clock that the test advances. A small simulated worker submits
//! tasks, removes them, lets time pass and runs units. This file is longer than others because all properties are
//! checked on this one simulation.

mod bulk;
mod throughput;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::fairness::ClientId;
use crate::task::TowerId;
use crate::task::{ImageId, Preprocessing, Scope};

const BYTES: u64 = 10;
/// Bytes of cross-attention KV cache for an image; `ROW_KV` is the number of bytes for each row of a group.
const KV: u64 = 100;
const ROW_KV: u64 = 10;
const MILLI: Duration = Duration::from_millis(1);

fn key(tower: usize, image: u8) -> FeatureKey {
    FeatureKey {
        output: VisionOutput::last(TowerId(tower)),
        scope: Scope::EVERYONE,
        image: ImageId::from_digest([image; 32]),
        preprocessing: Preprocessing::bicubic(1, 1),
    }
}

/// Returns the key of one of many images for the tower.
fn numbered_key(tower: usize, number: u32) -> FeatureKey {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&number.to_le_bytes());
    FeatureKey { image: ImageId::from_digest(id), ..key(tower, 0) }
}

/// Returns the id of a client's only call. Client and call have the same number.
fn lone(call: u64) -> CallId {
    CallId { client: ClientId(call), number: call }
}

fn settings() -> EngineSettings {
    EngineSettings {
        max_batch_images: 3,
        max_batch_rows: 6,
        max_batch_tokens: 20,
        max_pinned_feature_bytes: 4 * BYTES,
        max_kv_bytes: 2 * KV + 8 * ROW_KV,
        linger: 5 * MILLI,
        ..EngineSettings::default()
    }
}

/// What a task needs once its image is encoded.
#[derive(Debug, Clone, Copy)]
enum Need {
    Group { beams: usize, steps: usize, tokens: usize },
    Rows { count: usize, tokens: usize },
}

#[derive(Debug, Clone)]
enum Op {
    Submit { call: u64, model: usize, image: u8, need: Need, deadline_ms: u64 },
    Leave(usize),
    Pass(u64),
    Run,
    Drain,
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TaskEnd {
    Answered,
    Left,
    Expired,
}

/// A row or group of a task. `joined` is true for a group that has taken a step.
#[derive(Debug)]
struct SimulatedItem {
    task: TaskId,
    image: FeatureKey,
    steps: usize,
    rows: usize,
    tokens: usize,
    joined: bool,
}

/// A simulated worker that checks every unit.
struct SimulatedWorker {
    scheduler: Scheduler,
    now: Instant,
    next: u64,
    waiting: BTreeMap<TaskId, (FeatureKey, Need)>,
    items: HashMap<ItemId, SimulatedItem>,
    deadlines: HashMap<TaskId, Instant>,
    outcomes: BTreeMap<TaskId, TaskEnd>,
    submitted: usize,
    started_images: HashSet<FeatureKey>,
}

impl SimulatedWorker {
    fn new(settings: EngineSettings) -> Self {
        Self {
            scheduler: Scheduler::new(settings, &[8, 8]),
            now: Instant::now(),
            next: 0,
            waiting: BTreeMap::new(),
            items: HashMap::new(),
            deadlines: HashMap::new(),
            outcomes: BTreeMap::new(),
            submitted: 0,
            started_images: HashSet::new(),
        }
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn submit(&mut self, call: u64, image: FeatureKey, need: Need, time: Duration) -> TaskId {
        self.submit_as(lone(call), image, need, time)
    }

    fn submit_as(&mut self, call: CallId, image: FeatureKey, need: Need, time: Duration) -> TaskId {
        let task = TaskId(self.id());
        self.submitted += 1;
        self.deadlines.insert(task, self.now + time);
        let decodes = matches!(need, Need::Group { .. }).then_some(ModelId(image.output.tower.0));
        let traits = TaskTraits { decodes, is_streamed: task.0.is_multiple_of(5) };
        self.scheduler.add_task(task, call, self.now + time, traits);
        self.waiting.insert(task, (image, need));
        self.scheduler.push_image(task, image, BYTES, self.now);
        task
    }

    fn pinned(&self) -> u64 {
        let held: HashSet<FeatureKey> = self.items.values().map(|item| item.image).collect();
        held.len() as u64 * BYTES
    }

    fn end(&mut self, task: TaskId, outcome: TaskEnd) {
        assert_eq!(self.outcomes.insert(task, outcome), None, "one outcome for {task:?}");
        self.waiting.remove(&task);
        let left = self.scheduler.remove_task(task);
        for item in &left.items {
            assert!(self.items.remove(item).is_some(), "{item:?} was known");
        }
        assert!(self.items.values().all(|item| item.task != task), "nothing of it remains");
    }

    /// Takes one turn of the worker: removes due tasks, then runs a unit. Returns false if nothing could run.
    fn turn(&mut self, elapsed: impl Fn(&UnitWork) -> Duration) -> bool {
        for task in self.scheduler.due(self.now) {
            self.end(task, TaskEnd::Expired);
        }
        match self.scheduler.decide(self.now, self.pinned()) {
            Decision::Idle => false,
            Decision::WaitUntil(at) => {
                assert!(at > self.now && at <= self.now + self.scheduler.settings.linger);
                self.now = at;
                true
            }
            Decision::Run(unit) => {
                self.check_limits(&unit.work);
                let elapsed = elapsed(&unit.work);
                self.now += elapsed;
                self.scheduler.record(&unit.work, elapsed, true);
                self.spread(unit.work);
                true
            }
        }
    }

    fn check_limits(&self, work: &UnitWork) {
        let limits = &self.scheduler.settings;
        match work {
            UnitWork::Encode { output, images } => {
                assert!(!images.is_empty() && images.len() <= limits.max_batch_images);
                assert!(images.iter().all(|image| image.output == *output));
                assert_eq!(images.iter().collect::<HashSet<_>>().len(), images.len());
                let bytes = self.pinned() + images.len() as u64 * BYTES;
                let alone = self.pinned() == 0 && images.len() == 1;
                assert!(alone || bytes <= limits.max_pinned_feature_bytes);
                for image in images {
                    assert!(self.waiting.values().any(|(waiting, _)| waiting == image));
                }
            }
            UnitWork::SinglePass { rows: items, .. } | UnitWork::Step { groups: items, .. } => {
                assert!(!items.is_empty());
                let of = |item: &ItemId| self.items.get(item).expect("the task is alive");
                let rows: usize = items.iter().map(|item| of(item).rows).sum();
                let tokens: usize = items.iter().map(|item| of(item).tokens).sum();
                let alone = items.len() == 1;
                assert!(alone || rows <= limits.max_batch_rows, "{rows} rows");
                assert!(alone || tokens <= limits.max_batch_tokens, "{tokens} tokens");
                for item in items {
                    assert!(self.deadlines[&of(item).task] > self.now, "not after its deadline");
                }
            }
        }
    }

    fn spread(&mut self, work: UnitWork) {
        match work {
            UnitWork::Encode { images, .. } => {
                for image in images {
                    self.started_images.insert(image);
                    self.image_ready(image);
                }
            }
            UnitWork::SinglePass { rows, .. } => {
                let mut tasks = BTreeSet::new();
                for row in rows {
                    tasks.insert(self.items.remove(&row).expect("a row runs once").task);
                }
                for task in tasks {
                    self.complete_task(task);
                }
            }
            UnitWork::Step { groups, joining, .. } => {
                let running = groups.len() - joining;
                for (place, group) in groups.iter().enumerate() {
                    let item = self.items.get_mut(group).expect("a group runs while it lives");
                    assert_eq!(item.joined, place < running, "a group joins once");
                    item.joined = true;
                    item.steps -= 1;
                    item.tokens = item.rows;
                    self.scheduler.set_tokens(*group, item.tokens);
                    if item.steps == 0 {
                        let task = item.task;
                        self.scheduler.finish(*group);
                        self.items.remove(group);
                        self.complete_task(task);
                    }
                }
                let joined = || self.items.values().filter(|item| item.joined);
                let images: HashSet<FeatureKey> = joined().map(|item| item.image).collect();
                let rows: usize = joined().map(|item| item.rows).sum();
                let kv = images.len() as u64 * KV + rows as u64 * ROW_KV;
                assert_eq!(self.scheduler.text.kv_bytes(), kv);
                // Clients without running groups may exceed the limit by a quarter.
                let most = self.scheduler.settings.max_kv_bytes;
                let most = crate::fairness::with_reserve(most);
                assert!(joined().count() <= 1 || kv <= most, "{kv} bytes of keys and values");
            }
        }
    }

    fn image_ready(&mut self, image: FeatureKey) {
        let tasks: Vec<(TaskId, Need)> = self
            .waiting
            .iter()
            .filter(|(_, (waiting, _))| *waiting == image)
            .map(|(&task, &(_, need))| (task, need))
            .collect();
        for (task, need) in tasks {
            self.waiting.remove(&task);
            let model = ModelId(image.output.tower.0);
            match need {
                Need::Group { beams: rows, steps, tokens } => {
                    let id = ItemId(self.id());
                    let item = SimulatedItem { task, image, steps, rows, tokens, joined: false };
                    self.items.insert(id, item);
                    let own_kv = rows as u64 * ROW_KV;
                    let image_kv = Some((image, KV));
                    let entry = GroupEntry { id, model, rows, tokens, image_kv, own_kv };
                    self.scheduler.push_group(task, entry, self.now);
                }
                Need::Rows { count, tokens } => {
                    for _ in 0..count {
                        let id = ItemId(self.id());
                        let item =
                            SimulatedItem { task, image, steps: 1, rows: 1, tokens, joined: false };
                        self.items.insert(id, item);
                        let entry = RowEntry { id, model, tokens, image: Some(image) };
                        self.scheduler.push_row(task, entry, self.now);
                    }
                }
            }
        }
    }

    fn complete_task(&mut self, task: TaskId) {
        if self.items.values().all(|item| item.task != task) && !self.waiting.contains_key(&task) {
            self.end(task, TaskEnd::Answered);
        }
    }
}

fn cost(work: &UnitWork) -> Duration {
    match work {
        UnitWork::Encode { images, .. } => 9 * MILLI * images.len() as u32,
        UnitWork::SinglePass { rows, .. } => 2 * MILLI + MILLI * rows.len() as u32,
        UnitWork::Step { groups, .. } => 3 * MILLI + MILLI * groups.len() as u32 / 4,
    }
}

fn need() -> impl Strategy<Value = Need> {
    prop_oneof![
        (1..9usize, 1..8usize, 1..30usize).prop_map(|(beams, steps, tokens)| Need::Group {
            beams,
            steps,
            tokens
        }),
        (1..9usize, 0..30usize).prop_map(|(count, tokens)| Need::Rows { count, tokens }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let submit = (0..5u64, 0..2usize, 0..6u8, need(), 1..400u64);
    prop_oneof![
        6 => submit.prop_map(|(call, model, image, need, deadline_ms)| {
            Op::Submit { call, model, image, need, deadline_ms }
        }),
        1 => (0..50usize).prop_map(Op::Leave),
        1 => (0..30u64).prop_map(Op::Pass),
        6 => Just(Op::Run),
        1 => Just(Op::Drain),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_task_gets_exactly_one_outcome_within_all_limits(ops in proptest::collection::vec(op(), 1..120)) {
        let mut world = SimulatedWorker::new(settings());
        for op in ops {
            match op {
                Op::Submit { call, model, image, need, deadline_ms } => {
                    let client = ClientId(call);
                    // Two of the five clients send bulk work.
                    let client = if call < 3 { client } else { client.bulk() };
                    let call = CallId { client, number: call };
                    world.submit_as(call, key(model, image), need, MILLI * deadline_ms as u32);
                }
                Op::Leave(place) => {
                    let alive: Vec<TaskId> =
                        world.deadlines.keys().filter(|task| !world.outcomes.contains_key(task)).copied().collect();
                    if let Some(&task) = alive.iter().min_by_key(|task| (task.0 * 7919 + place as u64) % 50) {
                        world.end(task, TaskEnd::Left);
                    }
                }
                Op::Pass(ms) => world.now += MILLI * ms as u32,
                Op::Run => { world.turn(cost); }
                Op::Drain => world.scheduler.drain(),
            }
        }
        let mut turns = 0;
        while world.turn(cost) {
            turns += 1;
            prop_assert!(turns < 10_000, "the world comes to an end");
        }
        prop_assert_eq!(world.outcomes.len(), world.submitted);
        prop_assert_eq!(world.scheduler.depth(), (0, 0));
        prop_assert_eq!(world.scheduler.text.kv_bytes(), 0);
        prop_assert!(world.items.is_empty() && world.waiting.is_empty());
    }

    /// However many images other calls have waiting, at most one image of each call is encoded before a newcomer's
    /// image.
    #[test]
    fn a_single_call_waits_at_most_one_turn_of_the_others(sizes in proptest::collection::vec(1..40u8, 1..8), units in 0..6usize) {
        let mut world = SimulatedWorker::new(EngineSettings { linger: Duration::ZERO, max_pinned_feature_bytes: u64::MAX, ..settings() });
        let mut call_of = HashMap::new();
        let need = Need::Rows { count: 1, tokens: 1 };
        let mut image = 0;
        for (call, &size) in sizes.iter().enumerate() {
            for _ in 0..size.min(30) {
                image += 1;
                call_of.insert(key(0, image), call);
                world.submit(call as u64, key(0, image), need, Duration::from_secs(600));
            }
        }
        for _ in 0..units {
            world.turn(cost);
        }
        let single = key(0, 255);
        let before = world.started_images.clone();
        world.submit(99, single, need, Duration::from_secs(600));
        let mut per_call: HashMap<usize, usize> = HashMap::new();
        while !world.started_images.contains(&single) {
            let Decision::Run(unit) = world.scheduler.decide(world.now, 0) else { panic!("it waits") };
            if let UnitWork::Encode { images, .. } = &unit.work {
                for image in images.iter().take_while(|&&image| image != single) {
                    prop_assert!(!before.contains(image));
                    *per_call.entry(call_of[image]).or_default() += 1;
                }
            }
            world.scheduler.record(&unit.work, 10 * MILLI, true);
            world.spread(unit.work);
        }
        prop_assert!(per_call.values().all(|&images| images <= 1), "{:?}", per_call);
    }

    /// However many groups of one call are running, a newcomer's group is in the next step of its model.
    #[test]
    fn a_newcomers_group_joins_the_next_step(groups in 1..40usize, warm in 4..20usize, rows in 4..64usize) {
        let mut world = SimulatedWorker::new(EngineSettings { linger: Duration::ZERO, max_batch_rows: rows, max_batch_tokens: 4, max_kv_bytes: u64::MAX, ..settings() });
        let need = Need::Group { beams: 1, steps: 1000, tokens: 1 };
        for _ in 0..groups {
            world.submit(0, key(0, 1), need, Duration::from_secs(600));
        }
        for _ in 0..warm {
            world.turn(cost);
        }
        let newcomer = world.submit(1, key(0, 1), need, Duration::from_secs(600));
        // The newcomer's image is encoded first. Meanwhile steps run, so the cost of a step is known when the
        // newcomer's group is ready.
        while world.waiting.contains_key(&newcomer) {
            world.turn(cost);
        }
        let Decision::Run(unit) = world.scheduler.decide(world.now, 0) else { panic!("it waits") };
        let UnitWork::Step { groups, .. } = unit.work else { panic!("groups wait") };
        let takes_part = groups.iter().any(|group| world.items[group].task == newcomer);
        prop_assert!(takes_part, "{:?}", groups);
    }
}

#[test]
fn two_full_stages_get_their_shares() {
    for (percent, share) in [(50, 0.5), (20, 0.2)] {
        let mut world = SimulatedWorker::new(EngineSettings {
            vision_share_percent: percent,
            linger: Duration::ZERO,
            max_pinned_feature_bytes: u64::MAX,
            max_kv_bytes: u64::MAX,
            ..settings()
        });
        let long = Duration::from_secs(3600);
        for call in 0..4 {
            world.submit(
                call,
                key(0, 0),
                Need::Group { beams: 1, steps: 100_000, tokens: 1 },
                long,
            );
        }
        let mut spent = [0.0; 2];
        for image in 0..2000_u32 {
            // The vision stage always has work.
            let fresh = numbered_key(1, image);
            world.submit(9, fresh, Need::Rows { count: 1, tokens: 1 }, long);
            let Decision::Run(unit) = world.scheduler.decide(world.now, 0) else {
                panic!("there is work")
            };
            let elapsed = cost(&unit.work);
            let stage = usize::from(!matches!(unit.work, UnitWork::Encode { .. }));
            if image > 50 {
                spent[stage] += elapsed.as_secs_f64();
            }
            world.scheduler.record(&unit.work, elapsed, true);
            world.now += elapsed;
            world.spread(unit.work);
        }
        let vision = spent[0] / (spent[0] + spent[1]);
        assert!((vision - share).abs() < 0.02, "{percent} %: {vision}");
    }
}

#[test]
fn an_image_lingers_for_batch_neighbours_from_its_arrival_and_runs_at_once_when_draining() {
    let mut world = SimulatedWorker::new(settings());
    let need = Need::Rows { count: 1, tokens: 1 };
    let start = world.now;
    world.submit(0, key(0, 1), need, Duration::from_secs(60));
    // Until a cost is known, a unit holds only one image, so nothing is held back to share a batch.
    assert!(matches!(world.scheduler.decide(world.now, 0), Decision::Run(_)));
    let work = UnitWork::Encode { output: VisionOutput::last(TowerId(0)), images: vec![key(0, 1)] };
    world.scheduler.record(&work, MILLI, true);
    world.waiting.clear();
    world.submit(1, key(0, 2), need, Duration::from_secs(60));
    assert_eq!(world.scheduler.decide(start, 0), Decision::WaitUntil(start + 5 * MILLI));
    assert_eq!(world.scheduler.decide(start + MILLI, 0), Decision::WaitUntil(start + 5 * MILLI));
    world.scheduler.drain();
    let Decision::Run(unit) = world.scheduler.decide(start + MILLI, 0) else { panic!("it waits") };
    assert_eq!((unit.trigger, unit.waited), (Trigger::Drain, vec![MILLI]));
}

#[test]
fn groups_of_one_model_take_turns_with_those_of_another() {
    let mut world = SimulatedWorker::new(EngineSettings { linger: Duration::ZERO, ..settings() });
    let need = Need::Group { beams: 1, steps: 50, tokens: 1 };
    world.submit(0, key(0, 1), need, Duration::from_secs(60));
    world.submit(1, key(1, 1), need, Duration::from_secs(60));
    while !world.waiting.is_empty() {
        world.turn(cost);
    }
    let mut steps = Vec::new();
    for _ in 0..20 {
        let Decision::Run(unit) = world.scheduler.decide(world.now, 0) else { panic!("it waits") };
        let UnitWork::Step { model, .. } = &unit.work else { panic!("only groups are left") };
        steps.push(model.0);
        world.scheduler.record(&unit.work, MILLI, true);
        world.spread(unit.work);
    }
    assert!(steps.windows(2).all(|pair| pair[0] != pair[1]), "{steps:?}");
}

#[test]
fn groups_of_one_image_join_as_far_as_their_own_keys_and_values_fit() {
    let settings = EngineSettings {
        linger: Duration::ZERO,
        max_batch_rows: 100,
        max_batch_tokens: 100,
        max_kv_bytes: KV + 8 * ROW_KV,
        ..settings()
    };
    let mut world = SimulatedWorker::new(settings);
    let need = Need::Group { beams: 1, steps: 500, tokens: 1 };
    let call = |client, number| CallId { client: ClientId(client), number };
    for number in 0..20 {
        world.submit_as(call(1, number), key(0, 1), need, Duration::from_secs(60));
    }
    for _ in 0..30 {
        world.turn(|_| MILLI);
    }
    let joined = |world: &SimulatedWorker| world.items.values().filter(|item| item.joined).count();
    assert_eq!(joined(&world), 8);
    // Clients without running groups may exceed the limit by a quarter, however many calls the other client has.
    for client in 2..9 {
        world.submit_as(call(client, 100 + client), key(0, 1), need, Duration::from_secs(60));
    }
    for _ in 0..30 {
        world.turn(|_| MILLI);
    }
    assert_eq!(joined(&world), 12);
}

#[test]
fn a_client_of_many_calls_does_not_keep_the_group_of_another_waiting() {
    let settings = EngineSettings {
        linger: Duration::ZERO,
        max_batch_rows: 64,
        max_batch_tokens: 1000,
        max_kv_bytes: u64::MAX,
        ..settings()
    };
    let mut world = SimulatedWorker::new(settings);
    let (beams, long) = (Need::Group { beams: 8, steps: 500, tokens: 1 }, Duration::from_secs(600));
    for number in 0..60 {
        let call = CallId { client: ClientId(1), number };
        world.submit_as(call, key(0, 1), beams, long);
    }
    for _ in 0..30 {
        world.turn(|_| MILLI);
    }
    let single = CallId { client: ClientId(2), number: 60 };
    let need = Need::Group { beams: 1, steps: 3, tokens: 1 };
    let task = world.submit_as(single, key(0, 1), need, long);
    let mut turns = 0;
    while !world.outcomes.contains_key(&task) {
        turns += 1;
        assert!(turns < 8, "its turn does not come");
        world.turn(|_| MILLI);
    }
    assert_eq!(world.outcomes[&task], TaskEnd::Answered);
    // The groups that made room for the single call continue afterwards.
    for _ in 0..20_000 {
        world.turn(|_| MILLI);
    }
    assert!(world.outcomes.values().all(|&outcome| outcome == TaskEnd::Answered));
}

#[test]
fn a_call_of_many_groups_does_not_keep_another_call_of_its_client_waiting() {
    let settings = EngineSettings {
        linger: Duration::ZERO,
        max_batch_rows: 6,
        max_batch_tokens: 6,
        max_kv_bytes: u64::MAX,
        ..settings()
    };
    let mut world = SimulatedWorker::new(settings);
    let call = |number| CallId { client: ClientId(1), number };
    let long = Duration::from_secs(600);
    for _ in 0..30 {
        let need = Need::Group { beams: 1, steps: 500, tokens: 1 };
        world.submit_as(call(1), key(0, 1), need, long);
    }
    for _ in 0..30 {
        world.turn(|_| MILLI);
    }
    let need = Need::Group { beams: 1, steps: 3, tokens: 1 };
    let task = world.submit_as(call(2), key(0, 1), need, long);
    for _ in 0..8 {
        world.turn(|_| MILLI);
    }
    assert_eq!(world.outcomes.get(&task), Some(&TaskEnd::Answered));
}

#[test]
fn a_group_larger_than_all_memory_runs_alone() {
    let settings = EngineSettings { max_kv_bytes: 1, linger: Duration::ZERO, ..settings() };
    let mut world = SimulatedWorker::new(settings);
    let need = Need::Group { beams: 4, steps: 3, tokens: 1 };
    for call in 0..3 {
        world.submit(call, key(0, 1), need, Duration::from_secs(60));
    }
    while world.turn(|_| MILLI) {
        assert!(world.items.values().filter(|item| item.joined).count() <= 1);
    }
    assert!(world.outcomes.values().all(|&outcome| outcome == TaskEnd::Answered));
}
