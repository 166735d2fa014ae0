//! [`CudaDevice`]: the calls of [`Device`], made of the other files of this folder.

#![expect(unsafe_code, reason = "calls the CUDA driver")]

use std::collections::{HashMap, HashSet};
use std::ffi::c_void;
use std::fmt::{self, Debug, Formatter};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{self, CUstreamCaptureMode};

use super::compile::{KernelCode, KernelSource, load_kernels};
use super::context::{Context, Graph, Module};
use super::probe::{DeviceInfo, probe};
use super::products::{Products, require_cublas_lt};
use super::staging::Staging;
use super::status::check;
use super::unavailable::CudaUnavailable;
use crate::gpu::device::{
    Address, Argument, Device, DeviceError, GraphId, Launch, MemoryInfo, Product,
};

/// An NVIDIA GPU.
///
/// May be called from any thread; calls wait for each other.
///
/// While work is captured, `launch` and `product` must find everything loaded: the driver and cuBLASLt load a kernel at
/// its first launch, and may wait for the device then. So run the same work once before it is captured.
pub struct CudaDevice {
    /// Dropped before `context`, to which everything in it belongs.
    state: Mutex<State>,
    context: Context,
    info: DeviceInfo,
    kernels: KernelCode,
}

/// What one call at a time may use. The order of the fields is that in which they are dropped: graphs use all the others.
struct State {
    graphs: HashMap<GraphId, Graph>,
    /// Graphs so far, also those that were dropped.
    graphs_ended: u64,
    /// Memory that is not freed yet. It would outlive the device, because cuBLASLt keeps the primary context alive.
    allocations: HashSet<Address>,
    products: Products,
    module: Module,
    staging: Staging,
    /// If work is being captured: memory that shall be freed when the capture ends.
    capture: Option<Vec<Address>>,
}

/// Returns the ordinals of the devices that [`CudaDevice::try_new`] can use, as far as that is known without opening them;
/// at least one.
///
/// # Errors
/// Says why there is none: the reason of the first device, or why none was found.
pub fn usable() -> Result<Vec<usize>, CudaUnavailable> {
    let (mut ordinals, mut reason) = (Vec::new(), None);
    for info in probe()? {
        match info.check_architecture().and_then(|()| require_cublas_lt(info.driver)) {
            Ok(()) => ordinals.push(info.ordinal),
            Err(error) => reason = reason.or(Some(error)),
        }
    }
    if ordinals.is_empty() {
        Err(reason.unwrap_or(CudaUnavailable::NoDevice))
    } else {
        Ok(ordinals)
    }
}

/// Returns the device with this number, if [`CudaDevice::try_new`] can use it, as far as that is known without opening it.
///
/// # Errors
/// Says why it cannot be used.
pub fn check_usable(ordinal: usize) -> Result<DeviceInfo, CudaUnavailable> {
    let info = choose(probe()?, ordinal)?;
    info.check_architecture()?;
    require_cublas_lt(info.driver)?;
    Ok(info)
}

impl CudaDevice {
    /// Opens a device and loads the kernels, whose compilation takes a few seconds. Uses 34 MB of its memory for cuBLASLt,
    /// besides what the context takes (some hundred MB), and 21 MB of pinned host memory.
    ///
    /// # Errors
    /// See [`CudaUnavailable`].
    pub fn try_new(ordinal: usize, source: &KernelSource) -> Result<Self, CudaUnavailable> {
        let info = check_usable(ordinal)?;
        let failed = |error| CudaUnavailable::StartFailed { ordinal, error };
        let context = Context::try_new(ordinal).map_err(failed)?;
        let (module, kernels) = load_kernels(source, info.driver, info.compute_capability)?;
        let state = State {
            graphs: HashMap::new(),
            graphs_ended: 0,
            allocations: HashSet::new(),
            products: Products::try_new().map_err(failed)?,
            module,
            staging: Staging::try_new().map_err(failed)?,
            capture: None,
        };
        Ok(Self { state: Mutex::new(state), context, info, kernels })
    }

    /// Name, architecture and memory of the device.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Which code of the kernels is loaded. If it is not compiled for this device, they may be slower, which deserves a
    /// warning in the log.
    #[must_use]
    pub fn kernel_code(&self) -> &KernelCode {
        &self.kernels
    }

