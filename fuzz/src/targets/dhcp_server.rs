//! Whole conversations with the DHCP server, of arbitrary packets: every address that is sent was stored before, for
//! long enough, and belongs to no other machine (design invariant 1).
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use bridgehead::config::{self, Config};
use bridgehead::machines::pacing::ANYWHERE;
use bridgehead::serve::dhcp::leases::{Change, Lease};
use bridgehead::serve::dhcp::server::{Command, Meta, Server};
use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable as _, Decoder};
use jiff::{SignedDuration, Timestamp};

static CONFIG: LazyLock<Arc<Config>> = LazyLock::new(|| {
    let text = r#"
        state-dir = "/nowhere"
        [network]
        bridge = "pxe0"
        address = "10.77.0.1/24"
        ports = []
        [dhcp]
        mode = "authoritative"
        range = ["10.77.0.100", "10.77.0.103"]
        lease-time = "1h"
        unknown = "address-only"
    "#;
    Arc::new(config::parse(text, Path::new("bridgehead.toml")).expect("the configuration is valid"))
});

// Each packet is preceded by its length (two bytes) and the minutes since the one before (one byte).
pub(crate) fn run(bytes: &[u8]) {
    let mut server = Server::new(CONFIG.clone(), []);
    let mut now = Timestamp::UNIX_EPOCH;
    let mut stored: HashMap<Ipv4Addr, Lease> = HashMap::new();
    let mut rest = bytes;
    while let [high, low, minutes, tail @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(tail.len());
        let (packet, tail) = tail.split_at(len);
        rest = tail;
        now += SignedDuration::from_mins((*minutes).into());
        let meta = Meta { source: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68), port: 67, behind: ANYWHERE };
        // What others say on the segment is anybody's, too.
        server.overhear(packet, *meta.source.ip(), now);
        for command in server.handle(meta, packet, now) {
            match command {
                Command::Persist(Change::Put(lease)) => drop(stored.insert(lease.address, lease)),
                Command::Persist(Change::Remove(address)) => drop(stored.remove(&address)),
                Command::Send(reply) => check(&reply.bytes, &stored, now),
                // The rest: they send no address, but report, count, probe or forget.
                _ => {}
            }
        }
    }
}

fn check(bytes: &[u8], stored: &HashMap<Ipv4Addr, Lease>, now: Timestamp) {
    let reply = Message::decode(&mut Decoder::new(bytes)).expect("dhcproto reads what we send");
    let Some(DhcpOption::AddressLeaseTime(seconds)) = reply.opts().get(OptionCode::AddressLeaseTime) else {
        return;
    };
    assert!(matches!(reply.opts().msg_type(), Some(MessageType::Offer | MessageType::Ack)));
    let lease = stored.get(&reply.yiaddr()).expect("the address is in the store");
    assert_eq!(lease.mac.0, reply.chaddr(), "the address is another machine's");
    let end = now + SignedDuration::from_secs((*seconds).into());
    assert!(lease.durable_until >= end, "the store forgets at {}, the client at {end}", lease.durable_until);
}
