//! The server of a simulation: the parts that `app` connects, with connections in memory, the simulated backend and
//! decoder, and simulated threads. From the connections to the backend everything is the real code, and so is the end:
//! `App::run`, and the check that no request was cut.

use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::super::{App, WorkerEnded, check_all_answered};
use super::backend::{Faults, Script};
use super::chance::Chance;
use super::clients;
use super::network::{MemoryListener, network};
use super::pictures::decode_slowly;
use super::scenario::Scenario;
use super::world::World;
use crate::engine::testing::fake::models;
use crate::engine::{Engine, EngineContext, Rebuild, WorkerBackend};
use crate::fairness::with_reserve;
use crate::http::{self, Drained, Model, Models, Services, max_sockets, router};
use crate::images::Images;
use crate::input::{InputSettings, Tokenizer};
use crate::platform::simulated;
use crate::telemetry::metrics::Metrics;

/// Simulated time after which a simulation that has not ended is stuck.
const STUCK: Duration = Duration::from_secs(300);
/// Interval of the checks of bounds.
const LOOK: Duration = Duration::from_millis(25);
/// Time from the end of the drain timeout until connections are cut, and some milliseconds.
const LAST_ANSWERS: Duration = Duration::from_millis(1100);

/// What a simulation found.
pub(super) struct Findings {
    pub(super) log: Vec<String>,
    pub(super) violations: Vec<String>,
    /// Number of whole answers that clients received.
    pub(super) answers: u64,
    /// Longest time that the probe waited for an answer of a healthy server.
    pub(super) longest_wait: Duration,
}

struct Service {
    app: App,
    engine: Engine,
    images: Images,
    script: Arc<Script>,
}

/// Plays one scenario from the start of the server to its end.
pub(super) async fn play(scenario: Scenario) -> Findings {
    let (network, listener) = network();
    let world = Rc::new(World::new(network, scenario));
    let metrics = timeout(STUCK, serve(&world, listener)).await;
    match metrics {
        Ok(metrics) => check_end(&world, &metrics),
        Err(_) => {
            world.violation("simulation", "stuck: a client, a connection or a thread never ends");
        }
    }
    let (answers, longest_wait) = (world.answers.get(), world.longest_wait.get());
    let (log, violations) = match Rc::try_unwrap(world) {
        Ok(world) => world.into_findings(),
        Err(world) => {
            world.violation("simulation", "a client is left");
            (Vec::new(), vec!["a client is left".to_owned()])
        }
    };
    Findings { log, violations, answers, longest_wait }
}

/// Starts the server and the clients, and returns the metrics once all have ended.
async fn serve(world: &Rc<World>, listener: MemoryListener) -> Arc<Metrics> {
    let Service { app, engine, images, script } = start(&world.scenario);
    let (handle, metrics) = (engine.handle(), Arc::clone(&app.metrics));
    handle.warm_up().await.expect("the backend is healthy until now");
    script.start_faults();
    set_ready(&app, &engine, &images);

    let (shutdown, closing) = (CancellationToken::new(), CancellationToken::new());
    let connections = tokio::spawn({
        let (state, closing) = (app.state.clone(), closing.clone());
        let settings = world.scenario.config.http.connections.clone();
        async move {
            let router = router(state.clone());
            http::serve_connections(listener.into(), router, settings, &state, closing).await
        }
    });
    let clients = tokio::task::spawn_local(join_all(clients::all(world)));
    let watch = tokio::task::spawn_local(watch(Rc::clone(world), Arc::clone(&metrics), images));
    let signal = tokio::task::spawn_local({
        let (world, shutdown) = (Rc::clone(world), shutdown.clone());
        async move {
            let mut clients = clients;
            match world.scenario.shutdown {
                Some(time) => sleep(time).await,
                None => (&mut clients).await.map(drop).expect("clients do not panic"),
            }
            world.end();
            shutdown.cancel();
            if !clients.is_finished() {
                clients.await.expect("clients do not panic");
            }
        }
    });

    let outcome = app.run(&handle, &shutdown, &closing, &|| ()).await;
    world.log("app", format_args!("{outcome:?}"));
    if outcome.is_err() {
        // From now on nobody listens.
        world.end();
    }
    let drained = connections.await.expect("serving connections does not panic");
    check_outcome(world, outcome, drained);
    signal.await.expect("nothing here panics");
    watch.abort();
    let _ = watch.await;
    script.end();
    drop((app, engine));
    while simulated::live_threads() > 0 {
        sleep(LOOK).await;
    }
    let stats = handle.stats();
    let ended = stats.answered + stats.failed + stats.cancelled + stats.expired + stats.shut_down;
    if ended != stats.submitted {
        world.violation("engine", format_args!("outcomes do not add up: {stats:?}"));
    }
    if script.control.open_groups() > 0 {
        world.violation("engine", "groups are left in the backend");
    }
    metrics
}

