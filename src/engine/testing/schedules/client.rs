//! One caller: it is admitted or rejected, submits some tasks, and then waits for each of them or disconnects.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};

use super::tally::Event;
use super::world::{CAPACITY, ExploredWorld, Over, POISONED, SHARED, yield_randomly};
use crate::engine::testing::fake::{self, FakeMark};
use crate::engine::{Admission, Answered, EngineError, Reply, TokenStream};
use crate::fairness::ClientId;
use crate::task::{
    Caption, DecodeMode, Decoded, Embed, EmbedOutput, EmbedSubject, GenerationParams, ModelId,
    Task, TaskOutput,
};

/// Number of bytes that each call declares.
const BYTES: u64 = 1000;

/// A client's side of one task.
struct Pending {
    reply: Reply,
    stream: Option<TokenStream>,
    mark: Option<FakeMark>,
    is_poisoned: bool,
    deadline: Instant,
    /// True if the task was submitted before the engine was asked to stop.
    before_stop: bool,
}

pub(super) fn run(world: &ExploredWorld) {
    let mut random = thread_rng();
    yield_randomly(20);
    let left = if random.gen_bool(0.4) { random.gen_range(5..80) } else { 100_000 };
    let deadline = world.clock.now() + Duration::from_millis(left);
    let rows = random.gen_range(1..=3);
    let Some(admission) = admit(world, rows, deadline) else { return };
    let mut pending = Vec::new();
    for _ in 0..rows {
        pending.push(submit(world, &admission));
        if random.gen_bool(0.2) {
            leave(world, pending.pop());
        }
    }
    let kept = random.gen_bool(0.5).then_some(admission);
    for pending in pending {
        if random.gen_bool(0.25) {
            yield_randomly(30);
            leave(world, Some(pending));
        } else {
            wait(world, pending);
        }
    }
    drop(kept);
}

/// Admits a call and reserves `rows` rows and the same number of images. If the engine rejects the call, checks the
/// reason and returns `None`.
fn admit(world: &ExploredWorld, rows: usize, deadline: Instant) -> Option<Admission> {
    let was_drained = world.has_drained.load(Ordering::SeqCst);
    let admitted = world.handle.admit(ClientId::default(), BYTES, deadline);
    if admitted.is_ok() {
        assert!(!was_drained, "admitted after drain");
        let was_emptied = world.was_emptied.load(Ordering::SeqCst);
        assert!(!was_emptied, "admitted when nothing was to remain");
    }
    let admitted = admitted.and_then(|mut admission| {
        admission.reserve(rows, rows)?;
        Ok(admission)
    });
    let held = world.handle.rows();
    assert!(held <= CAPACITY, "{held} rows are admitted, there is room for {CAPACITY}");
    match admitted {
        Ok(admission) => Some(admission),
        Err(error) => {
            refused(world, deadline, &error);
            None
        }
    }
}

/// Checks that a rejection has a valid reason.
fn refused(world: &ExploredWorld, deadline: Instant, error: &EngineError) {
    let event = match error {
        EngineError::Overloaded { .. } | EngineError::TooLargeForDeadline { .. } => {
            Event::RefusedFull
        }
        EngineError::ShuttingDown => {
            assert!(world.begun.drain.load(Ordering::SeqCst), "nobody has begun to drain");
            Event::RefusedDraining
        }
        EngineError::WorkerDown => {
            assert!(world.may_be_down(), "the worker is down for no reason");
            Event::RefusedDown
        }
        EngineError::DeadlineExceeded => {
            assert!(world.clock.now() >= deadline, "before its deadline");
            Event::Expired
        }
        EngineError::TooManyRows { .. }
        | EngineError::SlowReader
        | EngineError::InferenceFailed(_) => panic!("refused: {error}"),
    };
    world.total.count(event);
}

fn submit(world: &ExploredWorld, admission: &Admission) -> Pending {
    let mut random = thread_rng();
    let own = world.fresh_mark();
    let pick = |kind: u32| match kind {
        0 | 1 => {
            let task = Task::Embed(Embed {
                subject: EmbedSubject::Text(fake::text(&[u32::from(own)])),
                output: EmbedOutput::PROJECTION,
            });
            (ModelId(2), task, Some(FakeMark::Token(own.into())))
        }
        2 if world.is_faulty => (ModelId(0), caption(POISONED), None),
        2 | 3 => (ModelId(0), caption(SHARED), None),
        _ => (ModelId(0), caption(own), Some(FakeMark::Image(own))),
    };
    let (model, task, mark) = pick(random.gen_range(0..7));
    let is_poisoned = matches!(&task, Task::Caption(caption) if caption.image.info.id == fake::image(POISONED).info.id);
    let streams = matches!(task, Task::Caption(_)) && random.gen_bool(0.3);
    let (reply, stream) = if streams {
        let (reply, stream) = admission.submit_streaming(model, task);
        (reply, Some(stream))
    } else {
        (admission.submit(model, task), None)
    };
    world.sent.fetch_add(1, Ordering::SeqCst);
    world.total.count(Event::Submitted);
    let before_stop = !world.begun.stop.load(Ordering::SeqCst);
    Pending { reply, stream, mark, is_poisoned, deadline: admission.deadline(), before_stop }
}

fn caption(mark: u8) -> Task {
    let params = GenerationParams::greedy(4);
    let mode = DecodeMode::Generate(params);
    Task::Caption(Caption { image: fake::image(mark), prompt: None, mode, explain: None })
}

/// Lets the client of a task disconnect. From then on at most the unit in progress runs for the task.
fn leave(world: &ExploredWorld, pending: Option<Pending>) {
    let Some(Pending { reply, stream, mark, deadline, .. }) = pending else { return };
    drop(reply);
    drop(stream);
    world.count(Event::Left);
    world.record_over(Over { mark, deadline, at: world.units_begun(), more: 1 });
}

fn wait(world: &ExploredWorld, pending: Pending) {
    let mut tokens = Vec::new();
    let streams = pending.stream.is_some();
    if let Some(mut stream) = pending.stream {
        while let Some(token) = block_on(stream.next()) {
            tokens.push(token);
        }
    }
    let outcome = block_on(pending.reply);
    let Pending { mark, deadline, is_poisoned, before_stop, .. } = pending;
    // Answers are sent after the task's last unit, so no further unit may run for it.
    world.record_over(Over { mark, deadline, at: world.units_begun(), more: 0 });
    let event = match outcome {
        Ok(Answered { output, .. }) => {
            assert!(!is_poisoned, "an answer from a call that fails");
            if let (true, TaskOutput::Caption(Decoded::Generated(sequences))) = (streams, output) {
                assert_eq!(sequences[0].tokens, tokens);
                world.count(Event::Streamed);
            }
            Event::Answered
        }
        Err(EngineError::DeadlineExceeded) => {
            assert!(world.clock.now() >= deadline, "before its deadline");
            Event::Expired
        }
        Err(EngineError::ShuttingDown) => {
            assert!(world.begun.abort.load(Ordering::SeqCst), "nobody has begun to abort");
            Event::ShutDown
        }
        Err(EngineError::WorkerDown) => {
            let was_stopped = !before_stop;
            assert!(was_stopped || world.may_die(), "the worker has lost a task");
            Event::WorkerDown
        }
        Err(EngineError::InferenceFailed(text)) => {
            assert!(is_poisoned, "{text}");
            Event::Failed
        }
        Err(error) => panic!("{error}"),
    };
    world.count(event);
}
