//! Turns repeated passes into graphs. A launch costs the host some microseconds, and a decode step of a base-size model
//! has two hundred of them; a graph is launched at once.
//!
//! [`Recorder`] stands between the operations and the device. The operations announce a pass by a key, and run the same
//! code in every pass. In the first passes with a key, the recorder forwards each call and writes it down. When two
//! passes in a row made the same calls, it builds a graph of them. From then on it only compares the calls with the
//! graph's, and launches the graph when the last one has come. If a call differs, the calls that were skipped so far are
//! made up for, and the rest of the pass is forwarded. So a graph can never compute something else than the pass.
//!
//! A graph is only a faster way to make the same calls. If it cannot be built, the pass has succeeded nevertheless. A graph
//! that passes keep differing from is dropped, and the calls are recorded again. So are the graphs of the keys that were
//! used least recently, if there are many.
//!
//! A pass repeats its calls if its buffers have the same addresses, and if everything that differs between passes
//! (tokens, lengths, page numbers) is uploaded data. Uploads run at once, even while calls are skipped. So a buffer
//! that was uploaded to must not be used for anything else in the same pass.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::{Address, Argument, Device, DeviceError, GraphId, Launch, MemoryInfo, Product};

/// Differing passes, failed graphs and dropped graphs, since a graph last ran, after which a key is no longer recorded.
const MOST_DIFFERENCES: u32 = 8;

/// Passes in a row that differ from a graph, or in which its launch fails, after which the graph is dropped.
const MOST_MISSES: u32 = 4;

/// Keys whose passes are remembered, and so the largest number of graphs. One model needs about 80: for 1 to 64 images and
/// for 16 numbers of rows. Hidden layers of images are further keys, so their number must be bounded.
const MOST_KEYS: usize = 256;

/// Forwards calls to a device, and replaces repeated passes by graphs.
#[derive(Debug)]
pub struct Recorder<K> {
    device: Arc<dyn Device>,
    state: Mutex<State<K>>,
    /// Number of graphs that could not be built, or were dropped because passes kept differing from them.
    lost: AtomicU64,
}

#[derive(Debug)]
struct State<K> {
    plans: HashMap<K, Plan>,
    current: Option<Pass<K>>,
    /// Number of passes that ran as graphs.
    replays: u64,
    /// Number of passes.
    passes: u64,
}

/// What is known about the passes with one key.
#[derive(Debug, Default)]
struct Plan {
    /// The calls of the last pass.
    calls: Vec<Call>,
    graph: Option<GraphId>,
    /// See [`MOST_DIFFERENCES`].
    differences: u32,
    /// See [`MOST_MISSES`].
    misses: u32,
    /// Number of the last pass.
    last_pass: u64,
}

#[derive(Debug)]
struct Pass<K> {
    key: K,
    plan: Plan,
    mode: Mode,
}

#[derive(Debug)]
enum Mode {
    /// Calls are forwarded and written down.
    Recording(Vec<Call>),
    /// The first calls of the graph have come, this many, and were skipped.
    Comparing(usize),
    /// Calls are forwarded: they differed from the graph's, or the graph has been launched.
    Forwarding,
}

/// A call that graphs can contain.
#[derive(Debug, Clone, PartialEq)]
enum Call {
    Launch { kernel: String, grid: [u32; 3], threads: u32, arguments: Vec<Argument> },
    Product(Product),
    Copy { from: Address, to: Address, bytes: usize },
}

impl Call {
    fn make(&self, device: &dyn Device) -> Result<(), DeviceError> {
        match self {
            Self::Launch { kernel, grid, threads, arguments } => {
                device.launch(&Launch { kernel, grid: *grid, threads: *threads, arguments })
            }
            Self::Product(product) => device.product(product),
            Self::Copy { from, to, bytes } => device.copy(*from, *to, *bytes),
        }
    }

