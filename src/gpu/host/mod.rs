//! A device that runs the kernels on the CPU: what tests use instead of a GPU.
//!
//! - [`library`]: the kernels, compiled by the system's C++ compiler;
//! - [`memory`]: memory whose bounds are checked.
//!
//! Work runs during the call that starts it, so no error comes late. Each kernel runs as on a GPU, thread by thread, and
//! its result does not depend on their order: [`HostDevice::set_order`] lets tests see that.

mod library;
mod memory;

use std::collections::HashMap;
use std::fmt::{self, Debug, Formatter};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::device::{
    Address, Argument, Device, DeviceError, Format, GraphId, Launch, MemoryInfo, Product,
};
pub use library::Order;
use library::{Arithmetic, Library};
use memory::Memory;

/// Memory of a device for which no limit is set.
const DEFAULT_LIMIT: u64 = 8 << 30;

/// The CPU as a device.
pub struct HostDevice {
    library: &'static Library,
    state: Mutex<State>,
}

/// What calls change.
#[derive(Default)]
struct State {
    memory: Memory,
    order: Order,
    /// The work of the capture that is under way.
    capture: Option<Vec<Work>>,
    graphs: HashMap<GraphId, Vec<Work>>,
    /// Graphs so far, also those that were dropped.
    graphs_ended: u64,
    /// Calls so far, for [`HostDevice::fail_call`].
    calls: u64,
    faults: HashMap<u64, DeviceError>,
    /// Set once a call has returned [`DeviceError::Lost`].
    lost: Option<DeviceError>,
}

/// One recorded call.
#[derive(Debug, Clone)]
enum Work {
    Copy { from: Address, to: Address, bytes: usize },
    Launch { kernel: String, grid: [u32; 3], threads: u32, arguments: Vec<Argument> },
    Product(Product),
}

impl HostDevice {
    /// Compiles and loads the kernels. Returns `None`, with a message on standard error, if no C++ compiler is found.
    ///
    /// # Panics
    /// If there is a compiler, and it does not accept the kernels.
    #[must_use]
    pub fn try_new() -> Option<Self> {
        Self::with_arithmetic(Arithmetic::Separate)
    }

    /// The same with fused multiplications and additions, as a GPU has them: what is exact without them need not be so
    /// with them. Also `None` if this CPU has no such instructions.
    ///
    /// # Panics
    /// If there is a compiler, and it does not accept the kernels.
    #[must_use]
    pub fn try_with_fused_arithmetic() -> Option<Self> {
        Self::with_arithmetic(Arithmetic::Fused)
    }

    fn with_arithmetic(arithmetic: Arithmetic) -> Option<Self> {
        let library = Library::get(arithmetic)?;
        let state = State { memory: Memory::with_limit(DEFAULT_LIMIT), ..State::default() };
        Some(Self { library, state: Mutex::new(state) })
    }

    /// Sets how many bytes can be allocated in all.
    pub fn set_memory_limit(&self, bytes: u64) {
        self.lock().memory.limit = bytes;
    }

    /// Sets the order in which the threads and blocks of later launches run.
    pub fn set_order(&self, order: Order) {
        self.lock().order = order;
    }

    /// Makes the `n`-th call from now on fail, 0 for the next one. [`Device::free`], [`Device::drop_graph`],
    /// [`Device::description`] and calls of this type's own functions do not count.
    pub fn fail_call(&self, n: u64, error: DeviceError) {
        let mut state = self.lock();
        let call = state.calls + n;
        state.faults.insert(call, error);
    }

    /// Removes the faults that have not occurred. Returns whether there were any.
    pub fn clear_faults(&self) -> bool {
        let faults = std::mem::take(&mut self.lock().faults);
        !faults.is_empty()
    }

    /// Returns how many calls were made so far, counted as in [`fail_call`](Self::fail_call).
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Returns the number of graphs that exist.
    #[must_use]
    pub fn graphs(&self) -> usize {
        self.lock().graphs.len()
    }

