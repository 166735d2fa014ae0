//! The kernels as a shared library: the same sources as for the GPU, compiled with `prelude/host.hpp`.

#![expect(unsafe_code, reason = "calls a library of C++ code")]

use std::collections::hash_map::DefaultHasher;
use std::ffi::{CString, OsString, c_char, c_int, c_void};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::null;
use std::sync::OnceLock;
use std::{env, fs, process};

use crate::gpu::device::{Address, Argument, DeviceError, Format, Product};
use crate::gpu::kernels::source;

/// What the kernels use of the GPU, for the CPU.
const PRELUDE: &str = include_str!("../kernels/prelude/host.hpp");

/// Kernels with defects, with which tests check that this device finds them.
const DEFECTS: &str = include_str!("defects.cu");

/// Kernels read values of several types at the same addresses, hence the absence of strict aliasing. Visible names of one
/// library would replace those of another.
const FLAGS: [&str; 6] =
    ["-O2", "-std=c++17", "-shared", "-fPIC", "-fno-strict-aliasing", "-fvisibility=hidden"];

/// How the compiler treats a multiplication that an addition follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arithmetic {
    /// Rounds both, so that results are the same with every compiler.
    Separate,
    /// Rounds the sum only, as compilers for GPUs do.
    Fused,
}

impl Arithmetic {
    /// Returns the compiler's flags, `None` if this CPU has no such instructions.
    fn flags(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Separate => Some(&["-ffp-contract=off"]),
            #[cfg(target_arch = "x86_64")]
            Self::Fused => {
                is_x86_feature_detected!("fma").then_some(&["-ffp-contract=fast", "-mfma"])
            }
            #[cfg(target_arch = "aarch64")]
            Self::Fused => Some(&["-ffp-contract=fast"]),
            #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
            Self::Fused => None,
        }
    }
}

/// Order in which the threads of a block, and the blocks of a grid, run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// The first warp first, each until it waits for another one. Asynchronous copies arrive as late as possible.
    #[default]
    Forward,
    /// The last warp first, each until it waits for another one. Asynchronous copies arrive at once.
    Backward,
    /// All threads in turn, in an order that is drawn anew for each block, with this seed.
    Shuffled(u64),
}

type LaunchFunction = unsafe extern "C" fn(
    *const c_char,
    *const u32,
    u32,
    *const u64,
    *const c_char,
    u32,
    u64,
    *mut c_char,
    usize,
) -> c_int;

type ProductFunction = unsafe extern "C" fn(
    u32,
    u32,
    usize,
    usize,
    usize,
    *const c_void,
    *const c_void,
    *const c_void,
    *const c_void,
    *mut c_void,
);

type KernelsFunction = unsafe extern "C" fn(*mut c_char, usize);

/// The functions of the library. It stays loaded until the process ends.
pub(super) struct Library {
    launch: LaunchFunction,
    product: ProductFunction,
    kernels: KernelsFunction,
}

