//! The only writer: a thread that commits whatever has queued.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use tokio::sync::oneshot;

use super::{Change, Engine, WriteError};

/// About how many changes a transaction has. An order is never split.
const BATCH: usize = 512;

/// From this many queued changes on, events are dropped; they take some 100 MB. A thousand machines that boot at once
/// fill the queue only after the disk has stood still for minutes.
pub(super) const QUEUED_MAX: usize = 200_000;

/// How somebody who waits gets the answer.
pub(super) enum Answer {
    Thread(mpsc::SyncSender<Result<(), WriteError>>),
    Task(oneshot::Sender<Result<(), WriteError>>),
}

/// What one caller handed over.
struct Order {
    changes: Vec<Change>,
    /// `None` if nobody waits.
    answer: Option<Answer>,
}

/// The callers' end of the queue.
pub(super) struct Queue {
    orders: mpsc::Sender<Order>,
    depth: Arc<Depth>,
}

/// How full the queue is.
#[derive(Default)]
struct Depth {
    changes: AtomicUsize,
    dropped: AtomicUsize,
}

impl Queue {
    /// Starts the writer. It ends when the queue is dropped and everything in it is written.
    pub(super) fn start(engine: Box<dyn Engine>) -> Self {
        let (orders, received) = mpsc::channel();
        let depth = Arc::<Depth>::default();
        let mut writer = Writer { engine, depth: depth.clone() };
        thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(&received))
            .expect("a thread can be started");
        Self { orders, depth }
    }

    pub(super) fn push(&self, changes: Vec<Change>, answer: Option<Answer>) {
        let event = matches!(changes.as_slice(), [Change::AddEvent(_)]);
        if event && self.depth.changes.load(Ordering::Relaxed) >= QUEUED_MAX {
            self.depth.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.depth.changes.fetch_add(changes.len(), Ordering::Relaxed);
        // This fails if the writer panicked. Whoever waits then gets `WriteError::Ended`.
        let _ = self.orders.send(Order { changes, answer });
    }
}

struct Writer {
    engine: Box<dyn Engine>,
    depth: Arc<Depth>,
}

impl Writer {
    fn run(&mut self, orders: &mpsc::Receiver<Order>) {
        while let Ok(first) = orders.recv() {
            let mut count = first.changes.len();
            let mut batch = vec![first];
            while count < BATCH
                && let Ok(order) = orders.try_recv()
            {
                count += order.changes.len();
                batch.push(order);
            }
            self.write(batch);
            self.depth.changes.fetch_sub(count, Ordering::Relaxed);
            let dropped = self.depth.dropped.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                tracing::error!(
                    dropped,
                    "events are missing in the timeline: the disk was too slow for them"
                );
            }
        }
    }

    /// Writes all orders in one transaction. If that fails, each order gets its own, so that only the bad one fails.
    fn write(&mut self, batch: Vec<Order>) {
        if let [_, _, ..] = batch.as_slice() {
            let changes: Vec<&Change> = batch.iter().flat_map(|order| &order.changes).collect();
            if self.apply(&changes).is_ok() {
                batch.into_iter().for_each(|order| order.tell(Ok(())));
                return;
            }
        }
        for order in batch {
            let changes: Vec<&Change> = order.changes.iter().collect();
            let written = self.apply(&changes);
            order.tell(written);
        }
    }

    fn apply(&mut self, changes: &[&Change]) -> Result<(), WriteError> {
        let Some(durability) = changes.iter().map(|change| change.durability()).max() else { return Ok(()) };
        self.engine
            .apply(changes, durability)
            .map_err(|source| WriteError::Engine { what: changes[0].what(), source })
    }
}

impl Order {
    fn tell(self, written: Result<(), WriteError>) {
        let unheard = match self.answer {
            Some(Answer::Thread(answer)) => answer.send(written).err().map(|unheard| unheard.0),
            Some(Answer::Task(answer)) => answer.send(written).err(),
            None => Some(written),
        };
        if let Some(Err(error)) = unheard {
            tracing::error!("{error}: it is lost should the daemon end");
        }
    }
}
