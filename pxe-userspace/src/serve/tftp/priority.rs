//! A thread's scheduling priority.

use std::io;

/// For a thread that nearly always sleeps, and for which clients wait when it does not.
const NICE: i32 = -10;

/// Gives the calling thread priority over the daemon's others. A packet needs a CPU for microseconds, but a request to
/// the API, or the packing of an image, may need all CPUs for seconds. Needs CAP_SYS_NICE.
pub(super) fn raise() -> io::Result<()> {
    // SAFETY: no memory is handed over. 0 is the calling thread: for Linux a nice value is a thread's.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
