//! [`Bench`]: a running engine on the fake backend, and tasks for it. The tests in `engine/tests` use it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::testing::ManualClock;
use crate::engine::testing::fake::{self, FakeBackend, FakeControl};
use crate::engine::{Admission, Engine, EngineContext, EngineHandle, EngineSettings, Rebuild};
use crate::fairness::ClientId;
use crate::task::{
    Caption, DecodeMode, Embed, EmbedOutput, EmbedSubject, GenerationParams, ModelId, Scores,
    Similarity, Strategy, Task, Vqa,
};
use crate::telemetry::metrics::Metrics;

pub(crate) const CAPTION: ModelId = ModelId(0);
pub(crate) const VQA: ModelId = ModelId(1);
pub(crate) const RETRIEVAL: ModelId = ModelId(2);
pub(crate) const CLIP: ModelId = ModelId(3);

/// A running engine. Dropping it stops the engine, and asserts that the gauges are back at zero, that no group is open,
/// and that the outcomes add up to the submitted tasks.
pub(crate) struct Bench {
    pub(crate) handle: EngineHandle,
    pub(crate) control: FakeControl,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: ManualClock,
    engine: Option<Engine>,
}

impl Bench {
    pub(crate) fn start(settings: EngineSettings) -> Self {
        let (backend, control) = FakeBackend::new(fake::models());
        let metrics = Arc::new(Metrics::try_new().unwrap());
        let clock = ManualClock::start();
        let engine = Engine::start(backend, settings, context(&metrics, &clock)).unwrap();
        Self { handle: engine.handle(), control, metrics, clock, engine: Some(engine) }
    }

    /// Starts an engine whose backend is rebuilt by `rebuild`.
    pub(crate) fn supervised(
        rebuild: impl Fn(&FakeControl) -> Result<FakeBackend, &'static str> + Send + 'static,
    ) -> Self {
        let (backend, control) = FakeBackend::new(fake::models());
        let (metrics, clock) = (Arc::new(Metrics::try_new().unwrap()), ManualClock::start());
        let again = control.clone();
        let rebuild: Rebuild<FakeBackend> = Box::new(move || Ok(rebuild(&again)?));
        let (settings, context) = (EngineSettings::default(), context(&metrics, &clock));
        let engine = Engine::start_supervised(backend, rebuild, settings, context).unwrap();
        Self { handle: engine.handle(), control, metrics, clock, engine: Some(engine) }
    }

    /// Admits a call with `rows` rows and the same number of images. Its deadline is in 30 seconds.
    pub(crate) fn admit(&self, rows: usize) -> Admission {
        self.admit_for(rows, Duration::from_secs(30))
    }

    pub(crate) fn admit_for(&self, rows: usize, time: Duration) -> Admission {
        let deadline: Instant = self.clock.now() + time;
        let mut admission = self.handle.admit(ClientId::default(), 0, deadline).unwrap();
        admission.reserve(rows, rows).unwrap();
        admission
    }
}

/// Returns the context of an engine without a server, whose clock the test advances.
pub(crate) fn context(metrics: &Arc<Metrics>, clock: &ManualClock) -> EngineContext {
    EngineContext { clock: clock.clock(), ..EngineContext::without_server(Arc::clone(metrics)) }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.control.release();
        if let Some(engine) = self.engine.take() {
            engine.join();
        }
        if std::thread::panicking() {
            return;
        }
        let gauges = [
            self.metrics.queue_rows.get(),
            self.metrics.queue_bytes.get(),
            self.metrics.queue_depth.with_label_values(&["vision"]).get(),
            self.metrics.queue_depth.with_label_values(&["text"]).get(),
            self.metrics.worker_up.with_label_values(&["0"]).get(),
        ];
        assert_eq!(gauges, [0; 5], "gauges return to zero");
        assert_eq!(self.control.open_groups(), 0, "no group is left");
        let stats = self.handle.stats();
        let ended = stats.answered + stats.failed + stats.cancelled + stats.expired;
        assert_eq!(ended + stats.shut_down, stats.submitted, "outcomes add up: {stats:?}");
    }
}

/// Blocks the test's thread on a future. Fails after 20 seconds, so that a missing answer does not hang the test.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let patience = Duration::from_secs(20);
    let outcome = runtime.block_on(async { tokio::time::timeout(patience, future).await });
    outcome.expect("nothing came")
}

pub(crate) fn caption(mark: u8) -> Task {
    caption_with(mark, GenerationParams::greedy(20))
}

pub(crate) fn caption_with(mark: u8, params: GenerationParams) -> Task {
    let mode = DecodeMode::Generate(params);
    Task::Caption(Caption { image: fake::image(mark), prompt: None, mode, explain: None })
}

pub(crate) fn prompted(mark: u8, prompt: &[u32]) -> Task {
    let params = GenerationParams::greedy(20);
    let mode = DecodeMode::Generate(params);
    Task::Caption(Caption {
        image: fake::image(mark),
        prompt: Some(fake::text(prompt)),
        mode,
        explain: None,
    })
}

pub(crate) fn beams(num_beams: usize, num_return_sequences: usize) -> GenerationParams {
    let strategy = Strategy::Beams {
        num_beams,
        num_return_sequences,
        length_penalty: 1.0,
        early_stopping: crate::task::EarlyStopping::Heuristic,
        renormalize_logits: false,
    };
    GenerationParams { strategy, ..GenerationParams::greedy(20) }
}

pub(crate) fn samples(num_return_sequences: usize) -> GenerationParams {
    let strategy = Strategy::Sample {
        seed: 7,
        num_return_sequences,
        temperature: 1.0,
        top_k: 50,
        top_p: 1.0,
        cutoffs: crate::task::Cutoffs::default(),
    };
    GenerationParams { strategy, ..GenerationParams::greedy(20) }
}

pub(crate) fn vqa(mark: u8, questions: &[&[u32]], mode: DecodeMode) -> Task {
    let questions = questions.iter().map(|question| fake::text(question)).collect();
    Task::Vqa(Vqa { image: fake::image(mark), questions, mode, explain: None })
}

pub(crate) fn similarity(marks: &[u8], texts: &[&[u32]], matching: bool, cosine: bool) -> Task {
    Task::Similarity(Similarity {
        images: marks.iter().map(|&mark| fake::image(mark)).collect(),
        texts: texts.iter().map(|text| fake::text(text)).collect(),
        scores: Scores { matching, match_logits: false, cosine },
    })
}

pub(crate) fn embed_text(tokens: &[u32]) -> Task {
    let subject = EmbedSubject::Text(fake::text(tokens));
    Task::Embed(Embed { subject, output: EmbedOutput::PROJECTION })
}
