//! Property tests of the whole engine without its thread, with a clock that the test advances. They use random calls,
//! faults, deadlines, disconnecting clients and drains. The file exceeds 500 lines because the random operations and
//! the invariants belong together.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tokio::sync::oneshot;

use super::tasks::{Outcome, Submission};
use super::turn::{Next, Worker};
use crate::engine::admission::CallReservation;
use crate::engine::shared::{Common, Shared};
use crate::engine::testing::ManualClock;
use crate::engine::testing::fake::{self, FakeBackend, FakeCall, FakeControl, FakeFault, FakeMark};
use crate::engine::{Clock, EngineContext, EngineError, EngineSettings};
use crate::fairness::ClientId;
use crate::task::{
    Caption, DecodeMode, Embed, EmbedOutput, EmbedSubject, GenerationParams, ModelId, Scores,
    Similarity, Strategy as Search, Task, TaskOutput, Vqa,
};
use crate::telemetry::metrics::Metrics;

const MILLI: Duration = Duration::from_millis(1);

/// What a client requests; small, so that failures shrink well.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Ask {
    Caption { image: u8, prompt: Option<u32>, beams: usize, samples: usize },
    Answer { image: u8, questions: Vec<u32>, candidates: usize },
    Pairs { images: Vec<u8>, texts: Vec<u32>, matching: bool, cosine: bool },
    Embed { image: Option<u8>, text: Option<u32> },
}

#[derive(Debug, Clone)]
enum Op {
    Call { asks: Vec<Ask>, deadline_ms: u64 },
    Leave(usize),
    Pass(u64),
    Turn,
    Drain,
    Abort,
}

