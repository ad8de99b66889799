//! Fetching an image that other machines fetch at the same time: by multicast while there is a round for it, over HTTP
//! before, after, and whenever that is better. See docs/carousel.md.
//!
//! The fetch begins by HTTP, and asks the appliance every second whether there is a round (`rounds`). Then it
//! receives (`round`) and assembles the image (`assembly`). When no packets arrive any more, or fewer than HTTP would
//! bring, it leaves the round and fetches what is missing. The digest of the whole image decides: if it is wrong,
//! everything is fetched again, by HTTP alone.

mod assembly;
mod round;
mod rounds;

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use crate::fetch::{self, Fetched};
use crate::say;
use assembly::Assembly;
use pxe_contract::round::{Offer, Reception};
use pxe_contract::symbols::Geometry;
use rounds::Rounds;

pub use crate::appliance::Appliance;
pub use crate::fetch::{FetchError, Remote};

/// How often a fetch by HTTP asks for a round.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Where an image is put together.
pub trait Store {
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Fills `bytes` with what was written.
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;
}

impl Store for File {
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(bytes, at)
    }
}

/// How an image was fetched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Came {
    /// Bytes of it that were fetched, either way.
    pub bytes: u64,
    pub took: Duration,
    /// How often the link was lost on the way.
    pub resumed: u32,
    /// Bytes of it that came by multicast.
    pub by_multicast: u64,
}

impl From<Fetched> for Came {
    fn from(Fetched { bytes, took, resumed }: Fetched) -> Self {
        Self { bytes, took, resumed, by_multicast: 0 }
    }
}

/// Puts all of `remote` into `into`, verified.
pub fn fetch(remote: &Remote, into: &mut impl Store) -> Result<Came, FetchError> {
    let started = Instant::now();
    let rounds = Rounds::of(&remote.sha256, remote.server.clone());
    let mut watched = Watched { rounds, into, at: 0, asked: None, offer: None };
    watched.ask();
    if watched.offer.is_none() {
        match fetch::fetch(remote, &[], &mut watched) {
            Err(FetchError::Keep(_)) if watched.offer.is_some() => {}
            result => {
                let fetched = result?;
                watched.rounds.leave();
                return Ok(fetched.into());
            }
        }
    }
    let Watched { mut rounds, at, offer, .. } = watched;
    let listened = offer.and_then(|offer| {
        let geometry = Geometry::new(remote.size, offer.symbol_size, offer.block_symbols)?;
        Some((offer, Assembly::new(geometry, at)))
    });
    let Some((offer, mut assembly)) = listened else {
        // An invalid offer counts as none.
        return by_http(remote, into, started);
    };
    say!("listening to {} for the image, with other machines", offer.group);
    let left = round::listen(remote, &rounds, offer, &mut assembly, into).map_err(FetchError::Keep)?;
    rounds.leave();
    let by_multicast = assembly.received();
    let mut resumed = 0;
    if let Some(why) = left {
        say!("{why}: going on by HTTP");
        resumed = fetch::parts(remote, assembly.missing(), |bytes, at| into.write_at(bytes, at))?;
    }
    let found = assembly.sha256(into).map_err(FetchError::Keep)?;
    if found != remote.sha256 {
        say!("what came by multicast is not the image (SHA-256 {found}): fetching it by HTTP alone");
        return by_http(remote, into, started);
    }
    Ok(Came { bytes: remote.size, took: started.elapsed(), resumed, by_multicast })
}

fn by_http(remote: &Remote, into: &mut impl Store, started: Instant) -> Result<Came, FetchError> {
    let fetched = fetch::fetch(remote, &[], &mut InOrder { into, at: 0 })?;
    Ok(Came { took: started.elapsed(), ..fetched.into() })
}

/// Writes to a store sequentially.
struct InOrder<'a, S> {
    into: &'a mut S,
    at: u64,
}

impl<S: Store> Write for InOrder<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.into.write_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same, and refuses more as soon as there is a round.
struct Watched<'a, S> {
    rounds: Rounds,
    into: &'a mut S,
    at: u64,
    asked: Option<Instant>,
    offer: Option<Offer>,
}

impl<S> Watched<'_, S> {
    fn ask(&mut self) {
        self.offer = self.rounds.ask(&Reception::default());
        self.asked = Some(Instant::now());
    }
}

impl<S: Store> Write for Watched<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.asked.is_none_or(|asked| asked.elapsed() > ASK_EVERY) {
            self.ask();
            if self.offer.is_some() {
                return Err(io::Error::other("there is a multicast round"));
            }
        }
        let written = InOrder { into: self.into, at: self.at }.write(bytes)?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