    /// Makes the context current to this thread, and waits for calls of other threads.
    fn enter(&self) -> Result<MutexGuard<'_, State>, DeviceError> {
        // A panic leaves nothing half-done that a later call could not bear.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.context.make_current()?;
        Ok(state)
    }

    /// As [`enter`](Self::enter), for calls that would invalidate a capture.
    fn enter_outside_capture(&self, call: &str) -> Result<MutexGuard<'_, State>, DeviceError> {
        let state = self.enter()?;
        if state.capture.is_some() {
            return Err(DeviceError::Failed(format!("{call} is not allowed during a capture")));
        }
        Ok(state)
    }
}

/// Finds the device with this number.
fn choose(devices: Vec<DeviceInfo>, ordinal: usize) -> Result<DeviceInfo, CudaUnavailable> {
    let count = devices.len();
    devices
        .into_iter()
        .find(|device| device.ordinal == ordinal)
        .ok_or(CudaUnavailable::NoSuchDevice { ordinal, count })
}

/// The values of a kernel's arguments, each at the start of eight bytes, where the driver reads as many as the parameter
/// has.
fn argument_values(arguments: &[Argument]) -> Vec<u64> {
    let narrow = |[a, b, c, d]: [u8; 4]| u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]);
    arguments
        .iter()
        .map(|argument| match argument {
            Argument::Address(address) => address.0,
            Argument::Int(value) => narrow(value.to_ne_bytes()),
            Argument::Float(value) => narrow(value.to_ne_bytes()),
        })
        .collect()
}

/// Frees memory. Nothing can be done about an error, which only a lost device causes.
fn free_now(address: Address) {
    // SAFETY: no work uses the memory any longer: the caller has synchronised the stream.
    let _ = unsafe { sys::cuMemFree_v2(address.0) };
}

