//! The kernels: their sources, in CUDA C++, and one function per kernel that launches it.
//!
//! - [`rows`]: patches, embeddings, layer norm, activations, copies and conversions of rows;
//! - [`attention`]: attention over projected keys and values, bidirectional or causal, and over a paged KV cache;
//! - [`folded`]: cross-attention over encoder states, with the key projection folded into the query and the value
//!   projection applied to the result;
//! - [`products`]: products of a few rows, which read each weight once;
//! - [`scores`]: what is computed from logits;
//! - [`source`]: the sources as one program, and the names of the kernels in it.
//!
//! Rows that only products read are in the format of the weights ("narrow"); logits and everything that is added up over
//! layers is f32 ("wide"). With [`Format::F32`] both are f32. All matrices are row-major.

pub mod attention;
pub mod folded;
pub mod products;
pub mod rows;
pub mod scores;
pub mod source;

use super::device::{Address, Argument, Device, DeviceError, Format, Launch};

/// The largest integer argument. Kernels that handle values one by one round it up to whole blocks, as a 32-bit integer.
const LARGEST_INT: usize = i32::MAX as usize - 4095;

/// The largest grid of CUDA ("CUDA C++ Programming Guide", technical specifications).
const MOST_BLOCKS: [usize; 3] = [i32::MAX as usize, 65_535, 65_535];

/// Threads per block of the kernels that handle values one by one.
const THREADS: u32 = 256;

/// Returns the suffix of the entry points for values in a format.
fn suffix(format: Format) -> &'static str {
    match format {
        Format::F32 => "f32",
        Format::Bf16 => "bf16",
        Format::F16 => "f16",
    }
}

/// Collects the arguments of one launch.
struct Call<'a> {
    device: &'a dyn Device,
    kernel: String,
    arguments: Vec<Argument>,
    /// An integer argument that is too large.
    overflow: Option<usize>,
}

impl<'a> Call<'a> {
    /// Starts a call of the kernel `name` for values in `format`: its entry point has the format as suffix.
    fn of_format(device: &'a dyn Device, name: &str, format: Format) -> Self {
        Self::new(device, format!("{name}_{}", suffix(format)))
    }

    /// Starts a call of a kernel that exists once.
    fn new(device: &'a dyn Device, kernel: impl Into<String>) -> Self {
        Self { device, kernel: kernel.into(), arguments: Vec::with_capacity(16), overflow: None }
    }

    fn address(mut self, address: Address) -> Self {
        self.arguments.push(Argument::Address(address));
        self
    }

    fn optional(self, address: Option<Address>) -> Self {
        self.address(address.unwrap_or(Address::NULL))
    }

    /// Adds a size, a stride or a code. Above [`LARGEST_INT`], which only models far larger than BLIP reach, the launch
    /// fails.
    fn int(mut self, value: usize) -> Self {
        match i32::try_from(value) {
            Ok(int) if value <= LARGEST_INT => self.arguments.push(Argument::Int(int)),
            Ok(_) | Err(_) => self.overflow = Some(value),
        }
        self
    }

    fn float(mut self, value: f32) -> Self {
        self.arguments.push(Argument::Float(value));
        self
    }

    /// Launches the kernel, unless the grid is empty.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] if an argument or the grid is too large; see also [`DeviceError`].
    fn launch(self, grid: [usize; 3], threads: u32) -> Result<(), DeviceError> {
        let Self { device, kernel, arguments, overflow } = self;
        if let Some(value) = overflow {
            return Err(DeviceError::Failed(format!("{kernel}: argument {value} is too large")));
        }
        if grid.contains(&0) {
            return Ok(());
        }
        if grid.iter().zip(MOST_BLOCKS).any(|(&blocks, most)| blocks > most) {
            return Err(DeviceError::Failed(format!("{kernel}: grid {grid:?} is too large")));
        }
        let grid = grid.map(|blocks| blocks as u32);
        device.launch(&Launch { kernel: &kernel, grid, threads, arguments: &arguments })
    }
}