fn ask() -> impl Strategy<Value = Ask> {
    let image = || 1..6u8;
    let text = || 10..16u32;
    prop_oneof![
        4 => (image(), proptest::option::of(text()), 1..4usize, 1..4usize).prop_map(
            |(image, prompt, beams, samples)| Ask::Caption { image, prompt, beams, samples }
        ),
        2 => (image(), proptest::collection::vec(text(), 1..3), 0..3usize).prop_map(
            |(image, questions, candidates)| Ask::Answer { image, questions, candidates }
        ),
        2 => (
            proptest::collection::vec(image(), 1..4),
            proptest::collection::vec(text(), 1..4),
            any::<bool>(),
            any::<bool>(),
        )
            .prop_map(|(images, texts, matching, cosine)| Ask::Pairs {
                images,
                texts,
                matching,
                cosine
            }),
        1 => (proptest::option::of(image()), proptest::option::of(text()))
            .prop_map(|(image, text)| Ask::Embed { image, text }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        60 => (proptest::collection::vec(ask(), 1..5), 5..3000u64)
            .prop_map(|(asks, deadline_ms)| Op::Call { asks, deadline_ms }),
        8 => (0..100usize).prop_map(Op::Leave),
        8 => (0..50u64).prop_map(Op::Pass),
        80 => Just(Op::Turn),
        1 => Just(Op::Drain),
        1 => Just(Op::Abort),
    ]
}

fn task(ask: &Ask) -> (ModelId, Task) {
    match ask.clone() {
        Ask::Caption { image, prompt, beams, samples } => {
            let strategy = match (beams, samples) {
                (1, 1) => Search::Greedy,
                (1, samples) => Search::Sample {
                    seed: 3,
                    num_return_sequences: samples,
                    temperature: 1.0,
                    top_k: 0,
                    top_p: 1.0,
                    cutoffs: crate::task::Cutoffs::default(),
                },
                (beams, _) => Search::Beams {
                    num_beams: beams,
                    num_return_sequences: 1,
                    length_penalty: 1.0,
                    early_stopping: crate::task::EarlyStopping::Never,
                    renormalize_logits: false,
                },
            };
            let params = GenerationParams { strategy, ..GenerationParams::greedy(6) };
            let prompt = prompt.map(|token| fake::text(&[token]));
            let mode = DecodeMode::Generate(params);
            (
                ModelId(0),
                Task::Caption(Caption { image: fake::image(image), prompt, mode, explain: None }),
            )
        }
        Ask::Answer { image, questions, candidates } => {
            let mode = match candidates {
                0 => DecodeMode::Generate(GenerationParams::greedy(6)),
                count => {
                    DecodeMode::Rank((0..count as u32).map(|id| fake::text(&[20 + id])).collect())
                }
            };
            let questions = questions.iter().map(|&token| fake::text(&[token])).collect();
            (
                ModelId(1),
                Task::Vqa(Vqa { image: fake::image(image), questions, mode, explain: None }),
            )
        }
        Ask::Pairs { images, texts, matching, cosine } => {
            let similarity = Similarity {
                images: images.iter().map(|&mark| fake::image(mark)).collect(),
                texts: texts.iter().map(|&token| fake::text(&[token])).collect(),
                scores: Scores { matching, match_logits: false, cosine },
            };
            (ModelId(2), Task::Similarity(similarity))
        }
        Ask::Embed { image, text } => {
            let text = text.map(|token| fake::text(&[token]));
            let subject = match (image.map(fake::image), text) {
                (Some(image), Some(text)) => EmbedSubject::Multimodal(image, text),
                (Some(image), None) => EmbedSubject::Image(image),
                (None, text) => EmbedSubject::Text(text.unwrap_or_else(|| fake::text(&[1]))),
            };
            let output = EmbedOutput::PROJECTION;
            (ModelId(2), Task::Embed(Embed { subject, output }))
        }
    }
}

/// True if the task contains image 5 or a text with token 15. If faults are set, such tasks fail.
fn is_poisoned(ask: &Ask) -> bool {
    let (images, texts) = match ask {
        Ask::Caption { image, prompt, .. } => (vec![*image], prompt.iter().copied().collect()),
        Ask::Answer { image, questions, .. } => (vec![*image], questions.clone()),
        // No score is requested, so nothing runs.
        Ask::Pairs { matching: false, cosine: false, .. } => (Vec::new(), Vec::new()),
        Ask::Pairs { images, texts, .. } => (images.clone(), texts.clone()),
        Ask::Embed { image, text } => {
            (image.iter().copied().collect(), text.iter().copied().collect())
        }
    };
    images.contains(&5) || texts.contains(&15)
}

fn settings() -> EngineSettings {
    EngineSettings {
        capacity_rows: 24,
        max_queue_wait: Duration::from_secs(60),
        unit_time: Some(30 * MILLI),
        linger: 3 * MILLI,
        max_batch_images: 3,
        max_batch_rows: 8,
        max_batch_tokens: 30,
        feature_cache_bytes: 300,
        max_pinned_feature_bytes: 300,
        max_kv_bytes: 2100,
        ..EngineSettings::default()
    }
}

/// The client's side of one task.
struct Pending {
    ask: Ask,
    deadline: Instant,
    reply: Option<oneshot::Receiver<Outcome>>,
}

/// The whole engine without its thread, and its clients.
struct ThreadlessEngine {
    worker: Worker<FakeBackend>,
    shared: Arc<Shared>,
    control: FakeControl,
    clock: ManualClock,
    pending: Vec<Pending>,
    cancelled: usize,
    aborted: bool,
}

impl ThreadlessEngine {
    fn new(settings: EngineSettings) -> Self {
        let clock = ManualClock::start();
        Self::with_clock(settings, clock.clone(), clock.clock())
    }

    /// Creates an engine whose worker reads the time from `source`.
    fn with_clock(settings: EngineSettings, clock: ManualClock, source: Clock) -> Self {
        let (backend, control) = FakeBackend::new(fake::models());
        let metrics = Arc::new(Metrics::try_new().unwrap());
        let context = EngineContext { clock: source, ..EngineContext::without_server(metrics) };
        let shared = Shared::new(fake::models().into(), settings, context, Common::default());
        let worker = Worker::new(backend, Arc::clone(&shared));
        Self { worker, shared, control, clock, pending: Vec::new(), cancelled: 0, aborted: false }
    }

    fn reserve_call(
        &self,
        asks: &[Ask],
        deadline: Instant,
    ) -> Result<CallReservation, EngineError> {
        let reservation =
            self.shared.admission.admit(ClientId::default(), 10, deadline, self.clock.now())?;
        let rows = asks.iter().map(|ask| task(ask).1.shape().rows).sum();
        reservation.reserve(
            rows,
            asks.len(),
            deadline.saturating_duration_since(self.clock.now()),
        )?;
        Ok(reservation)
    }

    /// Admits no more calls.
    fn close(&self) {
        self.shared.lifecycle.process().drain();
        self.shared.admission.close();
    }

    /// Submits a call if it is admitted. Returns whether the call was admitted.
    fn call(&mut self, asks: Vec<Ask>, deadline: Instant) -> bool {
        let was_draining = self.shared.is_draining();
        let Ok(call) = self.reserve_call(&asks, deadline) else { return false };
        assert!(!was_draining, "nothing is admitted after drain");
        for ask in asks {
            let (model, task) = task(&ask);
            let reservation = call.reserve_task(task.shape().rows, task.images().len()).unwrap();
            let (sender, reply) = oneshot::channel();
            let submitted = self.clock.now();
            let stream = None;
            let reply = Some(reply);
            let submission = Submission {
                model,
                task,
                admitted: submitted,
                deadline,
                submitted,
                reservation,
                reply: sender,
                stream,
            };
            self.worker.accept(submission);
            self.pending.push(Pending { ask, deadline, reply });
        }
        true
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Call { asks, deadline_ms } => {
                let deadline = self.clock.now() + MILLI * deadline_ms as u32;
                self.call(asks, deadline);
            }
            Op::Leave(place) => {
                let count = self.pending.len().max(1);
                if let Some(pending) = self.pending.get_mut(place % count) {
                    pending.reply = None;
                }
            }
            Op::Pass(ms) => self.clock.advance(MILLI * ms as u32),
            Op::Turn => {
                self.turn();
            }
            Op::Drain => self.close(),
            Op::Abort => {
                self.close();
                self.shared.lifecycle.process().abort();
                self.aborted = true;
            }
        }
    }

    fn turn(&mut self) -> Next {
        let calls = self.control.log().len();
        let now = self.clock.now();
        let next = self.worker.turn();
        if let Next::WaitUntil(at) = next {
            assert!(at > now, "it waits for the future");
            self.clock.advance(at - now);
        }
        self.check_units(calls, now);
        // An item that only the worker or only the scheduler knows would never run or never end.
        assert_eq!(self.worker.items.running(), self.worker.scheduler.running());
        let metrics = &self.shared.metrics;
        assert!(metrics.queue_rows.get() <= metrics.queue_capacity.get());
        next
    }

    /// Checks that each image in the backend calls of this turn belongs to a live task, and that texts are processed
    /// only while there is a live task. A task is live if its client has not disconnected and its deadline has not
    /// passed.
    fn check_units(&self, from: usize, now: Instant) {
        let wanted = |mark: &FakeMark| {
            self.pending.iter().any(|pending| {
                let holds = match (mark, &pending.ask) {
                    (
                        FakeMark::Image(image),
                        Ask::Caption { image: own, .. } | Ask::Answer { image: own, .. },
                    ) => image == own,
                    (FakeMark::Image(image), Ask::Pairs { images, .. }) => images.contains(image),
                    (FakeMark::Image(image), Ask::Embed { image: own, .. }) => {
                        Some(image) == own.as_ref()
                    }
                    (FakeMark::Token(_), _) => true,
                };
                holds && pending.reply.is_some() && pending.deadline > now
            })
        };
        for unit in &self.control.log()[from..] {
            // A probe uses a black image and texts of zeros, which belong to no task.
            let probe = |mark: &&FakeMark| matches!(mark, FakeMark::Image(0) | FakeMark::Token(0));
            for mark in unit.items.iter().flatten().filter(|mark| !probe(mark)) {
                assert!(wanted(mark), "{mark:?} of {unit:?} is nobody's");
            }
        }
    }

    fn finish(&mut self) {
        let mut turns = 0;
        while self.turn() != Next::Idle {
            turns += 1;
            assert!(turns < 20_000, "it comes to an end");
        }
        assert!(self.worker.is_empty(), "idle with tasks left");
    }
}

