//! Who holds which address. Pure: no clock, no disk, no socket.
//!
//! ```text
//!            offer              request: ack                 expires
//!   (free) ─────────▶ Offered ───────────────▶ Bound ──────────────▶ (expired)
//!     ▲                  │ request names           │ release             │
//!     │                  │ another server          ▼                     │ taken last: never-used
//!     │                  └──────────────────▶ Released ──────────────────┤ addresses go first
//!     │   quarantine over                                                ▼
//!     └────────────────────────────── Declined ◀── decline ────── any of them
//! ```
//!
//! One machine (chaddr) has one lease. Its firmware, loader and operating system send different
//! client identifiers (option 61) and the same chaddr; the identifiers and the UUID (option 97)
//! are remembered as aliases and never make a second lease. If option 61 decided, as in RFC 2131, a
//! machine would change its address in the middle of its boot.

mod pool;
mod rows;

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::time::Duration;

use jiff::Timestamp;
use pxe_common::Mac;
use serde::{Deserialize, Serialize};

use self::pool::Addresses;
pub use self::pool::Pool;
use self::rows::Rows;

/// An offer holds its address this long in memory, and the kernel may turn it into an ACK for as
/// long; in the store it is held for the whole lease.
const OFFER_HOLD: Duration = Duration::from_secs(120);

/// A declined address is not given out for this long. Whoever uses it without a lease may be gone by then.
const QUARANTINE: Duration = Duration::from_secs(3600);

/// The store has a later end than the client. It is later by half a lease time, so that the kernel can promise a whole
/// one until the client's renewal (RFC 2131 section 4.4.5, T1) extends the grant; and by at most this much more, so that
/// the packets of one boot (two DISCOVERs, a REQUEST, the OS's REQUEST) cost one write. Of a short lease it is at most a
/// quarter, so that the kernel's last promise comes before the lease's end, which is then certain.
const DURABLE_AHEAD: Duration = Duration::from_secs(120);

/// How many ended leases are looked at for one request.
const LOOKED_AT: usize = 256;

/// Client identifiers remembered of one machine. Firmware and an OS or two have one each.
const MAX_CLIENT_IDS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseState {
    /// Offered, not asked for yet.
    Offered,
    /// Acknowledged.
    Bound,
    /// Given back by its machine. No other machine gets it until all events of the kernel up to then are read: it may have
    /// promised the address again, to a machine that came back before the daemon learnt of its release.
    Released,
    /// Its machine found somebody else using the address. Nobody gets it until `expires`.
    Declined,
}

/// One address that was given out.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Lease {
    pub address: Ipv4Addr,
    #[serde(with = "crate::base::text::mac")]
    pub mac: Mac,
    pub state: LeaseState,
    /// When the client stops using the address; for an offer, when it may no longer be taken; for
    /// a declined one, when the quarantine ends.
    #[serde(serialize_with = "crate::base::text::micros")]
    pub expires: Timestamp,
    /// The end that the store knows. Never before what a client was told.
    #[serde(serialize_with = "crate::base::text::micros")]
    pub durable_until: Timestamp,
    /// Every option 61 the machine has sent, in hexadecimal.
    pub client_ids: BTreeSet<String>,
    /// The machine's UUID (option 97), as text.
    pub uuid: Option<String>,
}

/// The names that a machine gave itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Aliases {
    pub client_id: Option<String>,
    pub uuid: Option<String>,
}

/// A change that the store has to make to agree with memory.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Write this row, replacing what the address had.
    Put(Lease),
    /// Forget the address.
    Remove(Ipv4Addr),
}

/// Why a machine gets no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(
        "no free address: every address of dhcp.range is leased, reserved, declined or \
         released too lately; widen the range or shorten lease-time"
    )]
    Exhausted,
    #[error("the address is not this machine's")]
    NotYours,
}

