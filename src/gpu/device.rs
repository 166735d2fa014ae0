//! What the model's operations need from a device. `cuda` implements it with the CUDA driver. Tests implement it on the
//! CPU, where the same kernel sources run in a shim.
//!
//! All work of a device runs in one stream, in the order of the calls. Calls other than [`Device::download`],
//! [`Device::upload`] and [`Device::synchronize`] return before the work is done; an error of such work is returned by
//! a later call.

use std::fmt::Debug;

/// Number format of weights and of the inputs of matrix products. Sums and residual connections are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE single precision, without TF32.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Format {
    /// Returns the size of one value in bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// An address in the memory of a device. Only the device may dereference it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address(pub u64);

impl Address {
    /// The null pointer, for optional arguments of kernels.
    pub const NULL: Self = Self(0);

    /// Returns the address `bytes` further.
    #[must_use]
    pub fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// One argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Argument {
    /// A pointer.
    Address(Address),
    /// A 32-bit signed integer: sizes, strides in values, codes.
    Int(i32),
    /// A 32-bit float.
    Float(f32),
}

/// A kernel launch.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch<'a> {
    /// Name of the kernel's entry point.
    pub kernel: &'a str,
    /// Number of blocks along x, y and z; each at least 1.
    pub grid: [u32; 3],
    /// Number of threads per block, a multiple of 32.
    pub threads: u32,
    /// The arguments, in the order of the kernel's parameters.
    pub arguments: &'a [Argument],
}

/// A matrix product `out = x w^T + bias + residual`, with sums in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// Format of `x` and `w`.
    pub format: Format,
    /// Format of `out`, `bias` and `residual`: f32, or the same as `format`.
    pub out_format: Format,
    /// Number of rows of `x` and `out`.
    pub m: usize,
    /// Number of columns of `out`, which is the number of rows of `w`.
    pub n: usize,
    /// Number of columns of `x` and `w`.
    pub k: usize,
    /// `[m, k]`, row-major.
    pub x: Address,
    /// `[n, k]`, row-major.
    pub w: Address,
    /// `[n]`, added to every row.
    pub bias: Option<Address>,
    /// `[m, n]`; may be the same address as `out`.
    pub residual: Option<Address>,
    /// `[m, n]`.
    pub out: Address,
}

/// A recorded sequence of launches, products, fills and copies between addresses of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GraphId(pub u64);

/// Memory of the device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Bytes that can still be allocated.
    pub free: u64,
    /// Size of the memory.
    pub total: u64,
}

/// Runs kernels and owns memory.
pub trait Device: Debug + Send + Sync {
    /// Describes the device for people: name, architecture, memory.
    fn description(&self) -> String;

    /// Allocates memory, aligned to at least 256 bytes. Its contents are undefined.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] if the memory does not suffice.
    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError>;

    /// Frees memory that [`allocate`](Self::allocate) returned, after all work of earlier calls.
    fn free(&self, address: Address);

    /// Copies bytes to the device. The bytes may be changed as soon as the call returns.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn upload(&self, to: Address, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Copies bytes from the device, after all work of earlier calls.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Copies bytes within the device. The two ranges must not overlap.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError>;

    /// Launches a kernel.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError>;

    /// Computes a matrix product.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn product(&self, product: &Product) -> Result<(), DeviceError>;

    /// Starts to record the work of the following calls instead of running it. Until [`end_capture`](Self::end_capture),
    /// only `copy`, `launch` and `product` may be called.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn begin_capture(&self) -> Result<(), DeviceError>;

    /// Ends the recording, and returns the graph of the recorded work.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn end_capture(&self) -> Result<GraphId, DeviceError>;

    /// Runs the work of a graph again, with the addresses and arguments with which it was recorded.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn replay(&self, graph: GraphId) -> Result<(), DeviceError>;

    /// Frees a graph, after all work of earlier calls. A graph that does not exist is ignored.
    fn drop_graph(&self, graph: GraphId);

    /// Waits for all work of earlier calls.
    ///
    /// # Errors
    /// The error of that work.
    fn synchronize(&self) -> Result<(), DeviceError>;

    /// Returns how much memory is free.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn memory_info(&self) -> Result<MemoryInfo, DeviceError>;
}

/// Why a call to a device failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The memory does not suffice. Smaller work may succeed.
    #[error("out of device memory: {0}")]
    OutOfMemory(String),
    /// The call failed, but later calls may succeed.
    #[error("device error: {0}")]
    Failed(String),
    /// The device is unusable for the rest of the process (CUDA's sticky errors).
    #[error("device lost: {0}")]
    Lost(String),
}
