//! A program's decision about a frame, with every reason for passing it on.

use crate::dhcp::Uncovered;
use crate::wire::{EtherType, Malformed, port};

/// A decision. Each is counted, by hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The frame contains the answer: send it back. The number is the bytes of a blob that were sent, including those
    /// of a window's earlier blocks.
    Reply(u32),
    /// The frame contains a DHCPOFFER: send it.
    Offer,
    /// The frame contains a DHCPACK: send it.
    Ack,
    /// The frame was processed, and has no answer.
    Drop(Drop),
    /// The frame continues to the next program and the network stack, unchanged.
    Pass(Pass),
}

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// In the driver, before the kernel makes an skb.
    Xdp,
    /// At tc ingress, before the bridge.
    Tc,
}

impl Hook {
    /// Every hook, in the order in which a frame passes them.
    pub const ALL: [Self; 2] = [Self::Xdp, Self::Tc];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
        }
    }
}

/// Defines an enum of reasons with their names, so that none can be missing in a status.
macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$why:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum $name { $($(#[$why])* $variant,)+ }

        impl $name {
            /// The names, in the order of the variants.
            pub const NAMES: &'static [&'static str] = &[$($text,)+];
        }
    };
}

reasons! {
    /// Why a frame has no answer.
    Drop {
        /// A duplicate ACK, whose answer is still in flight.
        TftpDuplicate = "tftp-duplicate",
        /// An ACK of no block in flight.
        TftpStale = "tftp-stale",
        /// The last ACK: an event notifies the daemon.
        TftpFinished = "tftp-finished",
        /// The client ended its transfer: an event notifies the daemon.
        TftpAborted = "tftp-aborted",
        /// The frame could not be written after it had been resized; the client's or the daemon's timer repairs that.
        Unwritable = "unwritable",
    }
}

reasons! {
    /// Why a frame is passed on.
    Pass {
        /// Shorter than the headers.
        Runt = "runt",
        /// ARP.
        Arp = "arp",
        /// IPv6.
        Ipv6 = "ipv6",
        /// A VLAN tag.
        Vlan = "vlan",
        /// Some other EtherType.
        OtherEthertype = "other-ethertype",
        /// IPv4 with options, or not IPv4 in spite of the EtherType.
        IpHeader = "ip-header",
        /// The checksum of the IPv4 header is wrong.
        IpChecksum = "ip-checksum",
        /// A fragment.
        Fragment = "fragment",
        /// IPv4, not UDP.
        OtherIpv4 = "other-ipv4",
        /// Length fields that contradict each other.
        Length = "length",
        /// To a PXE boot server, port 4011.
        Dhcp = "dhcp",
        /// To a DHCP server, but not a request that the kernel can read.
        DhcpMessage = "dhcp-message",
        /// A DHCP request from a machine without a lease in the kernel.
        DhcpUnknown = "dhcp-unknown",
        /// RELEASE or DECLINE from a machine whose lease was in the kernel until now.
        DhcpEnds = "dhcp-ends",
        /// The stored lease is shorter than the reply would promise.
        DhcpTooOld = "dhcp-too-old",
        /// A DHCP request to another server, or by a path that needs the daemon.
        DhcpElsewhere = "dhcp-elsewhere",
        /// A DHCP request with an address or server other than the lease's.
        DhcpDiffers = "dhcp-differs",
        /// The reply is longer than the client accepts: the daemon leaves options out.
        DhcpTooLong = "dhcp-too-long",
        /// A TFTP request.
        TftpRequest = "tftp-request",
        /// UDP that belongs to no transfer in the kernel.
        OtherUdp = "other-udp",
        /// A packet of a transfer in the kernel, but not a plain ACK.
        TftpNotAck = "tftp-not-ack",
        /// The end of a transfer for which the ring of events had no room: the packet itself notifies the daemon.
        TftpUntold = "tftp-untold",
        /// A packet of a transfer in the kernel, in a frame from another station than the request's, or to another than
        /// the appliance.
        TftpStation = "tftp-station",
        /// The grant has ended.
        TftpExpired = "tftp-expired",
        /// More than one block must be sent: XDP can't send a second frame.
        TftpWindow = "tftp-window",
        /// The session's blob or its sums no longer exist.
        TftpNoBlob = "tftp-no-blob",
        /// The buffer can't grow to the answer's size: the next hook answers.
        NoRoom = "no-room",
        /// The kernel rejected the program that would answer it.
        NoProgram = "no-program",
    }
}

