//! Work that is done beside the packets' thread, because it may block: the timeline and the machines' register are
//! updated, whose locks a reader may hold, and grants are closed, which frees kernel memory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use pxe_common::map::SessionKey;
use tokio::sync::mpsc::UnboundedSender;

use super::FastPath;
use super::server::Tell;
use crate::machines::diagnosis::Note;
use crate::machines::timeline::{Happened, Timeline, Who};

/// Requests for files that are not served are noted while no more than this is queued: they cost their sender
/// nothing, and a flood of them is no news.
const WAITING_MAX: usize = 4096;

/// One thread, so that all events stay in order, whichever machine's they are.
///
/// Its queue has no bound of its own, and nothing is dropped but notes of files that were not served. A transfer queues
/// a handful of entries in its whole life (its opening, five marks, its end, a line of the timeline, its grant), and the
/// number of transfers is bounded. The queue is empty except while somebody holds the timeline's locks.
pub(super) struct Aside {
    work: mpsc::Sender<(Instant, Work)>,
    waiting: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

enum Work {
    Tell(Tell),
    Close(SessionKey),
}

impl Aside {
    /// Starts the thread. It reports each grant that it closed, on a channel that it drops only when it has ended.
    pub(super) fn start(
        timeline: Timeline,
        fast_path: Option<Arc<dyn FastPath>>,
        closed: UnboundedSender<SessionKey>,
    ) -> std::io::Result<Self> {
        let (work, queue) = mpsc::channel();
        let waiting = Arc::<AtomicUsize>::default();
        let counted = waiting.clone();
        let thread = std::thread::Builder::new().name("tftp-aside".into()).spawn(move || {
            for (since, work) in &queue {
                counted.fetch_sub(1, Ordering::Relaxed);
                match work {
                    Work::Tell(tell) => tell_people(&timeline, tell, since),
                    Work::Close(key) => {
                        if let Some(fast_path) = &fast_path {
                            fast_path.close(&key);
                        }
                        // Nobody listens once the server has ended.
                        let _ = closed.send(key);
                    }
                }
            }
            // The daemon ends: the last events must be on disk before.
            timeline.flush();
        })?;
        Ok(Self { work, waiting, thread })
    }

    pub(super) fn tell(&self, tell: Tell) {
        let minor = matches!(tell, Tell::Note(_, Note::NotServed { .. }));
        if minor && self.waiting.load(Ordering::Relaxed) >= WAITING_MAX {
            tracing::debug!(?tell, "too much waits to be told");
            return;
        }
        self.put(Work::Tell(tell));
    }

    pub(super) fn close(&self, key: SessionKey) {
        self.put(Work::Close(key));
    }

    /// Waits until all is done.
    pub(super) fn finish(self) {
        drop(self.work);
        if self.thread.join().is_err() {
            tracing::error!("what transfers did last was not told");
        }
    }

    fn put(&self, work: Work) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // Fails when the thread panicked, which the server's loop notices.
        let _ = self.work.send((Instant::now(), work));
    }
}

pub(super) fn tell_people(timeline: &Timeline, tell: Tell, since: Instant) {
    match tell {
        Tell::Note(client, note) => timeline.note(Who::Address(client), note),
        Tell::Fetching(client, fetching) => timeline.fetching(Who::Address(client), fetching),
        Tell::Record(happened) => {
            let began_ago = happened.began_ago.map(|ago| ago + since.elapsed());
            timeline.record(Happened { began_ago, ..happened });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use pxe_common::Mac;

    use super::*;
    use crate::machines::Machines;
    use crate::machines::timeline::Stage;

    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);

    fn aside() -> (tempfile::TempDir, Timeline, Aside) {
        let dir = tempfile::tempdir().unwrap();
        let machines = Machines::default();
        machines.bound(Mac([2, 0, 0, 0, 0, 1]), CLIENT);
        let timeline =
            Timeline::open(crate::store::Store::open(&dir.path().join("db")).unwrap(), machines).unwrap();
        let (closed, _) = tokio::sync::mpsc::unbounded_channel();
        let aside = Aside::start(timeline.clone(), None, closed).unwrap();
        (dir, timeline, aside)
    }

    #[test]
    fn what_is_told_while_somebody_reads_is_told_in_order_and_none_of_it_is_lost() {
        let (_dir, timeline, aside) = aside();
        let reading = timeline.watch();
        for n in 0..500 {
            let happened = Happened::new(Who::Address(CLIENT), Stage::Kernel).detail(n.to_string());
            aside.tell(Tell::Record(happened));
        }
        drop(reading);
        aside.finish();
        let told = timeline.since(0, 1_000).unwrap().into_iter().filter_map(|event| event.detail);
        assert_eq!(told.collect::<Vec<_>>(), (0..500).map(|n| n.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn a_flood_of_files_that_are_not_there_fills_no_memory() {
        let (_dir, timeline, aside) = aside();
        let reading = timeline.watch();
        for n in 0..2 * WAITING_MAX {
            aside.tell(Tell::Note(CLIENT, Note::NotServed { path: n.to_string(), why: String::new() }));
        }
        assert!(aside.waiting.load(Ordering::Relaxed) <= WAITING_MAX);
        drop(reading);
        aside.finish();
    }
}
