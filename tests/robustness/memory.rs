//! What this process holds, as the system counts it.

/// Resident bytes of this process; 0 where the system does not tell (only Linux does).
pub(crate) fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes = status.lines().find_map(|line| {
        line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    kibibytes.unwrap_or(0) << 10
}

/// Growth from `before` to now, in MiB.
pub(crate) fn growth_mib(before: u64) -> f64 {
    resident_bytes().saturating_sub(before) as f64 / f64::from(1 << 20)
}
