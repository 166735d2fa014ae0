//! Status codes of the driver and of cuBLASLt, and which [`DeviceError`] each becomes. The code decides, never the text
//! of a message.

use cudarc::cublaslt::sys::cublasStatus_t;
use cudarc::driver::sys::CUresult;

use crate::gpu::device::DeviceError;

/// What a failed call means for later calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Severity {
    /// Smaller work may succeed.
    OutOfMemory,
    /// Every later call of this process fails.
    Lost,
    /// Only this call failed.
    Failed,
}

/// Classifies a code of the driver (`CUresult` in `cuda.h`).
///
/// Of the codes for which `cuda.h` (13.5) says that they leave "the process in an inconsistent state", all are here: 226,
/// 700, 702, 714 to 719, 721 and 911; also 710, after which the context "cannot be used anymore". The others are not
/// documented so, but nothing can be computed after them either: the driver or the context is gone (4, 709), memory or
/// links of the device are corrupt (214, 220), or the driver itself does not know what happened (999). Code 720
/// (`COOPERATIVE_LAUNCH_TOO_LARGE`) lies between them, but rejects only the launch.
pub(super) fn classify_driver(code: u32) -> Severity {
    match code {
        2 => Severity::OutOfMemory,
        4 | 214 | 220 | 226 | 700 | 702 | 709 | 710 | 714..=719 | 721 | 911 | 999 => Severity::Lost,
        _ => Severity::Failed,
    }
}

/// Classifies a code of cuBLASLt (`cublasStatus_t` in `cublas_api.h`): 3 is `ALLOC_FAILED`. No code of cuBLASLt is sticky
/// itself; the driver knows whether its context was lost.
pub(super) fn classify_cublas(code: u32) -> Severity {
    if code == 3 { Severity::OutOfMemory } else { Severity::Failed }
}

/// Turns the result of a function of the driver into a `Result`. `call` names the function in messages.
pub(super) fn check(call: &str, status: CUresult) -> Result<(), DeviceError> {
    if status == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let code = status as u32;
    Err(error(classify_driver(code), format!("{call} returned {status:?} ({code})")))
}

/// Turns the result of a function of cuBLASLt into a `Result`. `call` names the function in messages.
pub(super) fn check_cublas(call: &str, status: cublasStatus_t) -> Result<(), DeviceError> {
    if status == cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    let code = status as u32;
    Err(error(classify_cublas(code), format!("{call} returned {status:?} ({code})")))
}

fn error(severity: Severity, message: String) -> DeviceError {
    match severity {
        Severity::OutOfMemory => DeviceError::OutOfMemory(message),
        Severity::Lost => DeviceError::Lost(message),
        Severity::Failed => DeviceError::Failed(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_codes_become_errors_by_number() {
        let cases = [
            (CUresult::CUDA_ERROR_INVALID_VALUE, Severity::Failed),
            (CUresult::CUDA_ERROR_OUT_OF_MEMORY, Severity::OutOfMemory),
            (CUresult::CUDA_ERROR_NOT_INITIALIZED, Severity::Failed),
            (CUresult::CUDA_ERROR_DEINITIALIZED, Severity::Lost),
            (CUresult::CUDA_ERROR_ECC_UNCORRECTABLE, Severity::Lost),
            (CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE, Severity::Lost),
            (CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION, Severity::Failed),
            (CUresult::CUDA_ERROR_CONTAINED, Severity::Lost),
            (CUresult::CUDA_ERROR_NOT_FOUND, Severity::Failed),
            (CUresult::CUDA_ERROR_NOT_READY, Severity::Failed),
            (CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, Severity::Lost),
            (CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, Severity::Failed),
            (CUresult::CUDA_ERROR_LAUNCH_TIMEOUT, Severity::Lost),
            (CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED, Severity::Lost),
            (CUresult::CUDA_ERROR_ASSERT, Severity::Lost),
            (CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, Severity::Failed),
            (CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR, Severity::Lost),
            (CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION, Severity::Lost),
            (CUresult::CUDA_ERROR_MISALIGNED_ADDRESS, Severity::Lost),
            (CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE, Severity::Lost),
            (CUresult::CUDA_ERROR_INVALID_PC, Severity::Lost),
            (CUresult::CUDA_ERROR_LAUNCH_FAILED, Severity::Lost),
            (CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE, Severity::Failed),
            (CUresult::CUDA_ERROR_TENSOR_MEMORY_LEAK, Severity::Lost),
            (CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, Severity::Failed),
            (CUresult::CUDA_ERROR_EXTERNAL_DEVICE, Severity::Lost),
            (CUresult::CUDA_ERROR_UNKNOWN, Severity::Lost),
        ];
        for (status, expected) in cases {
            assert_eq!(classify_driver(status as u32), expected, "{status:?}");
        }
        // A code that this version of cudarc does not know.
        assert_eq!(classify_driver(12_345), Severity::Failed);
    }

    #[test]
    fn cublas_codes_become_errors_by_number() {
        let cases = [
            (cublasStatus_t::CUBLAS_STATUS_NOT_INITIALIZED, Severity::Failed),
            (cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED, Severity::OutOfMemory),
            (cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED, Severity::Failed),
            (cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED, Severity::Failed),
        ];
        for (status, expected) in cases {
            assert_eq!(classify_cublas(status as u32), expected, "{status:?}");
        }
    }

    #[test]
    fn messages_name_the_call_and_the_code() {
        assert_eq!(check("cuInit", CUresult::CUDA_SUCCESS), Ok(()));
        assert_eq!(
            check("cuMemAlloc", CUresult::CUDA_ERROR_OUT_OF_MEMORY),
            Err(DeviceError::OutOfMemory(
                "cuMemAlloc returned CUDA_ERROR_OUT_OF_MEMORY (2)".to_owned()
            ))
        );
        assert_eq!(
            check_cublas("cublasLtCreate", cublasStatus_t::CUBLAS_STATUS_NOT_INITIALIZED),
            Err(DeviceError::Failed(
                "cublasLtCreate returned CUBLAS_STATUS_NOT_INITIALIZED (1)".to_owned()
            ))
        );
    }
}