/// Every lease, in memory.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    addresses: Addresses,
    /// The shortest lease time of this process that the kernel may still promise.
    shortest: Duration,
    rows: Rows,
    /// All addresses of the range before this one were given out already, and are in [`Rows`].
    fresh: u32,
    /// The one address of each machine. A declined address belongs to none.
    of_machine: HashMap<Mac, Ipv4Addr>,
    /// The old addresses, perhaps still in use, of machines that were offered another one.
    leaving: HashMap<Mac, Ipv4Addr>,
    /// Everything that the kernel did before this time is known here.
    heard_until: Timestamp,
}

/// What the kernel may promise a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speakable {
    pub address: Ipv4Addr,
    /// The latest end of a lease time that the kernel may promise.
    pub until: Timestamp,
}

/// How full the range is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Room {
    pub size: usize,
    pub free: usize,
}

impl Leases {
    /// Takes over what the store had.
    pub fn new(pool: Pool, stored: impl IntoIterator<Item = Lease>) -> Self {
        // Without further notice there is no kernel that answers on its own.
        let mut leases = Self { heard_until: Timestamp::MAX, shortest: Duration::MAX, ..Self::default() };
        for lease in stored {
            let newer = |old: &Ipv4Addr| leases.rows.get(*old).is_none_or(|old| old.expires < lease.expires);
            if lease.state != LeaseState::Declined && leases.of_machine.get(&lease.mac).is_none_or(newer) {
                leases.of_machine.insert(lease.mac, lease.address);
            }
            leases.rows.insert(lease, false);
        }
        leases.set_pool(pool);
        leases
    }

    /// Changes what may be given out. Leases that are no longer allowed end at their next renewal.
    pub fn set_pool(&mut self, pool: Pool) {
        self.shortest = self.shortest.min(pool.lease_time);
        self.fresh = 0;
        // Addresses at the beginning of the range, which people see first, come last: those to keep are taken from its
        // other end, and if all were given out, from the leases that ended first.
        let (first, last) = pool.range.map_or((1, 0), |(first, last)| (first.into(), last.into()));
        let unused = (first..=last).rev().map(Ipv4Addr::from).filter(|address| !self.rows.contains(*address));
        let mut given: Vec<(Timestamp, Ipv4Addr)> =
            self.rows.iter().map(|l| (l.expires, l.address)).collect();
        given.sort_unstable();
        let free = unused.chain(given.into_iter().map(|(_, address)| address));
        let addresses = Addresses::new(pool, |mac| self.of_machine.get(&mac).copied(), free);
        self.rows.arrange(|address| addresses.is_pooled(address));
        self.addresses = addresses;
    }