    /// Returns the names of all kernels in the library, among them those of `defects.cu`.
    pub(super) fn kernels(&self) -> Vec<String> {
        self.library.kernels()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in another test's thread leaves nothing half done that later calls rely on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a call: counts it, and fails if it has to. `recordable` says that the call may be part of a capture.
    fn begin(&self, recordable: bool) -> Result<MutexGuard<'_, State>, DeviceError> {
        let mut state = self.lock();
        let call = state.calls;
        state.calls += 1;
        if let Some(error) = &state.lost {
            return Err(error.clone());
        }
        if let Some(error) = state.faults.remove(&call) {
            if matches!(error, DeviceError::Lost(_)) {
                state.lost = Some(error.clone());
            }
            return Err(error);
        }
        if state.capture.is_some() && !recordable {
            return Err(DeviceError::Failed("this call cannot be captured".into()));
        }
        Ok(state)
    }

    /// Records the work during a capture, and runs it otherwise.
    fn submit(&self, work: Work) -> Result<(), DeviceError> {
        let mut state = self.begin(true)?;
        match &mut state.capture {
            Some(recorded) => {
                recorded.push(work);
                Ok(())
            }
            None => self.run(&state, &work),
        }
    }

    fn run(&self, state: &State, work: &Work) -> Result<(), DeviceError> {
        match work {
            Work::Copy { from, to, bytes } => state.memory.copy(*from, *to, *bytes),
            Work::Launch { kernel, grid, threads, arguments } => {
                self.library.launch(kernel, *grid, *threads, arguments, state.order)?;
                state.memory.check_guards(kernel)
            }
            Work::Product(product) => {
                check_product(&state.memory, product)?;
                self.library.product(product);
                state.memory.check_guards("product")
            }
        }
    }
}

/// Checks that the operands of a product lie in memory.
fn check_product(memory: &Memory, of: &Product) -> Result<(), DeviceError> {
    let (narrow, out) = (of.format.bytes(), of.out_format.bytes());
    if of.out_format != Format::F32 && of.out_format != of.format {
        return Err(DeviceError::Failed("formats of the product do not fit".into()));
    }
    memory.check(of.x, of.m * of.k * narrow)?;
    memory.check(of.w, of.n * of.k * narrow)?;
    memory.check(of.out, of.m * of.n * out)?;
    if let Some(bias) = of.bias {
        memory.check(bias, of.n * out)?;
    }
    if let Some(residual) = of.residual {
        memory.check(residual, of.m * of.n * out)?;
    }
    Ok(())
}

impl Device for HostDevice {
    fn description(&self) -> String {
        format!("CPU running the GPU kernels, {} bytes", self.lock().memory.limit)
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        self.begin(false)?.memory.allocate(bytes)
    }

    fn free(&self, address: Address) {
        self.lock().memory.free(address);
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.begin(false)?.memory.write(to, bytes)
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.begin(false)?.memory.read(from, bytes)
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        self.submit(Work::Copy { from, to, bytes })
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        self.submit(Work::Launch {
            kernel: launch.kernel.to_owned(),
            grid: launch.grid,
            threads: launch.threads,
            arguments: launch.arguments.to_vec(),
        })
    }

    fn product(&self, product: &Product) -> Result<(), DeviceError> {
        self.submit(Work::Product(*product))
    }

    fn begin_capture(&self) -> Result<(), DeviceError> {
        self.begin(false)?.capture = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId, DeviceError> {
        // A call that fails ends the capture too, as with CUDA. Otherwise one fault would make all later calls fail.
        let mut state = match self.begin(true) {
            Ok(state) => state,
            Err(error) => {
                self.lock().capture = None;
                return Err(error);
            }
        };
        let Some(recorded) = state.capture.take() else {
            return Err(DeviceError::Failed("no capture is under way".into()));
        };
        let graph = GraphId(state.graphs_ended);
        state.graphs_ended += 1;
        state.graphs.insert(graph, recorded);
        Ok(graph)
    }

    fn replay(&self, graph: GraphId) -> Result<(), DeviceError> {
        let state = self.begin(false)?;
        let Some(recorded) = state.graphs.get(&graph) else {
            return Err(DeviceError::Failed(format!("there is no graph {}", graph.0)));
        };
        recorded.iter().try_for_each(|work| self.run(&state, work))
    }

    fn drop_graph(&self, graph: GraphId) {
        self.lock().graphs.remove(&graph);
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.begin(false).map(drop)
    }

    fn memory_info(&self) -> Result<MemoryInfo, DeviceError> {
        let state = self.begin(false)?;
        let total = state.memory.limit;
        Ok(MemoryInfo { free: total.saturating_sub(state.memory.used()), total })
    }
}

impl Debug for HostDevice {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostDevice").finish_non_exhaustive()
    }
}
