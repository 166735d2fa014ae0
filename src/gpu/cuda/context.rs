//! The context of a device, the stream in which all its work runs, and the module with the kernels.

#![expect(unsafe_code, reason = "calls the CUDA driver")]

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ptr::null_mut;

use cudarc::driver::sys::{
    self, CUcontext, CUctx_st, CUdevice, CUfunc_st, CUfunction, CUgraph, CUgraphExec,
    CUgraphExec_st, CUjit_option, CUmod_st, CUmodule, CUstream, CUstream_flags, CUstream_st,
};

use super::probe;
use super::status::check;
use crate::gpu::device::DeviceError;

/// A handle of one of CUDA's objects.
#[derive(Debug)]
pub(super) struct Handle<T>(pub(super) *mut T);

// SAFETY: the driver and cuBLASLt may be called from any thread, with handles from any other; nobody dereferences them
// on the host. Every call makes the context current to its thread first.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: as above; calls that change an object are behind the lock of `CudaDevice`.
unsafe impl<T> Sync for Handle<T> {}

/// The primary context of a device, and one stream.
///
/// All other objects of this folder belong to the context, so it must be dropped last.
#[derive(Debug)]
pub(super) struct Context {
    device: CUdevice,
    primary: Handle<CUctx_st>,
    stream: Handle<CUstream_st>,
}

