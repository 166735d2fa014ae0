//! Machine code of the kernels: compiled by NVRTC for the architecture of the device, or by the driver from the PTX in
//! this binary where NVRTC is missing or does not fit.

#![expect(unsafe_code, reason = "calls NVRTC")]

use std::ffi::{CString, c_char, c_int};
use std::fmt::{self, Display, Formatter};
use std::ptr::{null, null_mut};

use cudarc::nvrtc::sys::{self, nvrtcProgram, nvrtcResult};

use super::context::Module;
use super::library::{Library, Missing};
use super::unavailable::{CudaUnavailable, Version};
use crate::gpu::device::DeviceError;

/// The kernels, in the two forms in which they come.
#[derive(Debug, Clone)]
pub struct KernelSource {
    /// CUDA C++ of all kernels, for NVRTC. It must not include headers: NVRTC's packages have none.
    pub cuda: String,
    /// The same kernels as PTX for `sm_80`, which the driver compiles for any newer architecture.
    pub ptx: &'static str,
}

/// Which code of the kernels is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelCode {
    /// Compiled at start.
    Compiled {
        /// Version of NVRTC.
        nvrtc: Version,
        /// For example `sm_90`; `compute_90` is PTX, which the driver has compiled further.
        architecture: String,
    },
    /// The PTX in this binary.
    Committed(CommittedBecause),
}

/// Why the kernels are not compiled by NVRTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommittedBecause {
    /// There is no library.
    Missing,
    /// The library is of a newer major version than the driver, which need not load its code.
    NewerThanDriver(Version),
    /// The library is older than the architecture, and newer than the driver.
    ArchitectureUnknown(Version),
    /// The library is there, but the kernels could not be compiled or loaded. Holds the messages.
    Failed(String),
}

impl Display for KernelCode {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compiled { nvrtc, architecture } => {
                write!(f, "kernels compiled for {architecture} by NVRTC {nvrtc}")
            }
            Self::Committed(because) => {
                let because = because.to_string();
                let first_line = because.lines().next().unwrap_or_default();
                write!(f, "kernels from built-in PTX ({first_line})")
            }
        }
    }
}

impl Display for CommittedBecause {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(f, "found no libnvrtc.so.12 or libnvrtc.so.13"),
            Self::NewerThanDriver(version) => {
                write!(f, "NVRTC {version} is too new for the driver")
            }
            Self::ArchitectureUnknown(version) => {
                write!(f, "NVRTC {version} does not know the architecture")
            }
            Self::Failed(message) => write!(f, "NVRTC failed: {message}"),
        }
    }
}

/// What NVRTC can do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Nvrtc {
    version: Version,
    /// Architectures in the form of `nvrtcGetSupportedArchs`: 90 is compute capability 9.0.
    architectures: Vec<u32>,
}

/// What NVRTC compiles for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// Machine code of an architecture.
    Cubin(u32),
    /// PTX of an architecture, which the driver compiles further.
    Ptx(u32),
}

impl Target {
    /// Chooses between machine code and PTX.
    ///
    /// A driver loads machine code of any toolkit of its major version (minor version compatibility), but compiles only
    /// PTX that is not newer than itself ("CUDA Compatibility" in NVIDIA's documentation). So machine code comes first,
    /// and PTX is for a device that is newer than NVRTC.
    fn choose(
        nvrtc: &Nvrtc,
        driver: Version,
        compute_capability: Version,
    ) -> Result<Self, CommittedBecause> {
        if nvrtc.version.major > driver.major {
            return Err(CommittedBecause::NewerThanDriver(nvrtc.version));
        }
        let device = compute_capability.major * 10 + compute_capability.minor;
        let best = nvrtc.architectures.iter().copied().filter(|known| *known <= device).max();
        match best {
            Some(known) if known == device => Ok(Self::Cubin(known)),
            Some(known) if known >= 80 && nvrtc.version <= driver => Ok(Self::Ptx(known)),
            _ => Err(CommittedBecause::ArchitectureUnknown(nvrtc.version)),
        }
    }

    /// The name of the architecture in NVRTC's options.
    fn architecture(self) -> String {
        match self {
            Self::Cubin(architecture) => format!("sm_{architecture}"),
            Self::Ptx(architecture) => format!("compute_{architecture}"),
        }
    }

