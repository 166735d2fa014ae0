//! Parity tests of candle's operations.

suite!(CandleOps, Some(CPU_F32.candle_ops().unwrap()));