impl Context {
    /// Creates the context, or shares it with other parts of the process, and makes it current to this thread.
    pub(super) fn try_new(ordinal: usize) -> Result<Self, DeviceError> {
        let device = probe::handle(ordinal)?;
        let mut primary: CUcontext = null_mut();
        // SAFETY: the pointer is to a local variable, and the driver returned the device.
        check("cuDevicePrimaryCtxRetain", unsafe {
            sys::cuDevicePrimaryCtxRetain(&raw mut primary, device)
        })?;
        let mut this = Self { device, primary: Handle(primary), stream: Handle(null_mut()) };
        this.make_current()?;
        // Does not wait for the default stream, which we do not use but a library might.
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the pointer is to a field of a local variable.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&raw mut this.stream.0, flags) })?;
        Ok(this)
    }

    /// Makes the context current to the calling thread, as every other call requires. Costs less than a microsecond.
    pub(super) fn make_current(&self) -> Result<(), DeviceError> {
        // SAFETY: the context is retained until `self` is dropped.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.primary.0) })
    }

    pub(super) fn stream(&self) -> CUstream {
        self.stream.0
    }

    /// Waits for all work in the stream.
    pub(super) fn synchronize(&self) -> Result<(), DeviceError> {
        // SAFETY: the stream lives as long as `self`.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream.0) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: both are ours, and nobody uses them after this. A null stream is one whose creation failed. Errors,
        // which only a lost device returns, are of no use here.
        unsafe {
            if !self.stream.0.is_null() {
                let _ = sys::cuStreamDestroy_v2(self.stream.0);
            }
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// Size of the buffer for messages of the driver's compiler.
const LOG_BYTES: usize = 16 << 10;

/// Loaded machine code, and its functions by name.
#[derive(Debug)]
pub(super) struct Module {
    module: Handle<CUmod_st>,
    functions: HashMap<String, Handle<CUfunc_st>>,
}

impl Module {
    /// Loads machine code (cubin), or PTX with a zero at its end, which the driver compiles.
    ///
    /// # Errors
    /// The driver's error, with the messages of its compiler.
    pub(super) fn try_load(image: &[u8]) -> Result<Self, DeviceError> {
        let mut log = vec![0_u8; LOG_BYTES];
        let mut options = [
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // `cuModuleLoadDataEx` takes an integer option as the value of a pointer (`CUjit_option` in cuda.h).
        let mut values: [*mut c_void; 2] =
            [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(LOG_BYTES)];
        let mut module: CUmodule = null_mut();
        // SAFETY: the image is a cubin, which states its own size, or text with a zero at its end. The driver writes at
        // most `LOG_BYTES` into the log.
        let status = unsafe {
            sys::cuModuleLoadDataEx(
                &raw mut module,
                image.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        check("cuModuleLoadDataEx", status).map_err(|error| with_log(error, &log))?;
        Ok(Self { module: Handle(module), functions: HashMap::new() })
    }

    /// Returns the function with this name. Looks it up only once.
    pub(super) fn function(&mut self, name: &str) -> Result<CUfunction, DeviceError> {
        if let Some(function) = self.functions.get(name) {
            return Ok(function.0);
        }
        let symbol = CString::new(name)
            .map_err(|_| DeviceError::Failed(format!("kernel name {name:?} contains a zero")))?;
        let mut function: CUfunction = null_mut();
        // SAFETY: the module is loaded, and the name ends with a zero.
        let status =
            unsafe { sys::cuModuleGetFunction(&raw mut function, self.module.0, symbol.as_ptr()) };
        check(&format!("cuModuleGetFunction({name})"), status)?;
        self.functions.insert(name.to_owned(), Handle(function));
        Ok(function)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: the module is ours, and no work that uses it is left: `CudaDevice` has synchronised the stream.
        let _ = unsafe { sys::cuModuleUnload(self.module.0) };
    }
}

/// Appends the messages of the driver's compiler to an error.
fn with_log(error: DeviceError, log: &[u8]) -> DeviceError {
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let log = String::from_utf8_lossy(&log[..end]);
    match (error, log.trim()) {
        (DeviceError::Failed(message), log) if !log.is_empty() => {
            DeviceError::Failed(format!("{message}: {log}"))
        }
        (error, _) => error,
    }
}

/// A recorded sequence of work that can be launched.
#[derive(Debug)]
pub(super) struct Graph(Handle<CUgraphExec_st>);

impl Graph {
    /// Ends the capture of the stream, and makes what it recorded launchable. Also after an error the stream no longer
    /// captures.
    pub(super) fn end_capture(context: &Context) -> Result<Self, DeviceError> {
        let mut recorded: CUgraph = null_mut();
        // SAFETY: the stream lives, and the pointer is to a local variable.
        let status = unsafe { sys::cuStreamEndCapture(context.stream(), &raw mut recorded) };
        check("cuStreamEndCapture", status)?;
        if recorded.is_null() {
            return Err(DeviceError::Failed("cuStreamEndCapture returned no graph".to_owned()));
        }
        let mut graph: CUgraphExec = null_mut();
        // SAFETY: the driver has just returned the recorded graph. The launchable one does not need it afterwards.
        let status = unsafe {
            let status = sys::cuGraphInstantiateWithFlags(&raw mut graph, recorded, 0);
            let _ = sys::cuGraphDestroy(recorded);
            status
        };
        check("cuGraphInstantiateWithFlags", status)?;
        let graph = Self(Handle(graph));
        // Without this the first launch would also copy the graph to the device.
        // SAFETY: graph and stream live.
        check("cuGraphUpload", unsafe { sys::cuGraphUpload(graph.0.0, context.stream()) })?;
        Ok(graph)
    }

    /// Launches the recorded work once.
    pub(super) fn launch(&self, context: &Context) -> Result<(), DeviceError> {
        // SAFETY: graph and stream live.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.0.0, context.stream()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the graph is ours; the driver keeps what is still running until it is done.
        let _ = unsafe { sys::cuGraphExecDestroy(self.0.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_the_compiler_are_appended_to_failures_only() {
        let failed = DeviceError::Failed("cuModuleLoadDataEx".to_owned());
        let log = b"line 7: unknown instruction\n\0\0\0";
        assert_eq!(
            with_log(failed.clone(), log),
            DeviceError::Failed("cuModuleLoadDataEx: line 7: unknown instruction".to_owned())
        );
        assert_eq!(with_log(failed.clone(), &[0; 4]), failed);
        let memory = DeviceError::OutOfMemory("cuModuleLoadDataEx".to_owned());
        assert_eq!(with_log(memory.clone(), log), memory);
    }
}