/// Returns the answer to a task that runs alone.
fn lone_answer(ask: &Ask, known: &mut HashMap<Ask, TaskOutput>) -> TaskOutput {
    if let Some(output) = known.get(ask) {
        return output.clone();
    }
    let mut engine = ThreadlessEngine::new(EngineSettings::default());
    let deadline = engine.clock.now() + Duration::from_secs(600);
    assert!(engine.call(vec![ask.clone()], deadline));
    engine.finish();
    let mut reply = engine.pending[0].reply.take().unwrap();
    let output = reply.try_recv().unwrap().unwrap().output;
    known.insert(ask.clone(), output.clone());
    output
}

fn check_outcomes(engine: &mut ThreadlessEngine, poisoned: bool) {
    let mut known = HashMap::new();
    let now = engine.clock.now();
    for pending in &mut engine.pending {
        let Some(reply) = &mut pending.reply else {
            engine.cancelled += 1;
            continue;
        };
        match reply.try_recv().expect("every task has its outcome") {
            Ok(answered) => {
                assert!(!(poisoned && is_poisoned(&pending.ask)), "{:?}", pending.ask);
                assert_eq!(answered.output, lone_answer(&pending.ask, &mut known));
            }
            Err(EngineError::InferenceFailed(text)) => {
                assert!(poisoned && is_poisoned(&pending.ask), "{:?}: {text}", pending.ask);
            }
            Err(EngineError::DeadlineExceeded) => assert!(pending.deadline <= now),
            Err(EngineError::ShuttingDown) => assert!(engine.aborted),
            Err(error) => panic!("{error}"),
        }
    }
}

