//! The few rtnetlink requests that a bridge needs. rtnetlink's types stay in this file.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use ipnet::Ipv4Net;
use pxe_common::Mac;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    BridgeStpState, InfoBridge, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::RouteAttribute;
use rtnetlink::packet_route::tc::TcMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, MulticastGroup, RouteMessageBuilder};
use tokio_util::task::AbortOnDropHandle;

use super::NetError;
use super::neighbours::Certainty;
use crate::config::FORWARDS_IN_TIME;

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: Mac,
    pub(super) mtu: u32,
    pub(super) up: bool,
    /// The index of its master.
    pub(super) master: Option<u32>,
    pub(super) is_bridge: bool,
    /// Of a bridge with spanning tree: after how many seconds its ports forward, where that is too late.
    pub(super) forwards_after: Option<u32>,
}

/// Tells the kernel of neighbours, many with one system call, and waits for no answer: a thousand machines that come at
/// once would have a thousand answers wake this process.
pub(super) struct Teller {
    socket: rtnetlink::sys::Socket,
    index: u32,
}

impl Teller {
    /// Of one interface, in the network namespace that the thread is in.
    pub(super) fn of(index: u32) -> io::Result<Self> {
        Ok(Self { socket: route_socket()?, index })
    }

    /// Each address is the machine's with this MAC, or is nobody's any more.
    pub(super) fn tell(&self, news: &[(Ipv4Addr, Option<(Mac, Certainty)>)]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (address, machine) in news {
            let mut message = self.message(*address, *machine);
            message.finalize();
            let begin = bytes.len();
            // A message begins at a multiple of four.
            bytes.resize((begin + message.buffer_len()).next_multiple_of(4), 0);
            message.serialize(&mut bytes[begin..]);
        }
        let sent = self.socket.send(&bytes, 0);
        self.hear();
        sent.map(|_| ())
    }

    fn message(
        &self,
        address: Ipv4Addr,
        machine: Option<(Mac, Certainty)>,
    ) -> NetlinkMessage<RouteNetlinkMessage> {
        let mut neighbour = NeighbourMessage::default();
        neighbour.header.family = AddressFamily::Inet;
        neighbour.header.ifindex = self.index;
        neighbour.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
        let Some((mac, certainty)) = machine else {
            let mut message = NetlinkMessage::from(RouteNetlinkMessage::DelNeighbour(neighbour));
            message.header.flags = NLM_F_REQUEST;
            return message;
        };
        neighbour.header.state = match certainty {
            Certainty::Lease => NeighbourState::Permanent,
            Certainty::Hearsay => NeighbourState::Reachable,
        };
        neighbour.header.flags = NeighbourFlags::ExtLearned;
        neighbour.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(neighbour));
        message.header.flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE;
        message
    }

    /// Only failures are answered: of an entry that somebody removed, say.
    fn hear(&self) {
        let mut answers = 0;
        while self.socket.recv(&mut &mut [0; 512][..], 0).is_ok() {
            answers += 1;
        }
        if answers > 0 {
            tracing::debug!(answers, "the kernel did not take all neighbours");
        }
    }
}

/// Where a station is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// The port's index.
    pub(super) port: u32,
    pub(super) ago: Option<Duration>,
}

/// Asks the kernel, which answers before the question's system call has returned.
pub(super) struct Asker(rtnetlink::sys::Socket);

impl Asker {
    /// Of the network namespace that the thread is in.
    pub(super) fn new() -> io::Result<Self> {
        route_socket().map(Self)
    }

