//! Which of NVIDIA's libraries are there.
//!
//! `cudarc` opens a library at the first call of one of its functions and looks each function up at its first call. It
//! panics if either is missing. So nothing in this folder calls a library before [`Library::find`] has found it and
//! all functions that we call.
//!
//! `cudarc` is compiled for CUDA 13.4, although drivers in the field are older:
//! - it holds status codes in Rust enums, in which a code of a newer CUDA version would be undefined behaviour. Codes
//!   226 and 721, for example, came after CUDA 12.0;
//! - compiled for 12.x, it would not look for `libcublasLt.so.13` and `libnvrtc.so.13`. Compiled for 13.x, it looks for
//!   `.so.13`, and then for `.so.12`.
//!
//! Older drivers still work: we only call functions that CUDA 12.0 has, by names that mean the same in all versions.
//! (`cuGraphInstantiate`, for example, has different parameters in different versions, so we call
//! `cuGraphInstantiateWithFlags`.)

#![expect(unsafe_code, reason = "opens shared libraries")]

use cudarc::{cublaslt, driver, nvrtc};

use super::unavailable::CudaUnavailable;

/// A library that is opened at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Library {
    /// `libcuda.so.1`, which comes with the driver.
    Driver,
    /// `libcublasLt.so.12` or `.13`, which comes with the CUDA toolkit.
    CublasLt,
    /// `libnvrtc.so.12` or `.13`, which comes with the CUDA toolkit.
    Nvrtc,
}

/// What [`Library::find`] did not find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// The library.
    Library,
    /// A function of the library, which is probably too old.
    Function { library: &'static str, function: &'static str },
}

/// Functions of the driver that this folder calls. All of them exist since CUDA 11.4. A name with `_v2` is what the
/// macro of the shorter name in `cuda.h` stands for.
const DRIVER: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuModuleGetFunction",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
];

/// Functions of cuBLASLt that this folder calls.
const CUBLAS_LT: &[&str] = &[
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtGetCudartVersion",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
];

/// Functions of NVRTC that this folder calls.
const NVRTC: &[&str] = &[
    "nvrtcCompileProgram",
    "nvrtcCreateProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetCUBIN",
    "nvrtcGetCUBINSize",
    "nvrtcGetNumSupportedArchs",
    "nvrtcGetPTX",
    "nvrtcGetPTXSize",
    "nvrtcGetProgramLog",
    "nvrtcGetProgramLogSize",
    "nvrtcGetSupportedArchs",
    "nvrtcVersion",
];

impl Library {
    /// Checks that the library and its functions are there. From then on the library stays open.
    pub(super) fn find(self) -> Result<(), Missing> {
        if !self.is_present() {
            return Err(Missing::Library);
        }
        match self.functions().iter().find(|name| !self.has(name)) {
            Some(&function) => Err(Missing::Function { library: self.file(), function }),
            None => Ok(()),
        }
    }

    /// As [`find`](Self::find), for libraries without which nothing works.
    ///
    /// # Errors
    /// `missing` if there is no such library, and [`CudaUnavailable::FunctionMissing`] if it is too old.
    pub(super) fn require(self, missing: CudaUnavailable) -> Result<(), CudaUnavailable> {
        self.find().map_err(|what| match what {
            Missing::Library => missing,
            Missing::Function { library, function } => {
                CudaUnavailable::FunctionMissing { library, function }
            }
        })
    }

    fn is_present(self) -> bool {
        // SAFETY: opening one of NVIDIA's libraries runs its initialisers, which have no requirements.
        unsafe {
            match self {
                Self::Driver => driver::sys::is_culib_present(),
                Self::CublasLt => cublaslt::sys::is_culib_present(),
                Self::Nvrtc => nvrtc::sys::is_culib_present(),
            }
        }
    }

    /// The library must be present.
    fn has(self, function: &str) -> bool {
        type Function = unsafe extern "C" fn();
        // SAFETY: the symbol is only looked up, and never called through this type.
        unsafe {
            match self {
                Self::Driver => driver::sys::culib().get::<Function>(function).is_ok(),
                Self::CublasLt => cublaslt::sys::culib().get::<Function>(function).is_ok(),
                Self::Nvrtc => nvrtc::sys::culib().get::<Function>(function).is_ok(),
            }
        }
    }

    fn functions(self) -> &'static [&'static str] {
        match self {
            Self::Driver => DRIVER,
            Self::CublasLt => CUBLAS_LT,
            Self::Nvrtc => NVRTC,
        }
    }

    /// Name of the library in messages.
    fn file(self) -> &'static str {
        match self {
            Self::Driver => "libcuda.so.1",
            Self::CublasLt => "libcublasLt.so",
            Self::Nvrtc => "libnvrtc.so",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Names of all functions that `text` calls as `sys::name(`, or `driver::name(` where `sys` is cuBLASLt's.
    fn called(text: &str) -> impl Iterator<Item = &str> {
        let paths = text.split("sys::").skip(1).chain(text.split(" driver::").skip(1));
        paths.filter_map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
            rest[end..].starts_with('(').then_some(&rest[..end])
        })
    }

    #[test]
    fn functions_that_are_called_are_required_and_no_others() {
        let sources = [
            include_str!("compile.rs"),
            include_str!("context.rs"),
            include_str!("device.rs"),
            include_str!("probe.rs"),
            include_str!("products/descriptors.rs"),
            include_str!("products/mod.rs"),
            include_str!("staging.rs"),
        ];
        let called: BTreeSet<_> = sources.into_iter().flat_map(called).collect();
        let required: BTreeSet<_> =
            [DRIVER, CUBLAS_LT, NVRTC].into_iter().flatten().copied().collect();
        assert_eq!(called, required);
    }

    #[test]
    fn symbols_are_found_in_the_libraries_that_are_here() {
        for library in [Library::Driver, Library::CublasLt, Library::Nvrtc] {
            match library.find() {
                Ok(()) => println!("{}: complete", library.file()),
                Err(Missing::Library) => println!("{}: missing", library.file()),
                Err(Missing::Function { function, .. }) => panic!("{library:?}: no {function}"),
            }
        }
    }
}