    /// True if this is the call, without building a [`Call`] of it.
    fn is_launch(&self, launch: &Launch<'_>) -> bool {
        matches!(self, Self::Launch { kernel, grid, threads, arguments }
            if kernel == launch.kernel
                && *grid == launch.grid
                && *threads == launch.threads
                && arguments == launch.arguments)
    }
}

impl<K: Clone + Eq + Hash + std::fmt::Debug + Send> Recorder<K> {
    /// Creates a recorder that knows no passes.
    #[must_use]
    pub fn new(device: Arc<dyn Device>) -> Self {
        let state = State { plans: HashMap::new(), current: None, replays: 0, passes: 0 };
        Self { device, state: Mutex::new(state), lost: AtomicU64::new(0) }
    }

    /// Announces that the calls from now on are a pass. Passes are not nested.
    pub fn begin(&self, key: K) {
        let mut state = self.state();
        debug_assert!(state.current.is_none(), "a pass within a pass");
        let mut plan = state.plans.remove(&key).unwrap_or_default();
        state.passes += 1;
        plan.last_pass = state.passes;
        let mode = match plan.graph {
            Some(_) => Mode::Comparing(0),
            None if plan.differences >= MOST_DIFFERENCES => Mode::Forwarding,
            None => Mode::Recording(Vec::with_capacity(plan.calls.len())),
        };
        state.current = Some(Pass { key, plan, mode });
    }

    /// Ends the pass. `has_succeeded` says whether it ran to its end: the calls of a pass that failed are not kept.
    ///
    /// # Errors
    /// When calls that were skipped fail now, and when the device is lost.
    pub fn end(&self, has_succeeded: bool) -> Result<(), DeviceError> {
        let flushed = if has_succeeded { self.flush() } else { Ok(()) };
        let mut state = self.state();
        let Some(Pass { key, mut plan, mode }) = state.current.take() else { return Ok(()) };
        let learned = match mode {
            Mode::Recording(calls) if has_succeeded => self.learn(&mut plan, calls),
            Mode::Recording(_) | Mode::Comparing(_) | Mode::Forwarding => Ok(()),
        };
        if plan.misses >= MOST_MISSES {
            self.lost.fetch_add(1, Ordering::Relaxed);
            self.forget(&mut plan);
        }
        state.plans.insert(key, plan);
        if state.plans.len() > MOST_KEYS {
            let oldest = state.plans.iter().min_by_key(|(_, plan)| plan.last_pass);
            if let Some(key) = oldest.map(|(key, _)| key.clone())
                && let Some(mut plan) = state.plans.remove(&key)
            {
                self.forget(&mut plan);
            }
        }
        flushed.and(learned)
    }

    /// Returns the number of passes that ran as graphs.
    #[must_use]
    pub fn replays(&self) -> u64 {
        self.state().replays
    }

