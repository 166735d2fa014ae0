//! Settings whose value is one of a few names. `app` resolves `auto` when it loads the models.

use std::fmt;
use std::str::FromStr;

use crate::input::ResizeOrder;
use crate::telemetry::logging::LogFormat;

/// The device that runs the models (`compute.device`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU if this build and this machine support one, else the CPU.
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

/// Accepted values of `log.format`, for messages.
pub(super) const LOG_FORMATS: &str = "auto, text, json";
/// Accepted values of `compute.device`, for messages.
pub(super) const DEVICES: &str = "auto, cpu, cuda, cuda:N";
/// Accepted values of `compute.dtype`, for messages.
pub(super) const DTYPES: &str = "auto, f32, bf16, f16, int8";

/// Accepted values of `input.resize_order`, for messages.
pub(super) const RESIZE_ORDERS: &str = "pillow13, horizontal_first";

/// Error for a text that names none of the choices. The caller reports the accepted values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownChoice;

impl FromStr for DeviceChoice {
    type Err = UnknownChoice;

    fn from_str(text: &str) -> Result<Self, UnknownChoice> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let ordinal = text.strip_prefix("cuda:").ok_or(UnknownChoice)?;
                ordinal.parse().map(Self::Cuda).map_err(|_| UnknownChoice)
            }
        }
    }
}

impl FromStr for DtypeChoice {
    type Err = UnknownChoice;

    fn from_str(text: &str) -> Result<Self, UnknownChoice> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            "int8" => Ok(Self::Int8),
            _ => Err(UnknownChoice),
        }
    }
}

/// Parses the value of `log.format`.
pub(super) fn log_format(text: &str) -> Result<LogFormat, UnknownChoice> {
    match text {
        "auto" => Ok(LogFormat::Auto),
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(UnknownChoice),
    }
}

/// Parses the value of `input.resize_order`.
pub(super) fn resize_order(text: &str) -> Result<ResizeOrder, UnknownChoice> {
    ResizeOrder::ALL.into_iter().find(|order| order.name() == text).ok_or(UnknownChoice)
}

impl fmt::Display for UnknownChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not one of the choices")
    }
}

impl std::error::Error for UnknownChoice {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_with_and_without_ordinal() {
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        for wrong in ["", "metal", "CPU", "cuda:", "cuda:-1", "cuda:x"] {
            assert_eq!(wrong.parse::<DeviceChoice>(), Err(UnknownChoice), "{wrong}");
        }
    }
}