    /// NVRTC's options. Without `--use_fast_math`: kernels name the fast functions that they want.
    fn options(self) -> Vec<String> {
        vec![format!("--gpu-architecture={}", self.architecture()), "--std=c++17".to_owned()]
    }
}

/// Loads the kernels. The context must be current.
///
/// # Errors
/// [`CudaUnavailable::Kernels`] if the driver also refuses the committed PTX.
pub(super) fn load_kernels(
    source: &KernelSource,
    driver: Version,
    compute_capability: Version,
) -> Result<(Module, KernelCode), CudaUnavailable> {
    let because = match load_compiled(source, driver, compute_capability) {
        Ok(loaded) => return Ok(loaded),
        Err(because) => because,
    };
    match Module::try_load(&with_zero(source.ptx)) {
        Ok(module) => Ok((module, KernelCode::Committed(because))),
        Err(error) => Err(CudaUnavailable::Kernels(refusal(source.ptx, &because, &error))),
    }
}

fn load_compiled(
    source: &KernelSource,
    driver: Version,
    compute_capability: Version,
) -> Result<(Module, KernelCode), CommittedBecause> {
    let nvrtc = Nvrtc::detect()?;
    let target = Target::choose(&nvrtc, driver, compute_capability)?;
    let code = compile(&source.cuda, target).map_err(CommittedBecause::Failed)?;
    let module =
        Module::try_load(&code).map_err(|error| CommittedBecause::Failed(error.to_string()))?;
    let architecture = target.architecture();
    Ok((module, KernelCode::Compiled { nvrtc: nvrtc.version, architecture }))
}

/// Says why neither form of the kernels could be loaded, and what to do.
fn refusal(ptx: &str, because: &CommittedBecause, error: &DeviceError) -> String {
    let version = ptx_version(ptx).unwrap_or("unknown");
    format!(
        "the driver refused the built-in PTX of version {version}: {error}; {because}; update the driver, or install NVRTC of the driver's CUDA version"
    )
}

/// Returns the version in the line `.version 8.0`. A driver refuses versions that are newer than itself.
fn ptx_version(ptx: &str) -> Option<&str> {
    ptx.lines().find_map(|line| line.trim().strip_prefix(".version").map(str::trim))
}

/// The driver takes PTX with a zero at its end.
fn with_zero(ptx: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ptx.len() + 1);
    bytes.extend_from_slice(ptx.as_bytes());
    bytes.push(0);
    bytes
}

impl Nvrtc {
    fn detect() -> Result<Self, CommittedBecause> {
        Library::Nvrtc.find().map_err(|what| match what {
            Missing::Library => CommittedBecause::Missing,
            Missing::Function { library, function } => {
                CommittedBecause::Failed(format!("{library} has no {function}"))
            }
        })?;
        Self::ask().map_err(CommittedBecause::Failed)
    }

    /// NVRTC must be present.
    fn ask() -> Result<Self, String> {
        let (mut major, mut minor, mut count): (c_int, c_int, c_int) = (0, 0, 0);
        // SAFETY: the pointers are to local variables.
        check("nvrtcVersion", unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) })?;
        // SAFETY: as above.
        check("nvrtcGetNumSupportedArchs", unsafe {
            sys::nvrtcGetNumSupportedArchs(&raw mut count)
        })?;
        let mut architectures: Vec<c_int> = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: NVRTC writes as many numbers as it has announced.
        check("nvrtcGetSupportedArchs", unsafe {
            sys::nvrtcGetSupportedArchs(architectures.as_mut_ptr())
        })?;
        Ok(Self {
            version: Version { major: major.unsigned_abs(), minor: minor.unsigned_abs() },
            architectures: architectures.into_iter().map(c_int::unsigned_abs).collect(),
        })
    }
}

/// Compiles the kernels. NVRTC must be present; no device is needed.
///
/// Returns machine code, or PTX with a zero at its end.
fn compile(cuda: &str, target: Target) -> Result<Vec<u8>, String> {
    let program = Program::try_new(cuda)?;
    program.compile(&target.options())?;
    match target {
        Target::Cubin(_) => read_output(
            "nvrtcGetCUBIN",
            // SAFETY: the program lives.
            |bytes| unsafe { sys::nvrtcGetCUBINSize(program.0, bytes) },
            // SAFETY: the program lives; NVRTC writes as many bytes as it has announced.
            |code| unsafe { sys::nvrtcGetCUBIN(program.0, code) },
        ),
        Target::Ptx(_) => read_output(
            "nvrtcGetPTX",
            // SAFETY: as above.
            |bytes| unsafe { sys::nvrtcGetPTXSize(program.0, bytes) },
            // SAFETY: as above. The size contains the zero at the end.
            |code| unsafe { sys::nvrtcGetPTX(program.0, code) },
        ),
    }
}