impl Device for CudaDevice {
    fn description(&self) -> String {
        let DeviceInfo { name, compute_capability, memory_bytes, driver, .. } = &self.info;
        let gib = *memory_bytes as f64 / f64::from(1 << 30);
        format!(
            "{name}, compute capability {compute_capability}, {gib:.1} GiB, driver for CUDA {driver}, {}",
            self.kernels
        )
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        let mut state = self.enter()?;
        let mut address = 0;
        // The driver rejects 0 bytes. All addresses that it returns are multiples of 256.
        // SAFETY: the pointer is to a local variable.
        let status = unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes.max(1)) };
        check(&format!("cuMemAlloc of {bytes} bytes"), status)?;
        state.allocations.insert(Address(address));
        Ok(Address(address))
    }

    fn free(&self, address: Address) {
        let Ok(mut state) = self.enter() else {
            return;
        };
        if !state.allocations.remove(&address) {
            return;
        }
        if let Some(frees) = &mut state.capture {
            frees.push(address);
        } else if self.context.synchronize().is_ok() {
            free_now(address);
        }
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.enter_outside_capture("upload")?.staging.upload(&self.context, to, bytes)
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.enter_outside_capture("download")?.staging.download(&self.context, from, bytes)
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        if bytes == 0 {
            return Ok(());
        }
        let _state = self.enter()?;
        // SAFETY: both ranges are the caller's memory of the device.
        let status =
            unsafe { sys::cuMemcpyDtoDAsync_v2(to.0, from.0, bytes, self.context.stream()) };
        check("cuMemcpyDtoDAsync", status)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        let mut state = self.enter()?;
        let function = state.module.function(launch.kernel)?;
        let mut values = argument_values(launch.arguments);
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        let [x, y, z] = launch.grid;
        // SAFETY: the function belongs to the loaded module. The caller gives one argument for each parameter of the
        // kernel; the driver copies their values before it returns.
        let status = unsafe {
            sys::cuLaunchKernel(
                function,
                x,
                y,
                z,
                launch.threads,
                1,
                1,
                0,
                self.context.stream(),
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check("cuLaunchKernel", status).map_err(|error| in_launch(error, launch))
    }

    fn product(&self, product: &Product) -> Result<(), DeviceError> {
        self.enter()?.products.compute(&self.context, product)
    }

    fn begin_capture(&self) -> Result<(), DeviceError> {
        let mut state = self.enter_outside_capture("begin_capture")?;
        // Relaxed: calls that do not concern the stream, such as `cuMemGetInfo`, stay allowed in all threads.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives.
        let status = unsafe { sys::cuStreamBeginCapture_v2(self.context.stream(), mode) };
        check("cuStreamBeginCapture", status)?;
        state.capture = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId, DeviceError> {
        let mut state = self.enter()?;
        let Some(frees) = state.capture.take() else {
            return Err(DeviceError::Failed("end_capture without begin_capture".to_owned()));
        };
        let graph = Graph::end_capture(&self.context);
        if !frees.is_empty() && self.context.synchronize().is_ok() {
            frees.into_iter().for_each(free_now);
        }
        let id = GraphId(state.graphs_ended);
        state.graphs.insert(id, graph?);
        state.graphs_ended += 1;
        Ok(id)
    }

    fn replay(&self, graph: GraphId) -> Result<(), DeviceError> {
        let state = self.enter_outside_capture("replay")?;
        let graph = state.graphs.get(&graph);
        graph
            .ok_or_else(|| DeviceError::Failed("replay of an unknown graph".to_owned()))?
            .launch(&self.context)
    }

    fn drop_graph(&self, graph: GraphId) {
        // Without the context, the device is lost and the graph with it.
        if let Ok(mut state) = self.enter() {
            state.graphs.remove(&graph);
        }
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        let _state = self.enter_outside_capture("synchronize")?;
        self.context.synchronize()
    }

    fn memory_info(&self) -> Result<MemoryInfo, DeviceError> {
        // Without the lock, so that metrics do not wait for a download.
        self.context.make_current()?;
        let (mut free, mut total) = (0_usize, 0_usize);
        // SAFETY: the pointers are to local variables.
        let status = unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
        check("cuMemGetInfo", status)?;
        Ok(MemoryInfo { free: free as u64, total: total as u64 })
    }
}

/// Names the kernel in the error of its launch.
fn in_launch(error: DeviceError, launch: &Launch<'_>) -> DeviceError {
    match error {
        DeviceError::Failed(message) => DeviceError::Failed(format!(
            "{message} for kernel {} with grid {:?} of {} threads",
            launch.kernel, launch.grid, launch.threads
        )),
        other @ (DeviceError::OutOfMemory(_) | DeviceError::Lost(_)) => other,
    }
}

impl Debug for CudaDevice {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaDevice")
            .field("info", &self.info)
            .field("kernels", &self.kernels)
            .finish_non_exhaustive()
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // The fields free their parts on this thread, when nothing runs any longer.
        if self.context.make_current().is_err() {
            return;
        }
        let _ = self.context.synchronize();
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let frees = state.capture.take().unwrap_or_default();
        state.allocations.drain().chain(frees).for_each(free_now);
    }
}

#[cfg(test)]
mod tests {
    use super::super::unavailable::Version;
    use super::*;

    #[test]
    fn arguments_are_at_the_start_of_their_cells() {
        let values = argument_values(&[
            Argument::Address(Address(0x1234_5678_9abc)),
            Argument::Int(-2),
            Argument::Float(1.5),
        ]);
        let start = |value: u64| {
            let [a, b, c, d, ..] = value.to_ne_bytes();
            [a, b, c, d]
        };
        assert_eq!(values[0], 0x1234_5678_9abc);
        assert_eq!(i32::from_ne_bytes(start(values[1])), -2);
        assert_eq!(f32::from_ne_bytes(start(values[2])).to_bits(), 1.5_f32.to_bits());
    }

    #[test]
    fn a_number_without_a_device_is_an_error_that_names_both() {
        let device = |ordinal| DeviceInfo {
            ordinal,
            name: "GPU".to_owned(),
            compute_capability: Version { major: 9, minor: 0 },
            memory_bytes: 1 << 30,
            driver: Version { major: 12, minor: 4 },
        };
        let devices = || vec![device(0), device(1)];
        assert_eq!(choose(devices(), 1), Ok(device(1)));
        let error = choose(devices(), 2).expect_err("there are two devices");
        assert_eq!(error.to_string(), "there is no GPU number 2: this host has 2, numbered from 0");
    }

    #[test]
    fn errors_of_launches_name_the_kernel() {
        let launch = Launch { kernel: "gelu_bf16", grid: [1, 2, 3], threads: 64, arguments: &[] };
        let error = in_launch(DeviceError::Failed("cuLaunchKernel".to_owned()), &launch);
        assert_eq!(
            error,
            DeviceError::Failed(
                "cuLaunchKernel for kernel gelu_bf16 with grid [1, 2, 3] of 64 threads".to_owned()
            )
        );
    }

    /// Where there is a device, [`CudaDevice::try_new`] is tested by the tests of the backend.
    #[test]
    fn without_a_device_opening_one_says_what_is_missing() {
        let Err(expected) = probe() else {
            println!("skipped: this host has a device");
            return;
        };
        let source = KernelSource { cuda: String::new(), ptx: "" };
        assert_eq!(CudaDevice::try_new(0, &source).err(), Some(expected));
    }
}