/// Counters before the reasons: answers, and what became of them.
const ANSWERS: [&str; 5] = ["replies", "reply-bytes", "dhcp-offers", "dhcp-acks", "events-lost"];

/// Counters of one hook: answers, then every [`Drop`] and every [`Pass`].
pub const COUNTERS_PER_HOOK: usize = ANSWERS.len() + Drop::NAMES.len() + Pass::NAMES.len();

/// Index of the counter of events that the ring had no room for.
pub const LOST_COUNTER: u32 = 4;

/// Index of the sum of [`Verdict::Reply`]'s bytes.
pub const BYTES_COUNTER: u32 = 1;

impl Verdict {
    /// Its index among the counters of a hook.
    #[inline(always)]
    pub fn counter(self) -> u32 {
        match self {
            Self::Reply(_) => 0,
            Self::Offer => 2,
            Self::Ack => 3,
            Self::Drop(reason) => ANSWERS.len() as u32 + reason as u32,
            Self::Pass(reason) => (ANSWERS.len() + Drop::NAMES.len()) as u32 + reason as u32,
        }
    }
}

/// The name of counter `index` of a hook.
pub fn counter_name(index: usize) -> Option<&'static str> {
    ANSWERS.iter().chain(Drop::NAMES).chain(Pass::NAMES).nth(index).copied()
}

impl From<Uncovered> for Pass {
    #[inline(always)]
    fn from(why: Uncovered) -> Self {
        match why {
            Uncovered::Ends => Self::DhcpEnds,
            Uncovered::TooOld => Self::DhcpTooOld,
            Uncovered::Elsewhere => Self::DhcpElsewhere,
            Uncovered::Differs => Self::DhcpDiffers,
        }
    }
}

impl Pass {
    /// The reason to pass a frame that is not IPv4.
    #[inline(always)]
    pub fn of_ethertype(ethertype: u16) -> Self {
        match ethertype {
            EtherType::ARP => Self::Arp,
            EtherType::IPV6 => Self::Ipv6,
            EtherType::VLAN | EtherType::QINQ => Self::Vlan,
            EtherType::IPV4 => Self::Runt,
            _ => Self::OtherEthertype,
        }
    }

    /// The reason to pass headers that are not a plain UDP datagram's.
    #[inline(always)]
    pub fn of_malformed(why: Malformed, ethertype: u16) -> Self {
        match why {
            Malformed::NotIpv4 => Self::of_ethertype(ethertype),
            Malformed::IpHeader => Self::IpHeader,
            Malformed::Checksum => Self::IpChecksum,
            Malformed::Fragment => Self::Fragment,
            Malformed::NotUdp => Self::OtherIpv4,
            Malformed::Length => Self::Length,
        }
    }

    /// The reason to pass a datagram to this port that belongs to no session.
    #[inline(always)]
    pub fn of_port(destination: u16) -> Self {
        match destination {
            port::DHCP_SERVER | port::PXE => Self::Dhcp,
            port::TFTP => Self::TftpRequest,
            _ => Self::OtherUdp,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn every_counter_has_one_name() {
        let names: std::vec::Vec<_> = (0..COUNTERS_PER_HOOK).map(|i| counter_name(i).unwrap()).collect();
        let unique: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(unique.len(), COUNTERS_PER_HOOK);
        assert_eq!(counter_name(COUNTERS_PER_HOOK), None);
        assert_eq!(names[Verdict::Ack.counter() as usize], "dhcp-acks");
        assert_eq!(names[LOST_COUNTER as usize], "events-lost");
        assert_eq!(names[Verdict::Drop(Drop::Unwritable).counter() as usize], "unwritable");
        assert_eq!(names[Verdict::Pass(Pass::Runt).counter() as usize], "runt");
        assert_eq!(names[Verdict::Pass(Pass::NoRoom).counter() as usize], "no-room");
    }
}
