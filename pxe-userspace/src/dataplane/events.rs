//! The programs' reports of what they did.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use pxe_common::map::{Event, EventKind, WAKES_EVERY_NS};
use rustix::thread::{MembarrierCommand, membarrier};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::counters::CounterMap;
use crate::base::clock::boot_time_ns;
use crate::serve::dhcp::Told;

/// The programs' ring of events. Events for which it has no room are counted as `events-lost`.
pub struct Events {
    ring: RingBuf<MapData>,
    counters: Arc<CounterMap>,
    lost: u64,
    asked: Arc<Notify>,
}

/// The receivers of events. A slow one delays the others, until the ring is full and events are counted as lost.
pub struct Sinks {
    pub dhcp: mpsc::Sender<Told>,
    pub tftp: mpsc::Sender<Event>,
}

/// How long after an event the ring is looked at again, for later ones without a wake-up: a program does not wake the
/// daemon again right after it has done so.
const FOLLOW: Duration = Duration::from_nanos(2 * WAKES_EVERY_NS);

/// How often the time up to which all events were read is reported. An address that was given back is free after this
/// and the delay below.
pub(super) const HEARD_EVERY: Duration = Duration::from_secs(1);

/// A program reads the clock before it decides, and reports afterwards. If the kernel can't say that no program is in
/// between, this time has to pass. It is long because a virtual machine's CPU may be stopped meanwhile.
const DECIDING: Duration = Duration::from_secs(2);

impl Events {
    pub(super) fn new(ring: RingBuf<MapData>, counters: Arc<CounterMap>) -> Self {
        Self { ring, lost: counters.events_lost(), counters, asked: Arc::default() }
    }

    /// Notify it to have all events of the programs up to now read soon.
    pub(super) fn asked(&self) -> Arc<Notify> {
        self.asked.clone()
    }

    /// The next event, if there is one.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let item = self.ring.next()?;
        Some(Event::read(item.first_chunk()?))
    }

    /// Passes events on until `shutdown`.
    pub async fn run(self, sinks: Sinks, shutdown: CancellationToken) -> io::Result<()> {
        // SAFETY: the ring owns its descriptor until it is dropped, and never gives out another.
        let mut ring = unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }
            .map_err(|refused| refused.into_parts().1)?;
        let mut heard = tokio::time::interval_at(Instant::now() + HEARD_EVERY, HEARD_EVERY);
        heard.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let asked = ring.get_ref().asked();
        // The thread that waits for running programs. A request meanwhile is handled afterwards.
        let mut waiting: Option<JoinHandle<u64>> = None;
        // Whether there may be later events, without a wake-up.
        let mut follow = false;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                ready = ring.readable_mut() => {
                    let mut ready = ready?;
                    follow |= ready.get_inner_mut().pass_on(&sinks).await;
                    ready.clear_ready();
                }
                () = tokio::time::sleep(FOLLOW), if follow => follow = ring.get_mut().pass_on(&sinks).await,
                _ = heard.tick(), if waiting.is_none() => waiting = Some(spawn_blocking(wait_for_programs)),
                () = asked.notified(), if waiting.is_none() => waiting = Some(spawn_blocking(wait_for_programs)),
                until_ns = ended(&mut waiting) => {
                    let events = ring.get_mut();
                    follow |= events.pass_on(&sinks).await;
                    let _ = sinks.dhcp.send(Told::Heard { until_ns, lost: events.lost_some() }).await;
                    waiting = None;
                }
            }
        }
    }

    /// Passes on everything in the ring. A service that is off, or has ended, does not need its events. Returns whether
    /// there were any.
    async fn pass_on(&mut self, sinks: &Sinks) -> bool {
        let mut any = false;
        while let Some(event) = self.next() {
            any = true;
            match event.kind() {
                Some(EventKind::Offer | EventKind::Ack) => {
                    let _ = sinks.dhcp.send(Told::Event(event)).await;
                }
                Some(EventKind::Mark | EventKind::Finished | EventKind::Aborted) => {
                    let _ = sinks.tftp.send(event).await;
                }
                // An event of a newer program, which will be replaced.
                None => {}
            }
        }
        any
    }

    /// Whether events were lost since the last call.
    fn lost_some(&mut self) -> bool {
        let before = std::mem::replace(&mut self.lost, self.counters.events_lost());
        self.lost != before
    }
}

/// Waits until every program that runs now has ended, and returns a time: all events decided until then are in the ring.
fn wait_for_programs() -> u64 {
    let begun_ns = boot_time_ns();
    // An RCU grace period (membarrier(2)); programs run in read-side critical sections. Not available with CPUs that
    // run without ticks.
    match membarrier(MembarrierCommand::Global) {
        Ok(()) => begun_ns,
        Err(_) => begun_ns.saturating_sub(DECIDING.as_nanos() as u64),
    }
}

/// The result of the wait; never ready if there is none.
async fn ended(waiting: &mut Option<JoinHandle<u64>>) -> u64 {
    let Some(handle) = waiting else { return std::future::pending().await };
    // Only the runtime's end cancels it, and then nobody needs the result.
    handle.await.unwrap_or_default()
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}