/// Assembles a server that is not ready yet.
fn start(scenario: &Scenario) -> Service {
    let config = scenario.config.clone();
    let app = App::build(config.clone()).expect("metrics can be registered");
    let script = Script::new(scenario.faults, Chance::new(scenario.seed, 1));
    if let Some(tokens) = scenario.text_length {
        script.control.set_text_length(tokens);
    }
    let supervised = || {
        let (backend, script) = (script.backend(), Arc::clone(&script));
        let Faults { rebuild_fails, .. } = scenario.faults;
        let rebuild: Rebuild<_> = Box::new(move || {
            simulated::sleep(Duration::from_millis(700));
            if rebuild_fails { Err("scripted".into()) } else { Ok(script.backend()) }
        });
        WorkerBackend { backend, rebuild: Some(rebuild) }
    };
    let others = (1..scenario.workers).map(|_| supervised()).collect();
    let context = EngineContext::new(Arc::clone(&app.metrics), Arc::clone(app.state.lifecycle()));
    let engine = Engine::start_workers(supervised(), others, config.engine, context);
    let (input, metrics) = (config.http.input, Arc::clone(&app.metrics));
    let images = Images::start_with(&config.images, input, metrics, Box::new(decode_slowly));
    Service {
        app,
        engine: engine.expect("a simulated thread starts"),
        images: images.expect("a simulated thread starts"),
        script,
    }
}

fn set_ready(app: &App, engine: &Engine, images: &Images) {
    static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
        let json = include_str!("../../../tests/fixtures/base/tokenizer.json");
        let config = include_str!("../../../tests/fixtures/base/tokenizer_config.json");
        let settings = InputSettings::default();
        let path = "tokenizer.json".as_ref();
        Arc::new(Tokenizer::from_texts(path, json, config, &settings).expect("a good fixture"))
    });
    let model = |info| Model { info, tokenizer: Some(Arc::clone(&TOKENIZER)) };
    app.state.set_ready(Services {
        engine: engine.handle(),
        images: images.clone(),
        fetcher: None,
        models: Models::new(models().into_iter().map(model).collect()),
        cpu_isa: "simulated".to_owned(),
    });
}

/// Checks at short intervals that everything stays within its bounds.
async fn watch(world: Rc<World>, metrics: Arc<Metrics>, images: Images) {
    let config = &world.scenario.config;
    let workers = world.scenario.workers as u64;
    let of_all = |capacity| (with_reserve(capacity) * workers).cast_signed();
    let rows = of_all(config.engine.capacity_rows as u64);
    let bytes = of_all(config.engine.capacity_bytes);
    let bulk = with_reserve(config.http.bulk.max_requests as u64).cast_signed();
    let sockets = max_sockets(config.http.connections.max_connections, false).cast_signed() as i64;
    loop {
        let held = images.held_file_bytes().cast_signed() as i64;
        let bounds = [
            ("rows", metrics.queue_rows.get(), rows),
            ("bytes", metrics.queue_bytes.get(), bytes),
            ("connections", metrics.http_connections.get(), sockets),
            ("bulk requests", metrics.bulk_requests.get(), bulk),
            ("bytes of files in the decoding queue", held, metrics.queue_bytes.get()),
        ];
        for (name, value, most) in bounds {
            if value > most {
                world.violation("bounds", format_args!("{value} {name}, at most {most} allowed"));
            }
        }
        sleep(LOOK).await;
    }
}

