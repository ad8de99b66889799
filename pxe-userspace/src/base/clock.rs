//! The clock that leases in the kernel use.

use nix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME, which the programs read with `bpf_ktime_get_boot_ns`: it advances while the system sleeps, and is
/// never set.
pub(crate) fn boot_time_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has this clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}