    /// Where and when `bridge` saw the station last (Linux 5.0, `rtnl_fdb_get` in net/core/rtnetlink.c).
    pub(super) fn seen(&self, bridge: u32, station: Mac) -> io::Result<Option<Seen>> {
        let mut entry = NeighbourMessage::default();
        entry.header.family = AddressFamily::Bridge;
        entry.attributes.push(NeighbourAttribute::LinkLayerAddress(station.0.to_vec()));
        entry.attributes.push(NeighbourAttribute::Controller(bridge));
        let mut question = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(entry));
        question.header.flags = NLM_F_REQUEST;
        question.finalize();
        let mut bytes = vec![0; question.buffer_len()];
        question.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        let mut answer = [0; 1024];
        let len = self.0.recv(&mut &mut answer[..], 0)?;
        let answer = NetlinkMessage::deserialize(&answer[..len]).map_err(io::Error::other)?;
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(entry)) => {
                let ago = entry.attributes.iter().find_map(|attribute| match attribute {
                    // Of an entry that somebody wrote, it is when that was.
                    NeighbourAttribute::CacheInfo(cache) => Some(cache.updated),
                    _ => None,
                });
                // In USER_HZ, as `br_fdb.c` gives it (`jiffies_delta_to_clock_t`).
                let ago = ago.map(|ticks| Duration::from_millis(u64::from(ticks) * 10));
                Ok(Some(Seen { port: entry.header.ifindex, ago }))
            }
            NetlinkPayload::Error(error) => match error.to_io() {
                error if error.kind() == io::ErrorKind::NotFound => Ok(None),
                error => Err(error),
            },
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// One that is used without a reactor.
fn route_socket() -> io::Result<rtnetlink::sys::Socket> {
    let socket = rtnetlink::sys::Socket::new(rtnetlink::sys::protocols::NETLINK_ROUTE)?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// A netlink socket of the network namespace that the thread is in.
pub(super) struct Links {
    handle: Handle,
    _connection: AbortOnDropHandle<()>,
}

impl Links {
    pub(super) fn connect() -> Result<Self, NetError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(no_socket)?;
        Ok(Self { handle, _connection: AbortOnDropHandle::new(tokio::spawn(connection)) })
    }

    pub(super) async fn all(&self) -> Result<Vec<Link>, NetError> {
        let links = self.handle.link().get().execute().map_ok(|message| Link::from(&message));
        links.try_collect().await.map_err(|e| failed("listing interfaces", e))
    }

    pub(super) async fn by_name(&self, name: &str) -> Result<Option<Link>, NetError> {
        // A dump, because a query by name reports a missing interface as an error like any other,
        // and also matches alternative names.
        Ok(self.all().await?.into_iter().find(|l| l.name == name))
    }

    pub(super) async fn by_index(&self, index: u32) -> Result<Option<Link>, NetError> {
        Ok(self.all().await?.into_iter().find(|l| l.index == index))
    }

    /// A bridge that forwards at once: without STP a port skips listening and learning, which
    /// would cost every node 30 s, longer than its firmware waits for an offer. Without multicast
    /// snooping, advertisements also reach firmware that solicits routers but never reports its
    /// group memberships.
    pub(super) async fn create_bridge(&self, name: &str, mac: Mac) -> Result<Link, NetError> {
        let message = LinkBridge::new(name)
            .down()
            .address(mac.0.to_vec())
            .stp_state(BridgeStpState::Disabled)
            .forward_delay(0)
            .mcast_snooping(false)
            .build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(|e| failed(format!("creating the bridge `{name}`"), e))?;
        self.by_name(name).await?.ok_or_else(|| NetError::Netlink {
            what: format!("creating the bridge `{name}`"),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    pub(super) async fn delete(&self, link: &Link) -> Result<(), NetError> {
        let done = self.handle.link().del(link.index).execute().await;
        done.map_err(|e| failed(format!("deleting `{}`", link.name), e))
    }

    pub(super) async fn set_up(&self, link: &Link, up: bool) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(link.index);
        let message = if up { message.up() } else { message.down() };
        let done = self.handle.link().set(message.build()).execute().await;
        let word = if up { "up" } else { "down" };
        done.map_err(|e| failed(format!("setting `{}` {word}", link.name), e))
    }

    pub(super) async fn set_master(&self, link: &Link, master: Option<u32>) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(link.index);
        let message = match master {
            Some(master) => message.controller(master),
            None => message.nocontroller(),
        };
        let done = self.handle.link().set(message.build()).execute().await;
        let word = if master.is_some() { "enslaving" } else { "releasing" };
        done.map_err(|e| failed(format!("{word} `{}`", link.name), e))
    }

    /// Every IPv4 address with its interface's index.
    pub(super) async fn addresses(&self) -> Result<Vec<(u32, Ipv4Net)>, NetError> {
        let all: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| failed("listing addresses", e))?;
        Ok(all.iter().filter_map(|m| Some((m.header.index, ipv4(m)?))).collect())
    }

    pub(super) async fn add_address(&self, index: u32, address: Ipv4Net) -> Result<(), NetError> {
        self.handle
            .address()
            .add(index, IpAddr::V4(address.addr()), address.prefix_len())
            .execute()
            .await
            .map_err(|e| failed(format!("adding the address {address}"), e))
    }

    pub(super) async fn delete_address(&self, index: u32, address: Ipv4Net) -> Result<(), NetError> {
        let messages = self.handle.address().get().set_link_index_filter(index).execute();
        let all: Vec<AddressMessage> =
            messages.try_collect().await.map_err(|e| failed("listing addresses", e))?;
        for message in all.into_iter().filter(|m| ipv4(m) == Some(address)) {
            let done = self.handle.address().del(message).execute().await;
            done.map_err(|e| failed(format!("removing the address {address}"), e))?;
        }
        Ok(())
    }

    /// The neighbours of an interface that a [`Teller`] entered, also one of a daemon that was killed.
    pub(super) async fn learned(&self, index: u32) -> Result<Vec<Ipv4Addr>, NetError> {
        let all = self.handle.neighbours().get().set_address_family(AddressFamily::Inet).execute();
        let all: Vec<NeighbourMessage> =
            all.try_collect().await.map_err(|e| failed("listing the neighbours".to_owned(), e))?;
        let ours = all.into_iter().filter(|neighbour| {
            let header = &neighbour.header;
            header.ifindex == index
                && header.state == NeighbourState::Permanent
                && header.flags.contains(NeighbourFlags::ExtLearned)
        });
        let address = |neighbour: NeighbourMessage| {
            neighbour.attributes.into_iter().find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(address),
                _ => None,
            })
        };
        Ok(ours.filter_map(address).collect())
    }

    /// The queueing disciplines of an interface.
    pub(super) async fn disciplines(&self, index: u32) -> io::Result<Vec<TcMessage>> {
        let all = self.handle.qdisc().get().index(index as i32).execute();
        // The kernel lists those of all interfaces all the same.
        all.try_filter(|m| std::future::ready(m.header.index == index as i32))
            .try_collect()
            .await
            .map_err(into_io)
    }

    /// Sends a message that `rtnetlink` does not support, and waits until it is done.
    pub(super) async fn request(&self, message: NetlinkMessage<RouteNetlinkMessage>) -> io::Result<()> {
        let mut answers = self.handle.clone().request(message).map_err(into_io)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(error.to_io());
            }
        }
        Ok(())
    }

    pub(super) async fn has_default_route(&self, index: u32) -> Result<bool, NetError> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes = self.handle.route().get(all).execute();
        let routes: Vec<_> = routes.try_collect().await.map_err(|e| failed("listing routes", e))?;
        Ok(routes.iter().any(|route| {
            route.header.destination_prefix_length == 0
                && route.attributes.contains(&RouteAttribute::Oif(index))
        }))
    }
}