/// A program of NVRTC.
#[derive(Debug)]
struct Program(nvrtcProgram);

impl Program {
    fn try_new(cuda: &str) -> Result<Self, String> {
        let source = CString::new(cuda).map_err(|_| "the source contains a zero".to_owned())?;
        let mut program: nvrtcProgram = null_mut();
        // SAFETY: source and name end with a zero, and NVRTC copies them. There are no headers.
        let status = unsafe {
            sys::nvrtcCreateProgram(
                &raw mut program,
                source.as_ptr(),
                c"kernels.cu".as_ptr(),
                0,
                null(),
                null(),
            )
        };
        check("nvrtcCreateProgram", status)?;
        Ok(Self(program))
    }

    /// # Errors
    /// The messages of the compiler.
    fn compile(&self, options: &[String]) -> Result<(), String> {
        let options: Vec<CString> = options
            .iter()
            .map(|option| CString::new(option.as_str()).expect("options contain no zero"))
            .collect();
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let count = c_int::try_from(pointers.len()).expect("there are a few options");
        // SAFETY: the program lives, and so do the options, each with a zero at its end.
        let status = unsafe { sys::nvrtcCompileProgram(self.0, count, pointers.as_ptr()) };
        check("nvrtcCompileProgram", status).map_err(|error| format!("{error}: {}", self.log()))
    }

