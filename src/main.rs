//! Arguments to a command and an exit code; no logic.

fn main() {}
