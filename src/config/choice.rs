//! Settings that are one of a few names. `app` resolves `auto` where models are loaded.

use std::fmt;
use std::str::FromStr;

use crate::input::ResizeOrder;
use crate::telemetry::logging::LogFormat;

/// `compute.device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU where this build and this machine have one, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU by its ordinal.
    Cuda(usize),
}

/// `compute.dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DtypeChoice {
    /// The best that the device is exact and fast in.
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit floats.
    F16,
    /// 8-bit weights; the processor only.
    Int8,
}

/// What `log.format` accepts.
pub(super) const LOG_FORMATS: &str = "auto, text, json";
/// What `compute.device` accepts.
pub(super) const DEVICES: &str = "auto, cpu, cuda, cuda:N";
/// What `compute.dtype` accepts.
pub(super) const DTYPES: &str = "auto, f32, bf16, f16, int8";

/// What `input.resize_order` accepts.
pub(super) const RESIZE_ORDERS: &str = "pillow13, horizontal_first";

/// The text names no choice; what is accepted is the caller's to say.
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

/// Reads `log.format`.
pub(super) fn log_format(text: &str) -> Result<LogFormat, UnknownChoice> {
    match text {
        "auto" => Ok(LogFormat::Auto),
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(UnknownChoice),
    }
}

/// Reads `input.resize_order`.
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