/// Reports that some link changed, without saying which. So a slow reader misses nothing: it looks at
/// all of them.
pub(super) struct Changes {
    messages: BoxStream<'static, ()>,
    _connection: AbortOnDropHandle<()>,
}

impl Changes {
    pub(super) fn subscribe() -> Result<Self, NetError> {
        let (connection, _, messages) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link]).map_err(no_socket)?;
        let messages = messages.map(|_| ()).boxed();
        Ok(Self { messages, _connection: AbortOnDropHandle::new(tokio::spawn(connection)) })
    }

    /// Waits for the next change; many at once count as one. False when there will be none.
    pub(super) async fn next(&mut self) -> bool {
        let more = self.messages.next().await.is_some();
        while self.messages.next().now_or_never().flatten().is_some() {}
        more
    }
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: Mac::default(),
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            master: None,
            is_bridge: false,
            forwards_after: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(address) => {
                    link.mac = address.as_slice().try_into().map(Mac).unwrap_or_default();
                }
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Controller(index) => link.master = Some(*index).filter(|i| *i != 0),
                LinkAttribute::LinkInfo(infos) => {
                    link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                    link.forwards_after = infos.iter().find_map(forwards_after);
                }
                _ => {}
            }
        }
        link
    }
}

/// Listening and learning take as long each.
fn forwards_after(info: &LinkInfo) -> Option<u32> {
    let LinkInfo::Data(InfoData::Bridge(settings)) = info else { return None };
    let on = settings
        .iter()
        .any(|setting| matches!(setting, InfoBridge::StpState(state) if *state != BridgeStpState::Disabled));
    let delay = settings.iter().find_map(|setting| match setting {
        // In hundredths of a second.
        InfoBridge::ForwardDelay(delay) => Some(*delay),
        _ => None,
    })?;
    let seconds = 2 * delay / 100;
    (on && seconds > FORWARDS_IN_TIME).then_some(seconds)
}

fn ipv4(message: &AddressMessage) -> Option<Ipv4Net> {
    if message.header.family != AddressFamily::Inet {
        return None;
    }
    // `Local` is the interface's own; `Address` the peer's on a point-to-point link.
    let own = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })?;
    Ipv4Net::new(own, message.header.prefix_len).ok()
}

fn no_socket(source: io::Error) -> NetError {
    NetError::Netlink { what: "opening a netlink socket".to_owned(), source }
}

fn failed(what: impl Into<String>, error: rtnetlink::Error) -> NetError {
    let what = what.into();
    let source = into_io(error);
    if source.kind() == io::ErrorKind::PermissionDenied {
        return NetError::NotPermitted { what };
    }
    NetError::Netlink { what, source }
}

fn into_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}
