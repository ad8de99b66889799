//! The few rtnetlink requests that a bridge needs. rtnetlink's types stay in this file.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use ipnet::Ipv4Net;
use pxe_common::Mac;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
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
use crate::config::FORWARDS_IN_TIME;

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: Mac,
    pub(super) mtu: u32,
    pub(super) up: bool,
    /// The index of what it is enslaved to.
    pub(super) master: Option<u32>,
    pub(super) is_bridge: bool,
    /// Of a bridge with spanning tree: after how many seconds its ports forward, where that is too late.
    pub(super) forwards_after: Option<u32>,
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
        // A dump, not a request by name: that one's answer to a missing interface is an error
        // among others, and it takes alternative names for the name.
        Ok(self.all().await?.into_iter().find(|l| l.name == name))
    }

    pub(super) async fn by_index(&self, index: u32) -> Result<Option<Link>, NetError> {
        Ok(self.all().await?.into_iter().find(|l| l.index == index))
    }

    /// A bridge that forwards at once: without STP a port skips listening and learning, which
    /// would cost every node 30 s, longer than its firmware waits for an offer. Without multicast
    /// snooping firmware that solicits routers, but never reports what it listens to, still hears
    /// them.
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

    /// The queueing disciplines of an interface.
    /// `address` is the machine's with this `mac`, as somebody knows without ARP.
    pub(super) async fn learn(&self, index: u32, address: Ipv4Addr, mac: Mac) -> Result<(), NetError> {
        let neighbour = self.handle.neighbours().add(index, address.into()).link_layer_address(&mac.0);
        let known = neighbour.state(NeighbourState::Reachable).flags(NeighbourFlags::ExtLearned);
        known.replace().execute().await.map_err(|e| failed(format!("entering neighbour {address}"), e))
    }

    /// Nothing is known of `address` any more.
    pub(super) async fn forget(&self, index: u32, address: Ipv4Addr) -> Result<(), NetError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = index;
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
        let deleted = self.handle.neighbours().del(message).execute().await;
        deleted.map_err(|e| failed(format!("removing neighbour {address}"), e))
    }

    pub(super) async fn disciplines(&self, index: u32) -> io::Result<Vec<TcMessage>> {
        let all = self.handle.qdisc().get().index(index as i32).execute();
        // The kernel tells those of all interfaces all the same.
        all.try_filter(|m| std::future::ready(m.header.index == index as i32))
            .try_collect()
            .await
            .map_err(into_io)
    }

    /// Sends a message for which `rtnetlink` has no words, and waits until it is done.
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

/// Tells that some link changed, without saying which: a reader that was late has then missed
/// nothing, and looks at all of them.
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
