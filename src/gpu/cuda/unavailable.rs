//! Why there is no usable CUDA device. Each message says what is missing and what to do.

use std::fmt::{self, Display, Formatter};

use crate::gpu::device::DeviceError;

/// A version of CUDA, or of one of its libraries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// 12 in CUDA 12.4.
    pub major: u32,
    /// 4 in CUDA 12.4.
    pub minor: u32,
}

impl Version {
    /// Reads the form of `cuDriverGetVersion`: 12040 is 12.4.
    pub(super) fn from_number(number: u32) -> Self {
        Self { major: number / 1000, minor: number % 1000 / 10 }
    }
}

impl Display for Version {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Why a CUDA device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaUnavailable {
    /// The library of the driver is not installed.
    #[error(
        "found no NVIDIA driver (libcuda.so.1): install the driver, or start the container with access to GPUs (`docker run --gpus all`)"
    )]
    DriverMissing,
    /// The driver is installed, but refuses to work.
    #[error(
        "the NVIDIA driver does not work: {0}; check that `nvidia-smi` works in the same environment"
    )]
    DriverFailed(DeviceError),
    /// The driver is older than the oldest version that we support.
    #[error("the NVIDIA driver supports CUDA {found}, but {needed} is needed: update the driver")]
    DriverTooOld {
        /// The newest CUDA version that the driver supports.
        found: Version,
        /// The oldest version that would do.
        needed: Version,
    },
    /// A library lacks a function.
    #[error("{library} has no function {function}: install a newer version")]
    FunctionMissing {
        /// File name of the library.
        library: &'static str,
        /// Name of the function.
        function: &'static str,
    },
    /// The driver works, but sees no device.
    #[error(
        "the NVIDIA driver found no GPU: check `nvidia-smi` and `CUDA_VISIBLE_DEVICES`, or start the container with access to GPUs (`docker run --gpus all`)"
    )]
    NoDevice,
    /// No device has this number.
    #[error("there is no GPU number {ordinal}: this host has {count}, numbered from 0")]
    NoSuchDevice {
        /// Number of the device, from 0.
        ordinal: usize,
        /// Number of devices.
        count: usize,
    },
    /// The architecture of the device lacks instructions that our kernels use.
    #[error(
        "{name} has compute capability {found}, but 8.0 (Ampere) or newer is needed: use a newer GPU, or the CPU"
    )]
    ArchitectureTooOld {
        /// Name of the device.
        name: String,
        /// Compute capability of the device.
        found: Version,
    },
    /// cuBLASLt is not installed.
    #[error(
        "found no libcublasLt.so.12 or libcublasLt.so.13: install cuBLAS of CUDA 12 or 13, or mount the library, and add its folder to LD_LIBRARY_PATH"
    )]
    CublasLtMissing,
    /// The version of cuBLASLt does not fit the driver.
    #[error(
        "libcublasLt.so is of CUDA {found}, but the NVIDIA driver supports CUDA {driver}: install cuBLAS of CUDA 12 or newer, but not of a newer major version than the driver"
    )]
    CublasLtMismatch {
        /// The CUDA version of cuBLASLt.
        found: Version,
        /// The newest CUDA version that the driver supports.
        driver: Version,
    },
    /// No machine code of the kernels could be made or loaded.
    #[error("cannot load the kernels: {0}")]
    Kernels(String),
    /// The device could not be prepared for work, for example because another process uses its memory.
    #[error("cannot start GPU number {ordinal}: {error}")]
    StartFailed {
        /// Number of the device, from 0.
        ordinal: usize,
        /// The error of the first call that failed.
        error: DeviceError,
    },
    /// A library behaved in a way that its documentation excludes.
    #[error("the CUDA libraries do not work: {0}; use the CPU, and report this error")]
    Unexpected(String),
}

impl CudaUnavailable {
    /// True if this host has no GPU, as far as the driver knows: then there is nothing to fix.
    #[must_use]
    pub fn is_without_gpu(&self) -> bool {
        matches!(self, Self::DriverMissing | Self::NoDevice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_numbers() {
        assert_eq!(Version::from_number(12_040), Version { major: 12, minor: 4 });
        assert_eq!(Version::from_number(13_000).to_string(), "13.0");
        assert!(Version::from_number(12_090) < Version::from_number(13_000));
    }

    #[test]
    fn messages_are_single_lines_in_lower_case_without_a_full_stop() {
        let version = Version { major: 11, minor: 4 };
        let errors = [
            CudaUnavailable::DriverMissing,
            CudaUnavailable::DriverFailed(DeviceError::Failed("cuInit".to_owned())),
            CudaUnavailable::DriverTooOld { found: version, needed: version },
            CudaUnavailable::FunctionMissing { library: "libcuda.so.1", function: "cuInit" },
            CudaUnavailable::NoDevice,
            CudaUnavailable::NoSuchDevice { ordinal: 2, count: 1 },
            CudaUnavailable::CublasLtMissing,
            CudaUnavailable::CublasLtMismatch { found: version, driver: version },
        ];
        for error in errors {
            let text = error.to_string();
            assert!(!text.contains('\n') && !text.contains("  ") && !text.ends_with('.'), "{text}");
            assert!(text.starts_with(char::is_lowercase), "{text}");
        }
    }
}
