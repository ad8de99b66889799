//! Ports that come and go.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ceiling::Ceiling;
use super::journal::Journal;
use super::links::{Changes, Link, Links};
use super::{NetError, Port, PortEvent, Ports, enslave, offload};

/// The kernel drops notifications when the socket is full: look at least this often.
const AT_LEAST_EVERY: Duration = Duration::from_secs(30);

/// Follows the links by comparing all of them with what was known, whenever something changed.
pub(super) struct Watch {
    links: Links,
    bridge: u32,
    wanted: Wanted,
    journal: Journal,
    ports: Ports,
    events: mpsc::UnboundedSender<PortEvent>,
    /// Configured ports that could not be enslaved, so that each is reported once.
    refused: Vec<u32>,
    bridge_gone: bool,
}

/// What the configuration asks of ports.
pub(super) struct Wanted {
    /// Names of the ports that belong to the bridge whenever they exist.
    pub(super) ports: Vec<String>,
    pub(super) ceiling: Option<Ceiling>,
    /// Their cards have to leave VLAN tags in the frames, for XDP.
    pub(super) tags_left_on: bool,
}

impl Watch {
    pub(super) fn new(
        links: Links,
        bridge: u32,
        wanted: Wanted,
        journal: Journal,
        ports: Ports,
        events: mpsc::UnboundedSender<PortEvent>,
    ) -> Self {
        Self { links, bridge, wanted, journal, ports, events, refused: Vec::new(), bridge_gone: false }
    }

    /// Runs until stopped; the journal then says what to undo.
    pub(super) async fn run(mut self, mut changes: Changes, stop: CancellationToken) -> Journal {
        let mut open = true;
        loop {
            tokio::select! {
                () = stop.cancelled() => return self.journal,
                more = changes.next(), if open => open = more,
                () = tokio::time::sleep(AT_LEAST_EVERY) => {}
            }
            if let Err(error) = self.compare().await {
                tracing::warn!(%error, "the bridge's ports could not be looked at");
            }
        }
    }

    /// Enslaves configured ports that (re)appeared, then reports what differs from the last look.
    pub(super) async fn compare(&mut self) -> Result<(), NetError> {
        let mut all = self.links.all().await?;
        if self.enslave_returned(&all).await {
            all = self.links.all().await?;
        }
        if !all.iter().any(|l| l.index == self.bridge) && !self.bridge_gone {
            self.bridge_gone = true;
            tracing::error!(
                "somebody deleted the bridge: no node can be served until the daemon is restarted"
            );
        }
        self.notice_spanning_tree(all.iter().find(|l| l.index == self.bridge));
        let known = self.ports.now();
        let mut now: Vec<Port> = Vec::new();
        let bridge = self.bridge;
        for Link { index, name, mtu, .. } in all.iter().filter(|l| l.master == Some(bridge)).cloned() {
            let unshaped = match known.iter().find(|k| k.index == index) {
                Some(known) => known.unshaped.clone(),
                None => {
                    self.leave_tags_on(&name)?;
                    self.shape(index, &name).await?
                }
            };
            now.push(Port { index, name, mtu, unshaped });
        }
        // Without a receiver nobody is interested.
        for gone in known.iter().filter(|k| now.iter().all(|n| n.index != k.index)) {
            tracing::info!(port = gone.name, "port gone");
            if self.wanted.tags_left_on {
                self.journal.note(|changes| changes.give_tags_back(&gone.name))?;
            }
            if self.wanted.ceiling.is_some() && all.iter().any(|l| l.index == gone.index) {
                // It may only have left the bridge. If this fails, it is tried again at the end.
                let _ = self.links.unshape(gone.index).await;
            }
            let _ = self.events.send(PortEvent::Removed(gone.clone()));
        }
        for new in now.iter().filter(|n| known.iter().all(|k| n.index != k.index)) {
            tracing::info!(port = new.name, "port added");
            let _ = self.events.send(PortEvent::Added(new.clone()));
        }
        *self.ports.lock() = now;
        Ok(())
    }

    /// An adopted bridge keeps its spanning tree, which whoever made it may need.
    fn notice_spanning_tree(&self, bridge: Option<&Link>) {
        let seconds = bridge.and_then(|bridge| bridge.forwards_after).unwrap_or(0);
        let before = self.ports.forwards_after.swap(seconds, Ordering::Relaxed);
        if let Some(bridge) = bridge.filter(|_| seconds > 0 && seconds != before) {
            tracing::warn!(
                bridge = bridge.name,
                seconds,
                "the bridge has spanning tree on: its ports forward so long after their link came up, and BIOS machines \
                 give up before; `ip link set {} type bridge stp_state 0` switches it off",
                bridge.name
            );
        }
    }

    /// Has a card leave VLAN tags on, where it is for XDP to see them. Where it can't, the port has no XDP.
    fn leave_tags_on(&mut self, name: &str) -> Result<(), NetError> {
        let takes_off = || offload::has_device(name) && offload::takes_tags_off(name).unwrap_or(false);
        if !self.wanted.tags_left_on || !takes_off() {
            return Ok(());
        }
        self.journal.note(|changes| changes.add_tags_left_on(name))?;
        match offload::take_tags_off(name, false) {
            Ok(()) => tracing::info!(port = name, "its card leaves VLAN tags on while the daemon runs"),
            Err(error) => tracing::info!(port = name, %error, "its card can't leave VLAN tags on"),
        }
        Ok(())
    }

    /// Sets the ceiling of a port, if one is configured; returns why it does not hold there.
    async fn shape(&mut self, index: u32, name: &str) -> Result<Option<String>, NetError> {
        let Some(ceiling) = &self.wanted.ceiling else { return Ok(None) };
        let shaped = match self.links.can_be_shaped(index).await {
            Ok(()) => {
                self.journal.note(|changes| changes.add_shaped(name))?;
                self.links.shape(index, ceiling).await
            }
            Err(error) => Err(error),
        };
        Ok(shaped.err().map(|error| {
            tracing::warn!(port = name, %error, "[network] ceiling does not hold on this port");
            error.to_string()
        }))
    }

    async fn enslave_returned(&mut self, all: &[Link]) -> bool {
        let mut any = false;
        for link in
            all.iter().filter(|l| self.wanted.ports.contains(&l.name) && l.master != Some(self.bridge))
        {
            if self.bridge_gone || self.refused.contains(&link.index) {
                continue;
            }
            if link.master.is_some() {
                tracing::warn!(port = link.name, "somebody put this configured port under another interface");
                self.refused.push(link.index);
                continue;
            }
            match enslave(link, self.bridge, &self.links, &mut self.journal).await {
                Ok(()) => any = true,
                Err(error) => {
                    tracing::warn!(port = link.name, %error, "a configured port came back but can't be enslaved");
                    self.refused.push(link.index);
                }
            }
        }
        any
    }
}
