//! A device of a few numbers instead of kernels. It shows which calls reach it, and computes results that depend on the
//! order of all calls.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};

use crate::gpu::device::{
    Address, Argument, Device, DeviceError, GraphId, Launch, MemoryInfo, Product,
};

/// Memory whose cells are 64-bit integers, each at an address of its own. A cell that was never written holds 0.
#[derive(Debug, Default)]
pub(super) struct ScriptedDevice {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    cells: HashMap<u64, i64>,
    /// Sizes of the allocations by address.
    allocations: BTreeMap<u64, usize>,
    /// Addresses of the next allocations, the last one first.
    addresses: Vec<u64>,
    /// Largest sum of the allocations' sizes, if it is bounded.
    most_bytes: Option<usize>,
    capture: Option<Vec<Work>>,
    graphs: HashMap<GraphId, Vec<Work>>,
    graphs_ended: u64,
    /// Names of the calls so far, those that failed included.
    calls: Vec<&'static str>,
    /// Number of the call that fails, and its error.
    fault: Option<(usize, DeviceError)>,
    lost: Option<DeviceError>,
}

#[derive(Debug, Clone, Copy)]
enum Work {
    Copy { from: u64, to: u64 },
    Mix { to: u64, from: u64, number: i32 },
    Product { x: u64, w: u64, out: u64 },
}

impl State {
    fn run(&mut self, work: Work) {
        let cell = |address: u64| self.cells.get(&address).copied().unwrap_or(0);
        let (to, value) = match work {
            Work::Copy { from, to } => (to, cell(from)),
            Work::Mix { to, from, number } => (
                to,
                cell(to)
                    .wrapping_mul(31)
                    .wrapping_add(cell(from).wrapping_mul(7))
                    .wrapping_add(i64::from(number)),
            ),
            Work::Product { x, w, out } => (out, cell(x).wrapping_mul(cell(w) + 3)),
        };
        self.cells.insert(to, value);
    }
}

impl ScriptedDevice {
    /// Lets the `n`-th call from now on fail, 0 for the next one; [`Device::free`] and [`Device::drop_graph`] do not count.
    pub(super) fn fail_call(&self, n: usize, error: DeviceError) {
        let mut state = self.lock();
        state.fault = Some((state.calls.len() + n, error));
    }

    /// Removes a fault that has not occurred. Returns whether there was one.
    pub(super) fn clear_fault(&self) -> bool {
        self.lock().fault.take().is_some()
    }

    /// Returns the names of the calls since the last call of this function.
    pub(super) fn take_calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.lock().calls)
    }

    /// Sets the addresses of the next allocations, and how many bytes can be allocated in all.
    pub(super) fn plan_memory(&self, addresses: &[u64], most_bytes: usize) {
        let mut state = self.lock();
        state.addresses = addresses.iter().rev().copied().collect();
        state.most_bytes = Some(most_bytes);
    }

    /// Returns addresses and sizes of the allocations.
    pub(super) fn allocations(&self) -> Vec<(u64, usize)> {
        self.lock().allocations.clone().into_iter().collect()
    }

    /// Returns the number of graphs that exist.
    pub(super) fn graphs(&self) -> usize {
        self.lock().graphs.len()
    }

    pub(super) fn cell(&self, address: u64) -> i64 {
        self.lock().cells.get(&address).copied().unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn call(&self, name: &'static str) -> Result<MutexGuard<'_, State>, DeviceError> {
        let mut state = self.lock();
        let number = state.calls.len();
        state.calls.push(name);
        if let Some(error) = &state.lost {
            return Err(error.clone());
        }
        if let Some((_, error)) = state.fault.take_if(|(failing, _)| *failing == number) {
            if matches!(error, DeviceError::Lost(_)) {
                state.lost = Some(error.clone());
            }
            return Err(error);
        }
        let can_be_captured = ["copy", "launch", "product", "end_capture"].contains(&name);
        assert!(state.capture.is_none() || can_be_captured, "{name} during a capture");
        Ok(state)
    }

    fn submit(&self, name: &'static str, work: Work) -> Result<(), DeviceError> {
        let mut state = self.call(name)?;
        match &mut state.capture {
            Some(recorded) => recorded.push(work),
            None => state.run(work),
        }
        Ok(())
    }
}

impl Device for ScriptedDevice {
    fn description(&self) -> String {
        "scripted".to_owned()
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        let mut state = self.call("allocate")?;
        let used: usize = state.allocations.values().sum();
        if state.most_bytes.is_some_and(|most| used + bytes > most) {
            return Err(DeviceError::OutOfMemory(format!("{bytes} bytes")));
        }
        let after = state.allocations.iter().next_back();
        let after = after.map_or(1 << 20, |(start, bytes)| start + *bytes as u64);
        let address = state.addresses.pop().unwrap_or(after.next_multiple_of(256));
        state.allocations.insert(address, bytes);
        Ok(Address(address))
    }

    fn free(&self, address: Address) {
        assert!(
            self.lock().allocations.remove(&address.0).is_some(),
            "{address:?} is not allocated"
        );
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        let value = i64::from_le_bytes(bytes.try_into().unwrap());
        self.call("upload")?.cells.insert(to.0, value);
        Ok(())
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let state = self.call("download")?;
        bytes.copy_from_slice(&state.cells.get(&from.0).copied().unwrap_or(0).to_le_bytes());
        Ok(())
    }

    fn copy(&self, from: Address, to: Address, _: usize) -> Result<(), DeviceError> {
        self.submit("copy", Work::Copy { from: from.0, to: to.0 })
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        let [Argument::Address(to), Argument::Address(from), Argument::Int(number)] =
            *launch.arguments
        else {
            panic!("arguments of {launch:?}")
        };
        self.submit("launch", Work::Mix { to: to.0, from: from.0, number })
    }

    fn product(&self, product: &Product) -> Result<(), DeviceError> {
        let Product { x, w, out, .. } = *product;
        self.submit("product", Work::Product { x: x.0, w: w.0, out: out.0 })
    }

    fn begin_capture(&self) -> Result<(), DeviceError> {
        self.call("begin_capture")?.capture = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId, DeviceError> {
        // Also ends the capture if it fails, as with CUDA.
        let called = self.call("end_capture").map(drop);
        let mut state = self.lock();
        let recorded = state.capture.take();
        called?;
        let recorded = recorded.expect("a capture is under way");
        let graph = GraphId(state.graphs_ended);
        state.graphs_ended += 1;
        state.graphs.insert(graph, recorded);
        Ok(graph)
    }

    fn replay(&self, graph: GraphId) -> Result<(), DeviceError> {
        let mut state = self.call("replay")?;
        let recorded = state.graphs[&graph].clone();
        for work in recorded {
            state.run(work);
        }
        Ok(())
    }

    fn drop_graph(&self, graph: GraphId) {
        assert!(self.lock().graphs.remove(&graph).is_some(), "{graph:?} does not exist");
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.call("synchronize").map(drop)
    }

    fn memory_info(&self) -> Result<MemoryInfo, DeviceError> {
        self.call("memory_info").map(|_| MemoryInfo { free: 0, total: 0 })
    }
}