    /// Returns the messages of the compiler.
    fn log(&self) -> String {
        let log = read_output(
            "nvrtcGetProgramLog",
            // SAFETY: the program lives.
            |bytes| unsafe { sys::nvrtcGetProgramLogSize(self.0, bytes) },
            // SAFETY: the program lives; NVRTC writes as many bytes as it has announced.
            |log| unsafe { sys::nvrtcGetProgramLog(self.0, log) },
        );
        match log {
            Ok(bytes) => String::from_utf8_lossy(&bytes).trim_matches(['\0', '\n', ' ']).to_owned(),
            Err(error) => error,
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program is ours, and is not used afterwards.
        let _ = unsafe { sys::nvrtcDestroyProgram(&raw mut self.0) };
    }
}

/// Reads one of NVRTC's outputs, which announces its size first.
fn read_output(
    call: &str,
    size: impl FnOnce(*mut usize) -> nvrtcResult,
    write: impl FnOnce(*mut c_char) -> nvrtcResult,
) -> Result<Vec<u8>, String> {
    let mut bytes = 0;
    check(call, size(&raw mut bytes))?;
    let mut output = vec![0_u8; bytes];
    check(call, write(output.as_mut_ptr().cast()))?;
    Ok(output)
}

fn check(call: &str, status: nvrtcResult) -> Result<(), String> {
    if status == nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    Err(format!("{call} returned {status:?} ({})", status as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(major: u32, minor: u32) -> Version {
        Version { major, minor }
    }

    #[test]
    fn the_target_fits_device_driver_and_nvrtc() {
        struct Case {
            what: &'static str,
            nvrtc: Version,
            driver: Version,
            device: Version,
            expected: Result<Target, CommittedBecause>,
        }
        let cases = [
            Case {
                what: "all of one version",
                nvrtc: version(12, 4),
                driver: version(12, 4),
                device: version(9, 0),
                expected: Ok(Target::Cubin(90)),
            },
            Case {
                what: "machine code of a newer minor version",
                nvrtc: version(12, 8),
                driver: version(12, 0),
                device: version(8, 9),
                expected: Ok(Target::Cubin(89)),
            },
            Case {
                what: "a driver of a newer major version",
                nvrtc: version(12, 4),
                driver: version(13, 1),
                device: version(8, 0),
                expected: Ok(Target::Cubin(80)),
            },
            Case {
                what: "a driver of an older major version",
                nvrtc: version(13, 0),
                driver: version(12, 9),
                device: version(9, 0),
                expected: Err(CommittedBecause::NewerThanDriver(version(13, 0))),
            },
            Case {
                what: "a device that NVRTC does not know",
                nvrtc: version(12, 4),
                driver: version(12, 8),
                device: version(12, 0),
                expected: Ok(Target::Ptx(90)),
            },
            Case {
                what: "the same, with a driver that cannot compile the PTX",
                nvrtc: version(12, 4),
                driver: version(12, 0),
                device: version(12, 0),
                expected: Err(CommittedBecause::ArchitectureUnknown(version(12, 4))),
            },
        ];
        for case in cases {
            let nvrtc = Nvrtc {
                version: case.nvrtc,
                architectures: vec![50, 52, 60, 70, 75, 80, 86, 87, 89, 90],
            };
            let target = Target::choose(&nvrtc, case.driver, case.device);
            assert_eq!(target, case.expected, "{}", case.what);
        }
    }

    #[test]
    fn ptx_is_never_of_an_architecture_before_the_oldest_supported_one() {
        let nvrtc = Nvrtc { version: version(12, 0), architectures: vec![50, 75] };
        assert_eq!(
            Target::choose(&nvrtc, version(12, 0), version(8, 0)),
            Err(CommittedBecause::ArchitectureUnknown(version(12, 0)))
        );
    }

    #[test]
    fn options_name_the_architecture_and_the_language() {
        assert_eq!(Target::Cubin(90).options(), ["--gpu-architecture=sm_90", "--std=c++17"]);
        assert_eq!(Target::Ptx(120).options(), ["--gpu-architecture=compute_120", "--std=c++17"]);
    }

    #[test]
    fn the_refusal_names_the_version_of_the_ptx() {
        let ptx = "// generated\n.version 8.0\n.target sm_80\n";
        assert_eq!(ptx_version(ptx), Some("8.0"));
        let error = DeviceError::Failed("cuModuleLoadDataEx returned 222".to_owned());
        let text = refusal(ptx, &CommittedBecause::Missing, &error);
        assert!(text.contains("version 8.0") && text.contains("222"), "{text}");
        assert!(text.contains("libnvrtc"), "{text}");
    }

    #[test]
    fn ptx_ends_with_a_zero() {
        assert_eq!(with_zero(".version 8.0"), b".version 8.0\0");
    }

    #[test]
    fn the_code_in_use_is_described() {
        let compiled =
            KernelCode::Compiled { nvrtc: version(12, 4), architecture: "sm_90".to_owned() };
        assert_eq!(compiled.to_string(), "kernels compiled for sm_90 by NVRTC 12.4");
        let committed = KernelCode::Committed(CommittedBecause::Missing);
        assert_eq!(
            committed.to_string(),
            "kernels from built-in PTX (found no libnvrtc.so.12 or libnvrtc.so.13)"
        );
        // The messages of the compiler are for the log.
        let failed = CommittedBecause::Failed("line 1: error\nline 2: error".to_owned());
        assert_eq!(
            KernelCode::Committed(failed).to_string(),
            "kernels from built-in PTX (NVRTC failed: line 1: error)"
        );
    }

    const KERNEL: &str =
        "extern \"C\" __global__ void add_one(float* x) { x[threadIdx.x] += 1.0f; }";

    /// Needs NVRTC, but no GPU.
    #[test]
    fn nvrtc_compiles_kernels_where_it_is_installed() {
        let Ok(nvrtc) = Nvrtc::detect() else {
            println!("skipped: NVRTC is not installed");
            return;
        };
        println!("NVRTC {} for {:?}", nvrtc.version, nvrtc.architectures);
        let cubin = compile(KERNEL, Target::Cubin(80)).expect("NVRTC compiles for sm_80");
        assert!(cubin.starts_with(b"\x7fELF"));
        let ptx = compile(KERNEL, Target::Ptx(80)).expect("NVRTC compiles for compute_80");
        assert_eq!(ptx.last(), Some(&0));
        let ptx = String::from_utf8_lossy(&ptx);
        assert!(ptx.contains(".target sm_80") && ptx.contains("add_one"), "{ptx}");

        let error = compile("__global__ void broken( {}", Target::Cubin(80))
            .expect_err("the source is not C++");
        assert!(error.contains("NVRTC_ERROR_COMPILATION"), "{error}");
        assert!(error.contains("kernels.cu(1): error"), "{error}");
    }
}
