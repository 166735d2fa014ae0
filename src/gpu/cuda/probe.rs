//! The CUDA devices of this host.

#![expect(unsafe_code, reason = "calls the CUDA driver")]

use std::ffi::{CStr, c_char, c_int};
use std::panic::catch_unwind;

use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute, CUresult};

use super::library::Library;
use super::status::check;
use super::unavailable::{CudaUnavailable, Version};
use crate::gpu::device::DeviceError;

/// The oldest driver with which we work. Its version of the driver interface has all functions that we call, and CUDA 12
/// is the oldest version whose cuBLASLt we use.
pub(super) const OLDEST_DRIVER: Version = Version { major: 12, minor: 0 };

/// The oldest architecture for which the kernels are written: `mma` on bfloat16, and asynchronous copies.
const OLDEST_ARCHITECTURE: Version = Version { major: 8, minor: 0 };

/// A CUDA device of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Number of the device, from 0, in the order of the driver. `CUDA_VISIBLE_DEVICES` changes it.
    pub ordinal: usize,
    /// Name of the product.
    pub name: String,
    /// Compute capability, for example 9.0.
    pub compute_capability: Version,
    /// Size of the memory in bytes.
    pub memory_bytes: u64,
    /// The newest CUDA version that the driver supports.
    pub driver: Version,
}

impl DeviceInfo {
    /// Checks that the kernels can run on the device.
    ///
    /// # Errors
    /// [`CudaUnavailable::ArchitectureTooOld`].
    pub fn check_architecture(&self) -> Result<(), CudaUnavailable> {
        if self.compute_capability >= OLDEST_ARCHITECTURE {
            return Ok(());
        }
        Err(CudaUnavailable::ArchitectureTooOld {
            name: self.name.clone(),
            found: self.compute_capability,
        })
    }
}

/// Lists the CUDA devices of this host, also those that are too old for us. Creates no context, so it takes no memory of
/// a device.
///
/// # Errors
/// Says why there is none. On a host without CUDA this is [`CudaUnavailable::DriverMissing`].
pub fn probe() -> Result<Vec<DeviceInfo>, CudaUnavailable> {
    // Nothing here should panic. But `cudarc` panics in situations that are rare and beyond our control, and the CPU can
    // do the work.
    catch_unwind(probe_driver).unwrap_or_else(|_| {
        Err(CudaUnavailable::Unexpected("a call of the driver panicked".to_owned()))
    })
}

fn probe_driver() -> Result<Vec<DeviceInfo>, CudaUnavailable> {
    Library::Driver.require(CudaUnavailable::DriverMissing)?;
    let driver = start_driver()?;
    let count = device_count()?;
    (0..count).map(|ordinal| describe(ordinal, driver)).collect()
}

/// Initialises the driver and returns its version.
fn start_driver() -> Result<Version, CudaUnavailable> {
    // SAFETY: `cuInit` may be called any number of times; 0 is the only flag that it takes.
    let status = unsafe { sys::cuInit(0) };
    if status == CUresult::CUDA_ERROR_NO_DEVICE {
        return Err(CudaUnavailable::NoDevice);
    }
    check("cuInit", status).map_err(CudaUnavailable::DriverFailed)?;
    let mut number: c_int = 0;
    // SAFETY: the pointer is to a local variable.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut number) })
        .map_err(CudaUnavailable::DriverFailed)?;
    let found = Version::from_number(number.unsigned_abs());
    if found < OLDEST_DRIVER {
        return Err(CudaUnavailable::DriverTooOld { found, needed: OLDEST_DRIVER });
    }
    Ok(found)
}

fn device_count() -> Result<usize, CudaUnavailable> {
    let mut count: c_int = 0;
    // SAFETY: the pointer is to a local variable.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&raw mut count) })
        .map_err(CudaUnavailable::DriverFailed)?;
    match usize::try_from(count) {
        Ok(count @ 1..) => Ok(count),
        _ => Err(CudaUnavailable::NoDevice),
    }
}

fn describe(ordinal: usize, driver: Version) -> Result<DeviceInfo, CudaUnavailable> {
    let describe = || {
        let device = handle(ordinal)?;
        Ok(DeviceInfo {
            ordinal,
            name: name(device)?,
            compute_capability: Version {
                major: attribute(
                    device,
                    CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                )?,
                minor: attribute(
                    device,
                    CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                )?,
            },
            memory_bytes: memory_bytes(device)?,
            driver,
        })
    };
    describe().map_err(CudaUnavailable::DriverFailed)
}

/// Returns the driver's handle of a device, which is valid until the process ends.
pub(super) fn handle(ordinal: usize) -> Result<CUdevice, DeviceError> {
    let mut device: CUdevice = 0;
    let ordinal = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
    // SAFETY: the pointer is to a local variable.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut device, ordinal) })?;
    Ok(device)
}

fn name(device: CUdevice) -> Result<String, DeviceError> {
    let mut name: [c_char; 256] = [0; 256];
    // SAFETY: the driver writes at most as many bytes as the array has, with a zero at the end.
    check("cuDeviceGetName", unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), 256, device) })?;
    // SAFETY: see above; an array that the driver leaves as it is holds zeros.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    Ok(name.to_string_lossy().into_owned())
}

fn attribute(device: CUdevice, attribute: CUdevice_attribute) -> Result<u32, DeviceError> {
    let mut value: c_int = 0;
    // SAFETY: the pointer is to a local variable.
    check("cuDeviceGetAttribute", unsafe {
        sys::cuDeviceGetAttribute(&raw mut value, attribute, device)
    })?;
    Ok(value.unsigned_abs())
}

fn memory_bytes(device: CUdevice) -> Result<u64, DeviceError> {
    let mut bytes: usize = 0;
    // SAFETY: the pointer is to a local variable.
    check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&raw mut bytes, device) })?;
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_never_panics_and_says_what_is_missing() {
        match probe() {
            Ok(devices) => {
                println!("found {devices:?}");
                assert!(!devices.is_empty());
            }
            Err(error) => {
                println!("{error}");
                let expected = matches!(
                    error,
                    CudaUnavailable::DriverMissing
                        | CudaUnavailable::NoDevice
                        | CudaUnavailable::DriverFailed(_)
                        | CudaUnavailable::DriverTooOld { .. }
                );
                assert!(expected, "{error:?}");
            }
        }
    }

    #[test]
    fn devices_before_ampere_are_rejected_by_name() {
        let device = |major, minor| DeviceInfo {
            ordinal: 0,
            name: "Tesla T4".to_owned(),
            compute_capability: Version { major, minor },
            memory_bytes: 1 << 34,
            driver: OLDEST_DRIVER,
        };
        let error = device(7, 5).check_architecture().expect_err("7.5 is before 8.0");
        assert!(error.to_string().starts_with("Tesla T4 has compute capability 7.5"), "{error}");
        for (major, minor) in [(8, 0), (8, 9), (9, 0), (12, 1)] {
            assert_eq!(device(major, minor).check_architecture(), Ok(()));
        }
    }
}
