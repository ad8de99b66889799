//! The clock by which leases in the kernel expire.

use nix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME, which the programs read with `bpf_ktime_get_boot_ns`: it goes on while the
/// system sleeps, and nobody sets it.
pub(crate) fn boot_time_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has this clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}
