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
    /// The NVIDIA GPU with this ordinal.
    Cuda(usize),
}

/// The number format of weights and activations (`compute.dtype`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DtypeChoice {
    /// bf16 where the device multiplies it faster than f32, else f32.
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
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let ordinal = text.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok());
                ordinal.map(Self::Cuda).ok_or(NotAccepted("auto, cpu, cuda, cuda:N"))
            }
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
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
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
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        for wrong in ["", "metal", "CPU", "cuda:", "cuda:-1", "cuda:x"] {
            let accepted = Err(NotAccepted("auto, cpu, cuda, cuda:N"));
            assert_eq!(wrong.parse::<DeviceChoice>(), accepted, "{wrong}");
        }
    }
}
