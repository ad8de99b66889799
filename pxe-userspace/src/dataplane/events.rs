//! What the programs did, as they tell it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use aya::maps::{MapData, RingBuf};
use pxe_common::map::{Event, EventKind};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The programs' ring of events. What it has no room for is counted as `events-lost`.
pub struct Events(RingBuf<MapData>);

/// Who takes events. One who does not keep up holds up the others, until the ring is full and counts.
pub struct Sinks {
    pub dhcp: mpsc::Sender<Event>,
    pub tftp: mpsc::Sender<Event>,
}

impl Events {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self(ring)
    }

    /// The next event, if there is one.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let item = self.0.next()?;
        Some(Event::read(item.first_chunk()?))
    }

    /// Passes events on until `shutdown`.
    pub async fn run(self, sinks: Sinks, shutdown: CancellationToken) -> io::Result<()> {
        // SAFETY: the ring owns its descriptor until it is dropped, and never gives out another.
        let mut ring = unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }
            .map_err(|refused| refused.into_parts().1)?;
        loop {
            let mut ready = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                ready = ring.readable_mut() => ready?,
            };
            while let Some(event) = ready.get_inner_mut().next() {
                let sink = match event.kind() {
                    Some(EventKind::Offer | EventKind::Ack) => &sinks.dhcp,
                    Some(EventKind::Mark | EventKind::Finished | EventKind::Aborted) => &sinks.tftp,
                    // A newer program's, which waits to be replaced.
                    None => continue,
                };
                // A service that is off, or has ended, misses nothing.
                let _ = sink.send(event).await;
            }
            ready.clear_ready();
        }
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
