//! One image to many machines at once: a multicast round beside HTTP.
//!
//! Machines that fetch an image's stage 2 by HTTP ask every second whether there is a round ([`Carousel::ask`]). When
//! enough of them want the same image at the same time, a round is opened: a thread (`sender`) sends what `schedule`
//! chooses, at the rate of `pace`, until no machine waits. In the same request a receiver reports what it lacks.
//! docs/carousel.md describes the whole protocol.

mod pace;
mod schedule;
mod sender;

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::base::lock::Unpoisoned as _;
use crate::config;
use crate::provision::blob::Blob;
use pxe_contract::round::{Offer, Reception};
use sender::Round;

/// How long a machine that asked counts as one that wants the image. Machines ask every second.
const WINDOW: Duration = Duration::from_secs(5);

/// A handle; cloning it is cheap.
#[derive(Clone)]
pub struct Carousel(Arc<Inner>);

struct Inner {
    settings: config::Carousel,
    /// The source address and the maximum length of packets.
    address: Ipv4Addr,
    mtu: u32,
    /// By SHA-256.
    images: Mutex<HashMap<String, Image>>,
}

#[derive(Default)]
struct Image {
    /// The machines that fetch it by HTTP, and when they asked.
    asked: HashMap<Ipv4Addr, Instant>,
    round: Option<Arc<Round>>,
}

impl Carousel {
    /// For the bridge with this address and MTU.
    pub fn new(settings: config::Carousel, address: Ipv4Addr, mtu: u32) -> Self {
        Self(Arc::new(Inner { settings, address, mtu, images: Mutex::default() }))
    }

    /// Whether rounds are switched on.
    pub fn enabled(&self) -> bool {
        self.0.settings.at_least > 0
    }

    /// A machine at `from` wants the image and reports its progress. Returns the round that it shall listen to; `None`
    /// while HTTP is the better way.
    pub fn ask(
        &self,
        sha256: &str,
        image: &Blob,
        from: Ipv4Addr,
        report: &Reception,
        now: Instant,
    ) -> io::Result<Option<Offer>> {
        let Inner { settings, address, mtu, images } = &*self.0;
        let mut images = images.lock().unpoisoned();
        images.retain(|_, image| {
            image.asked.retain(|_, asked| now.saturating_duration_since(*asked) < WINDOW);
            image.round = image.round.take().filter(|round| !round.ended());
            !image.asked.is_empty() || image.round.is_some()
        });
        let wanted = images.entry(sha256.to_owned()).or_default();
        if wanted.round.is_none() {
            if report.done {
                wanted.asked.remove(&from);
                return Ok(None);
            }
            wanted.asked.insert(from, now);
            if wanted.asked.len() < settings.at_least {
                return Ok(None);
            }
            wanted.asked.clear();
            wanted.round = Round::open(settings, *address, *mtu, sha256, image, now)?;
        }
        let round = wanted.round.clone();
        let rounds: Vec<_> = images.values().filter_map(|image| image.round.as_ref()).collect();
        for round in &rounds {
            round.share(settings.ceiling, rounds.len());
        }
        Ok(round.and_then(|round| round.report(from, report, now)))
    }
}

#[cfg(test)]
mod tests;