    /// Returns the number of graphs that could not be built, or were dropped because passes kept differing from them.
    #[must_use]
    pub fn lost_graphs(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Builds a graph if the calls are those of the pass before, and keeps the calls otherwise. The pass itself has
    /// succeeded, so errors other than a lost device only mean that there is no graph.
    fn learn(&self, plan: &mut Plan, calls: Vec<Call>) -> Result<(), DeviceError> {
        if calls.is_empty() || calls != plan.calls {
            plan.differences += u32::from(!plan.calls.is_empty());
            plan.calls = calls;
            return Ok(());
        }
        match self.graph(&calls) {
            Ok(graph) => plan.graph = Some(graph),
            Err(error @ DeviceError::Lost(_)) => return Err(error),
            Err(DeviceError::OutOfMemory(_) | DeviceError::Failed(_)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                plan.differences += 1;
            }
        }
        Ok(())
    }

    /// Drops the graph and the calls.
    fn forget(&self, plan: &mut Plan) {
        if let Some(graph) = plan.graph.take() {
            self.device.drop_graph(graph);
        }
        plan.calls = Vec::new();
        plan.misses = 0;
        plan.differences += 1;
    }

    fn graph(&self, calls: &[Call]) -> Result<GraphId, DeviceError> {
        self.device.begin_capture()?;
        let made = calls.iter().try_for_each(|call| call.make(&*self.device));
        // The capture ends even if a call failed, so that the device can be used again.
        let graph = self.device.end_capture();
        match (made, graph) {
            (Ok(()), graph) => graph,
            (Err(_), Err(lost @ DeviceError::Lost(_))) => Err(lost),
            (Err(error), Err(_)) => Err(error),
            (Err(error), Ok(graph)) => {
                self.device.drop_graph(graph);
                Err(error)
            }
        }
    }

    /// Makes up for the calls that were skipped: launches the graph if they are all its calls.
    fn flush(&self) -> Result<(), DeviceError> {
        let mut state = self.state();
        let State { current: Some(pass), replays, .. } = &mut *state else { return Ok(()) };
        let Mode::Comparing(skipped) = pass.mode else { return Ok(()) };
        pass.mode = Mode::Forwarding;
        let plan = &mut pass.plan;
        plan.misses += 1;
        if let Some(graph) = plan.graph
            && skipped == plan.calls.len()
        {
            self.device.replay(graph)?;
            *replays += 1;
            (plan.misses, plan.differences) = (0, 0);
            return Ok(());
        }
        plan.calls[..skipped].iter().try_for_each(|call| call.make(&*self.device))
    }

    /// Handles a call. `is_same` compares it with a call of the graph, and `call` builds one to write down.
    fn handle(
        &self,
        is_same: impl FnOnce(&Call) -> bool,
        call: impl Fn() -> Call,
    ) -> Result<(), DeviceError> {
        let mut state = self.state();
        match state.current.as_mut().map(|pass| (&mut pass.mode, &pass.plan)) {
            Some((Mode::Comparing(next), plan)) if plan.calls.get(*next).is_some_and(is_same) => {
                *next += 1;
                return Ok(());
            }
            Some((Mode::Recording(calls), _)) => calls.push(call()),
            Some((Mode::Comparing(_) | Mode::Forwarding, _)) | None => {}
        }
        drop(state);
        self.flush()?;
        call().make(&*self.device)
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Drop for Recorder<K> {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let current = state.current.iter().map(|pass| &pass.plan);
        for graph in state.plans.values().chain(current).filter_map(|plan| plan.graph) {
            self.device.drop_graph(graph);
        }
    }
}

impl<K: Clone + Eq + Hash + std::fmt::Debug + Send> Device for Recorder<K> {
    fn description(&self) -> String {
        self.device.description()
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        self.device.allocate(bytes)
    }

    fn free(&self, address: Address) {
        self.device.free(address);
    }

    /// Runs at once, even if calls before it were skipped; see the module.
    fn upload(&self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.device.upload(to, bytes)
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.flush()?;
        self.device.download(from, bytes)
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        let call = Call::Copy { from, to, bytes };
        self.handle(|other| *other == call, || call.clone())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        let Launch { kernel, grid, threads, arguments } = *launch;
        let call = || Call::Launch {
            kernel: kernel.to_owned(),
            grid,
            threads,
            arguments: arguments.to_vec(),
        };
        self.handle(|other| other.is_launch(launch), call)
    }

    fn product(&self, product: &Product) -> Result<(), DeviceError> {
        let call = Call::Product(*product);
        self.handle(|other| *other == call, || call.clone())
    }

    fn begin_capture(&self) -> Result<(), DeviceError> {
        self.flush()?;
        self.device.begin_capture()
    }

    fn end_capture(&self) -> Result<GraphId, DeviceError> {
        self.device.end_capture()
    }

    fn replay(&self, graph: GraphId) -> Result<(), DeviceError> {
        self.flush()?;
        self.device.replay(graph)
    }

    fn drop_graph(&self, graph: GraphId) {
        self.device.drop_graph(graph);
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.flush()?;
        self.device.synchronize()
    }

    fn memory_info(&self) -> Result<MemoryInfo, DeviceError> {
        self.device.memory_info()
    }
}
