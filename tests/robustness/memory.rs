//! What a process holds, as the system counts it.

/// Resident bytes of this process; 0 where the system does not tell (only Linux does).
pub(crate) fn resident_bytes() -> u64 {
    status("self", "VmRSS:").unwrap_or(0) << 10
}

/// A number of `/proc/PROCESS/status`, sizes in KiB; `None` where there is none.
pub(crate) fn status(process: &str, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Growth from `before` to now, in MiB.
pub(crate) fn growth_mib(before: u64) -> f64 {
    resident_bytes().saturating_sub(before) as f64 / f64::from(1 << 20)
}
