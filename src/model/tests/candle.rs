//! Parity tests of candle's operations.

suite!(CandleOps, CPU_F32.candle_ops().unwrap());