fn check_nothing_is_left(engine: &ThreadlessEngine) {
    let metrics = &engine.shared.metrics;
    let depth = |stage| metrics.queue_depth.with_label_values(&[stage]).get();
    let gauges =
        [metrics.queue_rows.get(), metrics.queue_bytes.get(), depth("vision"), depth("text")];
    assert_eq!(gauges, [0; 4]);
    assert_eq!(engine.control.open_groups(), 0);
    assert_eq!(engine.worker.features.pinned_bytes(), 0);
    assert!(engine.worker.features.bytes() <= settings().feature_cache_bytes);
    assert!(engine.worker.items.running().is_empty());
    let stats = engine.shared.counters.snapshot();
    let outcomes =
        stats.answered + stats.failed + stats.expired + stats.cancelled + stats.shut_down;
    assert_eq!(outcomes, stats.submitted);
    assert_eq!(stats.submitted as usize, engine.pending.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_task_has_one_outcome_and_nothing_is_left(
        ops in proptest::collection::vec(op(), 1..150),
        poison in proptest::option::of(any::<bool>()),
    ) {
        let mut engine = ThreadlessEngine::new(settings());
        engine.control.set_costs(&engine.clock, MILLI, 9 * MILLI, MILLI / 4);
        if let Some(panics) = poison {
            let fault = if panics { FakeFault::Panic } else { FakeFault::Error };
            for call in [FakeCall::Encode, FakeCall::SinglePass, FakeCall::Step] {
                engine.control.fault(call, FakeMark::Image(5), fault);
                engine.control.fault(call, FakeMark::Token(15), fault);
            }
        }
        for op in ops {
            engine.run(op);
        }
        engine.finish();
        check_outcomes(&mut engine, poison.is_some());
        check_nothing_is_left(&engine);
    }
}

fn one_caption() -> Vec<Ask> {
    caption_of(1)
}

fn caption_of(image: u8) -> Vec<Ask> {
    vec![Ask::Caption { image, prompt: None, beams: 1, samples: 1 }]
}

#[test]
fn a_deadline_that_passes_in_the_middle_of_a_turn_waits_for_the_next_one() {
    // Each reading of the clock moves it forward by 1 ms, so each deadline falls between a different pair of readings.
    for deadline_ms in 1..60 {
        let clock = ManualClock::start();
        let ticking = {
            let clock = clock.clone();
            Clock::new(move || {
                clock.advance(MILLI);
                clock.now()
            })
        };
        let mut engine = ThreadlessEngine::with_clock(EngineSettings::default(), clock, ticking);
        let deadline = engine.clock.now() + MILLI * deadline_ms;
        if engine.call(one_caption(), deadline) {
            while engine.worker.turn() == Next::Ran {}
            assert!(engine.worker.is_empty(), "{deadline_ms} ms");
        }
    }
}

#[test]
fn a_task_whose_client_left_at_the_deadline_has_expired() {
    let mut engine = ThreadlessEngine::new(EngineSettings::default());
    let deadline = engine.clock.now() + MILLI;
    assert!(engine.call(one_caption(), deadline));
    engine.clock.advance(MILLI);
    engine.pending[0].reply = None;
    engine.turn();
    let stats = engine.shared.counters.snapshot();
    assert_eq!((stats.expired, stats.cancelled), (1, 0));
    assert_eq!(engine.shared.metrics.queue_cancelled_total.get(), 0);
}

#[test]
fn only_the_task_that_an_image_is_encoded_for_counts_for_it() {
    let mut engine = ThreadlessEngine::new(settings());
    engine.control.set_costs(&engine.clock, Duration::ZERO, 5000 * MILLI, Duration::ZERO);
    let deadline = engine.clock.now() + Duration::from_secs(600);
    let embed = |image| vec![Ask::Embed { image: Some(image), text: None }];
    assert!(engine.call(embed(1), deadline));
    engine.finish();
    // One task with a cached image, one with a new image, and one more that waits for the same new image.
    for image in [1, 2, 2] {
        assert!(engine.call(embed(image), deadline));
    }
    assert_eq!(engine.shared.admission.retry_after(), 5000 * MILLI);
    engine.finish();
    assert_eq!(engine.shared.admission.retry_after(), 1000 * MILLI);
}

#[test]
fn estimates_that_nothing_refreshes_become_stale() {
    let mut engine = ThreadlessEngine::new(EngineSettings::default());
    assert!(!engine.shared.admission.estimates().stale);
    let deadline = engine.clock.now() + Duration::from_secs(600);
    assert!(engine.call(one_caption(), deadline));
    engine.finish();
    engine.clock.advance(60_000 * MILLI);
    engine.turn();
    assert!(!engine.shared.admission.estimates().stale);
    engine.clock.advance(MILLI);
    engine.turn();
    assert!(engine.shared.admission.estimates().stale);
    // A new image, because a cached one would not renew the estimated cost of encoding.
    assert!(engine.call(caption_of(2), engine.clock.now() + Duration::from_secs(600)));
    engine.finish();
    assert!(!engine.shared.admission.estimates().stale);
}

#[test]
fn a_group_is_charged_for_its_rows_at_their_longest_twice_and_for_its_question() {
    // Each token needs one byte. A group is charged for 17 bytes: twice its seven tokens (one start token and six new
    // ones), and the three tokens of the question.
    for (max_kv_bytes, together) in [(34, 2), (33, 1)] {
        let settings = EngineSettings { max_kv_bytes, ..EngineSettings::default() };
        let mut engine = ThreadlessEngine::new(settings);
        engine.control.set_text_length(6);
        let deadline = engine.clock.now() + Duration::from_secs(600);
        for question in 10..14 {
            let questions = vec![question];
            assert!(
                engine.call(vec![Ask::Answer { image: 1, questions, candidates: 0 }], deadline)
            );
        }
        engine.finish();
        let log = engine.control.log();
        let steps = log.iter().filter(|unit| unit.call == FakeCall::Step);
        assert_eq!(steps.map(|unit| unit.items.len()).max(), Some(together), "{max_kv_bytes}");
    }
}