/// Checks how the server ended.
fn check_outcome(world: &World, outcome: Result<(), WorkerEnded>, drained: Drained) {
    let faults = &world.scenario.faults;
    let may_end_early = faults.hangs_at.is_some() || faults.panics > 0 || faults.errors > 0;
    if outcome.is_err() && !may_end_early {
        world.violation("app", "the worker ended by itself");
    }
    // The server cannot know that a client that does not read will never read.
    let cut = drained.requests_cut.saturating_sub(world.slow_readers.get());
    if let Err(error) = check_all_answered(Drained { requests_cut: cut, ..drained }) {
        world.violation("app", error);
    }
    if let (Some(signal), Ok(())) = (world.ended(), outcome) {
        let drain = world.scenario.config.drain;
        let (took, most) = (signal.elapsed(), drain.delay + drain.timeout + LAST_ANSWERS);
        world.log("app", format_args!("ended {took:?} after the signal"));
        if took > most {
            world.violation("app", format_args!("ended {took:?} after the signal"));
        }
    }
}

/// Checks what must hold when everything has ended.
fn check_end(world: &World, metrics: &Metrics) {
    let gauges = [
        ("requests in flight", metrics.http_requests_in_flight.get()),
        ("connections", metrics.http_connections.get()),
        ("rows", metrics.queue_rows.get()),
        ("bytes", metrics.queue_bytes.get()),
        ("images that wait", metrics.queue_depth.with_label_values(&["vision"]).get()),
        ("rows that wait", metrics.queue_depth.with_label_values(&["text"]).get()),
        ("decodes", metrics.decode_permits_in_use.get()),
        ("first worker", metrics.worker_up.with_label_values(&["0"]).get()),
        ("second worker", metrics.worker_up.with_label_values(&["1"]).get()),
        ("ready", metrics.ready.get()),
        ("bulk requests", metrics.bulk_requests.get()),
        ("bulk requests that wait", metrics.bulk_requests_waiting.get()),
        ("lines of bulk requests", metrics.bulk_lines_in_flight.get()),
        ("bytes of bulk answers", metrics.bulk_held_bytes.get()),
    ];
    for (name, value) in gauges {
        if value != 0 {
            world.violation("gauges", format_args!("{value} {name} at the end"));
        }
    }
    let (counted, left) = counts(metrics);
    world.log("metrics", format_args!("{counted} requests, {left} of them without an answer"));
    if left > world.left.get() {
        let (most, clients) = (world.left.get(), "clients left");
        world.violation(
            "metrics",
            format_args!("{left} requests without an answer, {most} {clients}"),
        );
    }
    if counted - left < world.answers.get() {
        let answers = world.answers.get();
        world.violation("metrics", format_args!("{counted} requests counted, {answers} answers"));
    }
    let panics = metrics.panics_total.with_label_values(&["handler"]).get();
    let decode_panics = metrics.panics_total.with_label_values(&["decode"]).get();
    if panics + decode_panics > 0 {
        world.violation(
            "metrics",
            format_args!("{panics} handlers and {decode_panics} decoders panicked"),
        );
    }
}

/// Returns the number of requests that were counted, and of those whose client left before the answer.
fn counts(metrics: &Metrics) -> (u64, u64) {
    let text = metrics.to_text().expect("metrics are text");
    let lines = text.lines().filter(|line| line.starts_with("blip_http_requests_total{"));
    lines.fold((0, 0), |(all, left), line| {
        let value: u64 = line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or(0);
        let is_left = line.contains("status=\"499\"");
        (all + value, left + if is_left { value } else { 0 })
    })
}