    /// All rows, by address, with those that ended.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.rows.iter()
    }

    /// How many machines have, or had, an address.
    pub fn machines(&self) -> usize {
        self.of_machine.len()
    }

    /// The machines that hold an address now.
    pub fn bound(&self, now: Timestamp) -> impl Iterator<Item = &Lease> {
        let held = |l: &&Lease| self.of_machine.get(&l.mac) == Some(&l.address);
        self.iter().filter(move |l| l.state == LeaseState::Bound && l.expires > now).filter(held)
    }

    /// The machine's row, whatever its state.
    pub fn of(&self, mac: Mac) -> Option<&Lease> {
        self.rows.get(*self.of_machine.get(&mac)?)
    }

    /// What the kernel may promise the machine, if only one lease can answer whatever it asks. An offer
    /// may be accepted while it is held.
    pub fn speakable(&self, mac: Mac, now: Timestamp) -> Option<Speakable> {
        let lease = self.of(mac)?;
        let until = match lease.state {
            LeaseState::Offered if lease.expires > now => {
                lease.durable_until.min(after(lease.expires, self.lease_time()))
            }
            LeaseState::Bound => lease.durable_until,
            LeaseState::Offered | LeaseState::Released | LeaseState::Declined => return None,
        };
        let is_its_own = self.reservation(mac).is_none_or(|reserved| reserved == lease.address);
        let stands = until > now && is_its_own && self.allows(mac, lease.address);
        stands.then_some(Speakable { address: lease.address, until })
    }

    /// All events of the kernel before `until` were read, unless some were `lost`. Offers that nobody accepted by then are
    /// free, and so are addresses that were given back or whose lease ended. After a loss this is uncertain, and each is
    /// held as if it had been accepted, or renewed.
    pub fn heard(&mut self, until: Timestamp, lost: bool) {
        if lost {
            let unsure = self.rows.iter().filter(|l| self.last_word(l) >= self.heard_until);
            let unsure: Vec<Ipv4Addr> = unsure.map(|l| l.address).collect();
            for address in unsure {
                self.rows.edit(address, |l| l.expires = l.expires.max(l.durable_until));
            }
        }
        self.heard_until = until;
    }

    /// An address to offer: the machine's reservation, the one that it has or had, the one that it asks
    /// for, one that nobody had, the one whose lease ended first (RFC 2131 section 4.3.1), the one kept for it.
    pub fn offer(
        &mut self,
        mac: Mac,
        wanted: Ipv4Addr,
        aliases: &Aliases,
        now: Timestamp,
    ) -> Result<(Ipv4Addr, Vec<Change>), Refused> {
        let reserved = self.reservation(mac);
        let previous = self.of_machine.get(&mac).copied();
        let address = [reserved, previous, Some(wanted)]
            .into_iter()
            .flatten()
            .find(|a| self.is_available(mac, *a, now))
            .or_else(|| self.never_used(mac))
            .or_else(|| self.longest_ended(mac, now))
            .or_else(|| self.addresses.kept(mac).filter(|kept| self.is_available(mac, *kept, now)))
            .ok_or(Refused::Exhausted)?;
        let bound = self
            .of(mac)
            .is_some_and(|l| l.address == address && l.state == LeaseState::Bound && self.is_active(l, now));
        let changes = match bound {
            // The machine rebooted: its lease is valid, and long enough for the offer.
            true => self.put(mac, address, LeaseState::Bound, self.lease_time(), aliases, now),
            false => self.put(mac, address, LeaseState::Offered, OFFER_HOLD, aliases, now),
        };
        Ok((address, changes))
    }

    /// Binds `address`, which the machine asked for, for a whole lease time.
    pub fn bind(
        &mut self,
        mac: Mac,
        address: Ipv4Addr,
        aliases: &Aliases,
        now: Timestamp,
    ) -> Result<Vec<Change>, Refused> {
        let reserved = self.reservation(mac);
        // Another address than the reserved one ends here, unless the reserved one is not available.
        if reserved.is_some_and(|r| r != address && self.is_available(mac, r, now)) {
            return Err(Refused::NotYours);
        }
        // While a machine's one lease is active, it decides.
        let runs = |l: &Lease| l.state != LeaseState::Released && self.is_active(l, now);
        let moves =
            self.of(mac).is_some_and(|l| l.address != address && runs(l) && reserved != Some(address));
        if moves || !self.is_available(mac, address, now) {
            return Err(Refused::NotYours);
        }
        Ok(self.put(mac, address, LeaseState::Bound, self.lease_time(), aliases, now))
    }

    /// The machine chose another server's offer: ours is held only until it is sure that the kernel
    /// has not turned it into an ACK.
    pub fn withdraw(&mut self, mac: Mac, now: Timestamp) {
        let may_be_bound = after(now, OFFER_HOLD);
        let offered = |l: &&Lease| l.state == LeaseState::Offered && l.expires <= may_be_bound;
        if let Some(address) = self.of(mac).filter(offered).map(|l| l.address) {
            self.rows.edit(address, |lease| lease.expires = lease.expires.min(now));
        }
    }

    /// The machine gives `address` back; nothing happens when it is not the machine's.
    pub fn release(&mut self, mac: Mac, address: Ipv4Addr, now: Timestamp) -> Vec<Change> {
        match self.of(mac) {
            Some(Lease { state: LeaseState::Released, .. }) => Vec::new(),
            Some(lease) if lease.address == address && self.is_active(lease, now) => {
                self.give_back(address, now)
            }
            _ => Vec::new(),
        }
    }

    /// The machine found `address` in use: it is quarantined. Only the machine's own address can be declined.
    pub fn decline(&mut self, mac: Mac, address: Ipv4Addr, now: Timestamp) -> Vec<Change> {
        if self.of_machine.get(&mac) != Some(&address) {
            return Vec::new();
        }
        self.of_machine.remove(&mac);
        self.change(address, |lease| {
            lease.state = LeaseState::Declined;
            lease.expires = after(now, QUARANTINE);
            lease.durable_until = lease.expires;
        })
    }

    /// The store failed: it must get these changes again.
    pub fn not_durable(&mut self, changes: &[Change]) {
        for change in changes {
            let Change::Put(lease) = change else { continue };
            let heard_until = self.heard_until;
            self.rows.edit(lease.address, |lease| {
                let unheard = lease.state == LeaseState::Offered && lease.expires >= heard_until;
                if unheard || matches!(lease.state, LeaseState::Bound | LeaseState::Released) {
                    // The kernel may have promised up to the end in the store, but no later.
                    lease.expires = lease.expires.max(lease.durable_until);
                }
                lease.durable_until = Timestamp::MIN;
            });
        }
    }

    /// Whether somebody may be using the address, or is about to.
    fn is_active(&self, lease: &Lease, now: Timestamp) -> bool {
        let is_held = matches!(lease.state, LeaseState::Offered | LeaseState::Declined);
        self.is_promised(lease, now) || (is_held && lease.expires > now)
    }

    /// Whether the lease's machine may have been promised the address, by us or by the kernel in an event
    /// not read yet: then the promise counts to the durable end.
    fn is_promised(&self, lease: &Lease, now: Timestamp) -> bool {
        let told = match lease.state {
            LeaseState::Bound | LeaseState::Released => lease.expires > now,
            LeaseState::Offered => false,
            LeaseState::Declined => return false,
        };
        told || (lease.durable_until > now && self.last_word(lease) >= self.heard_until)
    }

    /// The latest time at which the kernel can have promised the address to its machine.
    fn last_word(&self, lease: &Lease) -> Timestamp {
        match lease.state {
            // A whole lease time has to end before the durable end.
            LeaseState::Bound => lease.durable_until.checked_sub(self.shortest).unwrap_or(Timestamp::MIN),
            // Then its entry is removed.
            LeaseState::Offered | LeaseState::Released => lease.expires,
            LeaseState::Declined => Timestamp::MIN,
        }
    }

    /// Whether `mac` could be given `address` now.
    fn is_available(&self, mac: Mac, address: Ipv4Addr, now: Timestamp) -> bool {
        self.allows(mac, address)
            && self.rows.get(address).is_none_or(|lease| match lease.state {
                LeaseState::Declined => lease.expires <= now,
                _ => lease.mac == mac || !self.is_active(lease, now),
            })
    }

    /// Whether `mac` may hold `address` at all. A machine that has an address kept for another one may go on using it.
    fn allows(&self, mac: Mac, address: Ipv4Addr) -> bool {
        let has = || self.of_machine.get(&mac) == Some(&address) && self.addresses.is_pooled(address);
        self.addresses.allows(mac, address) || has()
    }

    fn reservation(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.addresses.pool.reservations.get(&mac).copied()
    }

    fn lease_time(&self) -> Duration {
        self.addresses.pool.lease_time
    }

    fn never_used(&mut self, mac: Mac) -> Option<Ipv4Addr> {
        let (first, last) = self.addresses.pool.range?;
        self.fresh = (self.fresh.max(first.into())..=last.into())
            .find(|a| self.addresses.allows(mac, (*a).into()) && !self.rows.contains((*a).into()))
            .unwrap_or(u32::MAX);
        (self.fresh != u32::MAX).then(|| self.fresh.into())
    }

    fn longest_ended(&self, mac: Mac, now: Timestamp) -> Option<Ipv4Addr> {
        // Few of the ended leases may have been renewed by the kernel in an event not read yet. If there are many, a
        // later request finds a free one.
        let mut ended = self.rows.by_end().take_while(|lease| lease.expires <= now).take(LOOKED_AT);
        let free = |l: &&Lease| !self.is_active(l, now) && self.addresses.allows(mac, l.address);
        ended.find(free).map(|lease| lease.address)
    }

    /// How many addresses of the range can be given to any machine, and how many of them are free.
    pub fn room(&self, now: Timestamp) -> Room {
        let size = self.addresses.size();
        let used = self.rows.by_end().filter(|lease| self.is_active(lease, now)).count();
        Room { size, free: size.saturating_sub(used) }
    }

    /// Enters a lease of `address` for `hold`, and returns the changes that must be stored first.
    fn put(
        &mut self,
        mac: Mac,
        address: Ipv4Addr,
        state: LeaseState,
        hold: Duration,
        aliases: &Aliases,
        now: Timestamp,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let before = self.of(mac).cloned();
        let moved = self.of_machine.insert(mac, address).filter(|old| *old != address);
        // The machine's old address stays out of the pool although another is offered now, because it may still be in
        // use.
        if let Some(old) = moved {
            if self.rows.get(old).is_some_and(|l| self.is_promised(l, now)) {
                self.leaving.entry(mac).or_insert(old);
            } else {
                self.rows.remove(old);
                self.fresh = self.fresh.min(old.into());
                changes.push(Change::Remove(old));
            }
        }
        if state == LeaseState::Bound
            && let Some(left) = self.leaving.remove(&mac)
            && left != address
            && self.rows.get(left).is_some_and(|l| l.mac == mac)
        {
            changes.extend(self.give_back(left, now));
        }
        if let Some(kept) = self.addresses.has(mac, address) {
            self.fresh = self.fresh.min(kept.into());
        }
        let stored = self.rows.get(address).filter(|l| l.mac == mac).cloned();
        if stored.is_none()
            && let Some(other) = self.rows.get(address)
            && self.of_machine.get(&other.mac) == Some(&address)
        {
            self.of_machine.remove(&other.mac);
        }
        let (mut client_ids, mut uuid) = before.map(|l| (l.client_ids, l.uuid)).unwrap_or_default();
        if let Some(id) = &aliases.client_id
            && client_ids.len() < MAX_CLIENT_IDS
        {
            client_ids.insert(id.clone());
        }
        uuid = aliases.uuid.clone().or(uuid);
        // An address that is offered again is held at least as long as before. That is longer than a hold after a lost
        // event, or after a release while the kernel's events are not read yet.
        let held = match &stored {
            Some(l) if (l.state, state) == (LeaseState::Offered, LeaseState::Offered) => l.expires,
            Some(l) if l.state == LeaseState::Released && self.is_promised(l, now) => {
                l.expires.max(l.durable_until)
            }
            _ => Timestamp::MIN,
        };
        let mut lease = Lease {
            address,
            mac,
            state,
            expires: after(now, hold).max(held),
            durable_until: stored.as_ref().map_or(Timestamp::MIN, |l| l.durable_until),
            client_ids,
            uuid,
        };
        // An offer promises a whole lease time. The store must have that before the offer is sent, and
        // also what the kernel will promise until the next renewal.
        let promised = after(now, self.lease_time() + self.lease_time() / 2);
        let known = stored.is_some_and(|l| {
            l.state == lease.state
                && l.durable_until >= promised
                && l.client_ids == lease.client_ids
                && l.uuid == lease.uuid
        });
        if !known {
            lease.durable_until = after(promised, DURABLE_AHEAD.min(self.lease_time() / 4));
            changes.push(Change::Put(lease.clone()));
        }
        self.rows.insert(lease, self.addresses.is_pooled(address));
        changes
    }

    /// The machine no longer uses the address. Nobody else gets it until all events of the kernel up to now are read.
    fn give_back(&mut self, address: Ipv4Addr, now: Timestamp) -> Vec<Change> {
        self.change(address, |lease| {
            lease.state = LeaseState::Released;
            lease.expires = now;
        })
    }

    fn change(&mut self, address: Ipv4Addr, edit: impl FnOnce(&mut Lease)) -> Vec<Change> {
        self.rows.edit(address, edit).map(|lease| Change::Put(lease.clone())).into_iter().collect()
    }
}

/// `time + by`, or the latest possible time: a lease may have up to 32 bits of seconds.
fn after(time: Timestamp, by: Duration) -> Timestamp {
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
#[path = "leases_tests.rs"]
mod tests;