impl Library {
    /// Returns the library, which the first call compiles unless an earlier process has. `None` if there is no compiler,
    /// or if this CPU lacks the instructions.
    pub(super) fn get(arithmetic: Arithmetic) -> Option<&'static Self> {
        static SEPARATE: OnceLock<Option<Library>> = OnceLock::new();
        static FUSED: OnceLock<Option<Library>> = OnceLock::new();
        let library = match arithmetic {
            Arithmetic::Separate => &SEPARATE,
            Arithmetic::Fused => &FUSED,
        };
        library
            .get_or_init(|| {
                let Some(flags) = arithmetic.flags() else {
                    eprintln!(
                        "no fused multiply and add: tests of the GPU kernels with it are skipped"
                    );
                    return None;
                };
                let Some((compiler, version)) = find_compiler() else {
                    eprintln!("no C++ compiler found: tests of the GPU kernels are skipped");
                    return None;
                };
                let path =
                    compile(&compiler, &version, flags).unwrap_or_else(|error| panic!("{error}"));
                Some(Self::load(&path))
            })
            .as_ref()
    }

    fn load(path: &Path) -> Self {
        // SAFETY: the library is ours. Its initialisers only fill the list of kernels.
        let library =
            unsafe { libloading::Library::new(path) }.expect("the library was just compiled");
        // SAFETY: the types are those of the definitions in host.hpp.
        let library_functions = unsafe {
            Self {
                launch: *library.get(b"blip_shim_launch\0").expect("defined in host.hpp"),
                product: *library.get(b"blip_shim_product\0").expect("defined in host.hpp"),
                kernels: *library.get(b"blip_shim_kernels\0").expect("defined in host.hpp"),
            }
        };
        // Its functions are used until the process ends.
        std::mem::forget(library);
        library_functions
    }

    pub(super) fn launch(
        &self,
        kernel: &str,
        grid: [u32; 3],
        threads: u32,
        arguments: &[Argument],
        order: Order,
    ) -> Result<(), DeviceError> {
        let name = CString::new(kernel).expect("names of kernels have no zero bytes");
        let (mut values, mut kinds) = (Vec::new(), Vec::new());
        for argument in arguments {
            let (value, kind) = match *argument {
                Argument::Address(address) => (address.0, b'p'),
                Argument::Int(value) => (u64::from(value.cast_unsigned()), b'i'),
                Argument::Float(value) => (u64::from(value.to_bits()), b'f'),
            };
            values.push(value);
            kinds.push(kind);
        }
        kinds.push(0);
        let (order, seed) = match order {
            Order::Forward => (0, 0),
            Order::Backward => (1, 0),
            Order::Shuffled(seed) => (2, seed),
        };
        let mut message = [0_u8; 512];
        // SAFETY: the library checks number and kinds of the arguments. That a kernel stays within the memory behind its
        // pointers is what the guards, and AddressSanitizer in `tests/gpu/sanitize.sh`, look at.
        let status = unsafe {
            (self.launch)(
                name.as_ptr(),
                grid.as_ptr(),
                threads,
                values.as_ptr(),
                kinds.as_ptr().cast(),
                order,
                seed,
                message.as_mut_ptr().cast(),
                message.len(),
            )
        };
        if status == 0 { Ok(()) } else { Err(DeviceError::Failed(text(&message))) }
    }

    /// Computes a product whose operands lie in allocated memory.
    pub(super) fn product(&self, of: &Product) {
        let pointer =
            |address: Address| std::ptr::with_exposed_provenance_mut::<c_void>(address.0 as usize);
        let optional = |address: Option<Address>| {
            address.map_or(null(), |address| pointer(address).cast_const())
        };
        // SAFETY: the caller has checked the operands.
        unsafe {
            (self.product)(
                code(of.format),
                code(of.out_format),
                of.m,
                of.n,
                of.k,
                pointer(of.x),
                pointer(of.w),
                optional(of.bias),
                optional(of.residual),
                pointer(of.out),
            );
        }
    }

    /// Returns the names of all kernels.
    pub(super) fn kernels(&self) -> Vec<String> {
        let mut names = vec![0_u8; 1 << 16];
        // SAFETY: the function writes at most as many bytes, the last of them zero.
        unsafe { (self.kernels)(names.as_mut_ptr().cast(), names.len()) };
        text(&names).lines().map(str::to_owned).collect()
    }
}

/// The code that host.hpp knows a format by.
fn code(format: Format) -> u32 {
    match format {
        Format::F32 => 0,
        Format::Bf16 => 1,
        Format::F16 => 2,
    }
}

/// Returns the text before the first zero byte.
fn text(bytes: &[u8]) -> String {
    let length = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

/// Returns a C++ compiler and what it says about its version.
fn find_compiler() -> Option<(OsString, String)> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the compiler of tests is no setting of the server"
    )]
    let chosen = env::var_os("CXX");
    let names = ["c++", "g++", "clang++"].map(OsString::from);
    chosen.into_iter().chain(names).find_map(|name| {
        let output = Command::new(&name).arg("--version").output().ok()?;
        let version = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some((name, version))
    })
}

/// Compiles the kernels, unless a library of the same sources, compiler and flags exists. Several processes may do so at
/// once: each writes a file of its own and renames it.
fn compile(compiler: &OsString, version: &str, flags: &[&str]) -> Result<PathBuf, String> {
    let program = source::program(PRELUDE) + "\n" + DEFECTS;
    let mut hasher = DefaultHasher::new();
    (&program, compiler, version, FLAGS, flags).hash(&mut hasher);
    // Beside the test binary, and not in the directory for temporary files, where others could put a library first.
    let binary = env::current_exe().map_err(|error| format!("cannot find this binary: {error}"))?;
    let folder = binary.with_file_name("gpu-kernels");
    fs::create_dir_all(&folder)
        .map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
    let name = format!("{:016x}", hasher.finish());
    let library = folder.join(format!("{name}.so"));
    if library.exists() {
        return Ok(library);
    }
    let own = format!("{name}.{}", process::id());
    let (text, compiled) = (folder.join(format!("{own}.cpp")), folder.join(format!("{own}.so")));
    fs::write(&text, program)
        .map_err(|error| format!("cannot write {}: {error}", text.display()))?;
    let output = Command::new(compiler)
        .args(FLAGS)
        .args(flags)
        .arg(&text)
        .arg("-o")
        .arg(&compiled)
        .output()
        .map_err(|error| format!("cannot run {}: {error}", compiler.display()))?;
    if !output.status.success() {
        return Err(format!(
            "the kernels do not compile:\n{}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    fs::rename(&compiled, &library)
        .map_err(|error| format!("cannot write {}: {error}", library.display()))?;
    // Only tidiness: a file that stays is removed with the build directory.
    drop(fs::remove_file(&text));
    Ok(library)
}
