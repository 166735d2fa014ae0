//! The section `[compute]`: device, number format, instruction set and threads. `app` resolves `auto` when it loads the
//! models.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::kernels::isa::Level;
use crate::settings::{InvalidSetting, NotAccepted, Section, require, text, zero_is_none};

/// Upper bound of `compute.threads`, which is more than the number of cores of any machine.
const MAX_THREADS: usize = 1024;

/// The accepted values of `compute.device`.
const DEVICES: NotAccepted = NotAccepted(
    "auto, cpu, cuda, cuda:N, or several GPUs as cuda:N,N (each once, numbers below 64)",
);

/// Settings of the device that runs the models, as configured: `auto` is not resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ComputeSettings {
    /// Device that runs the models.
    #[serde(with = "text")]
    pub device: DeviceChoice,
    /// Number format of weights and activations.
    #[serde(with = "text")]
    pub dtype: DtypeChoice,
    /// Instruction set of the CPU kernels; only one that this CPU supports is accepted. `None` picks the best one.
    #[serde(with = "cpu_isa")]
    pub cpu_isa: Option<Level>,
    /// Number of threads that run the models; `None` means as many as the CPU quota and affinity allow.
    #[serde(with = "zero_is_none")]
    pub threads: Option<NonZeroUsize>,
}

impl Default for ComputeSettings {
    fn default() -> Self {
        Self { device: DeviceChoice::Auto, dtype: DtypeChoice::Auto, cpu_isa: None, threads: None }
    }
}

impl Section for ComputeSettings {
    const NAME: &'static str = "compute";

    fn check(&self) -> Result<(), InvalidSetting> {
        let threads = self.threads.map_or(0, NonZeroUsize::get);
        let accepted = "0 to 1024 (0: what CPU quota and affinity allow)";
        require(threads <= MAX_THREADS, "threads", threads, accepted)
    }
}

/// The device that runs the models (`compute.device`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU that the kernels support, if there is one, else the CPU.
    Auto,
    /// The CPU of this machine, even if it has a GPU.
    Cpu,
    /// These NVIDIA GPUs. Each runs all models, with a worker of its own.
    Cuda(Gpus),
}

/// A set of NVIDIA GPUs, by their ordinals; never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpus(
    /// Bit n: the GPU with ordinal n.
    u64,
);

impl Gpus {
    /// Number of ordinals that a set can hold. No machine has as many GPUs.
    const MOST: usize = 64;

    /// Returns the set of one GPU; `None` if its ordinal is too large.
    #[must_use]
    pub fn one(ordinal: usize) -> Option<Self> {
        (ordinal < Self::MOST).then(|| Self(1 << ordinal))
    }

    /// Returns the first ordinal.
    #[must_use]
    pub fn first(self) -> usize {
        self.0.trailing_zeros() as usize
    }

    /// Returns the ordinals after the first, in rising order.
    pub fn others(self) -> impl Iterator<Item = usize> {
        (self.first() + 1..Self::MOST).filter(move |&ordinal| self.0 >> ordinal & 1 == 1)
    }
}

impl DeviceChoice {
    /// Returns the number of workers: one for each GPU, or one on the CPU.
    #[must_use]
    pub fn workers(self) -> u64 {
        match self {
            Self::Auto | Self::Cpu => 1,
            Self::Cuda(gpus) => u64::from(gpus.0.count_ones()),
        }
    }
}

impl FromStr for Gpus {
    type Err = NotAccepted;

    /// Reads ordinals separated by commas, each at most once.
    fn from_str(text: &str) -> Result<Self, NotAccepted> {
        text.split(',').try_fold(Self(0), |all, ordinal| {
            let is_number = ordinal.bytes().all(|byte| byte.is_ascii_digit());
            let gpu = ordinal.parse().ok().filter(|_| is_number).and_then(Self::one);
            let gpu = gpu.filter(|gpu| all.0 & gpu.0 == 0).ok_or(DEVICES)?;
            Ok(Self(all.0 | gpu.0))
        })
    }
}

impl fmt::Display for Gpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first())?;
        self.others().try_for_each(|ordinal| write!(f, ",{ordinal}"))
    }
}

/// The number format of weights and activations (`compute.dtype`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DtypeChoice {
    /// The default format: bf16.
    Auto,
    /// IEEE 754 single precision, 32 bits.
    F32,
    /// bfloat16: 16 bits with the exponent range of f32.
    Bf16,
    /// IEEE 754 half precision, 16 bits; slow on a CPU.
    F16,
    /// Weights and activations in 8-bit integers; CPU only.
    Int8,
}

impl FromStr for DeviceChoice {
    type Err = NotAccepted;

    fn from_str(text: &str) -> Result<Self, NotAccepted> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => "0".parse().map(Self::Cuda),
            _ => text.strip_prefix("cuda:").ok_or(DEVICES)?.parse().map(Self::Cuda),
        }
    }
}

impl FromStr for DtypeChoice {
    type Err = NotAccepted;

    fn from_str(text: &str) -> Result<Self, NotAccepted> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            "int8" => Ok(Self::Int8),
            _ => Err(NotAccepted("auto, f32, bf16, f16, int8")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(gpus) => write!(f, "cuda:{gpus}"),
        }
    }
}

impl fmt::Display for DtypeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        })
    }
}

/// The instruction set of the CPU kernels: `auto`, which is `None`, or the name of a level that this CPU supports.
mod cpu_isa {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Level;

    /// `L` is always `Option<Level>`, the type of the field. serde passes a reference to the field.
    pub(super) fn serialize<L, S>(level: &L, serializer: S) -> Result<S::Ok, S::Error>
    where
        L: Copy + Into<Option<Level>>,
        S: Serializer,
    {
        let level: Option<Level> = (*level).into();
        serializer.serialize_str(level.map_or("auto", Level::name))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Level>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "auto" {
            return Ok(None);
        }
        let levels = || Level::ALL.into_iter().filter(|level| level.is_available());
        levels().find(|level| level.name() == text).map(Some).ok_or_else(|| {
            let names: Vec<&str> = levels().map(Level::name).collect();
            D::Error::custom(format!("auto, or what this CPU supports: {}", names.join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_with_and_without_ordinal() {
        let one = |ordinal| Ok(DeviceChoice::Cuda(Gpus::one(ordinal).unwrap()));
        assert_eq!("cuda".parse(), one(0));
        assert_eq!("cuda:3".parse(), one(3));
        for wrong in [
            "", "metal", "CPU", "cuda:", "cuda:-1", "cuda:x", "cuda:64", "cuda:1,1", "cuda:1,",
            "cuda:+1",
        ] {
            assert_eq!(wrong.parse::<DeviceChoice>(), Err(DEVICES), "{wrong}");
        }
    }

    #[test]
    fn several_gpus_are_read_in_any_order_and_written_in_rising_order() {
        let Ok(DeviceChoice::Cuda(gpus)) = "cuda:3,0,63".parse() else { panic!("three GPUs") };
        assert_eq!((gpus.first(), gpus.others().collect::<Vec<_>>()), (0, vec![3, 63]));
        assert_eq!(DeviceChoice::Cuda(gpus).to_string(), "cuda:0,3,63");
    }
}
