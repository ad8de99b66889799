//! The programs' debug lines, into the log.

use std::io;

use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

/// The programs' lines. They go to the `log` facade, from which tracing takes them.
pub struct Logs(EbpfLogger<&'static dyn log::Log>);

impl Logs {
    pub(super) fn new(logger: EbpfLogger<&'static dyn log::Log>) -> Self {
        Self(logger)
    }

    #[cfg(test)]
    pub(super) fn flush(&mut self) {
        self.0.flush();
    }

    /// Passes lines on until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) -> io::Result<()> {
        // SAFETY: the logger owns the ring buffer's descriptor until it is dropped, and never
        // gives out another.
        let mut logger = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE) }
            .map_err(|refused| refused.into_parts().1)?;
        loop {
            let mut ready = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                ready = logger.readable_mut() => ready?,
            };
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}
