//! A thread's scheduling priority.

use std::io;

/// What sleeps nearly always, and is waited for when it does not.
const NICE: i32 = -10;

/// The calling thread has a CPU before the daemon's others. A packet takes it for microseconds, and a request to the
/// API, or an image that is packed, all that there is for seconds. Needs CAP_SYS_NICE.
pub(super) fn raise() -> io::Result<()> {
    // SAFETY: no memory is handed over. 0 is the calling thread: for Linux a nice value is a thread's.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
