//! A simulated network ROM: each step of its boot is a call, so that a test can leave one out or do it wrong.
//!
//! It sends the options of EDK2 (tests/corpus/uefi-virtio.pcap), and EDK2's TFTP requests, but without a window.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::frames::{BROADCAST, Cable, IPV4, own_mac, udp_frame, udp_from};
use crate::load::dhcp::Reply;
use crate::net::Host;

/// EDK2 collects offers for 3.8 s; a lab's wire is shorter.
const COLLECTED: Duration = Duration::from_millis(700);
const PATIENCE: Duration = Duration::from_secs(60);

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;

/// The ROM of a host's card.
pub struct Rom<'a> {
    host: &'a Host,
    /// Option 93.
    architecture: u16,
}

/// What a server offers.
#[derive(Clone, Debug)]
pub struct Offer {
    pub address: Ipv4Addr,
    pub server: Ipv4Addr,
}

/// How a transfer ends.
#[derive(Clone, Copy, Debug)]
pub enum Ends {
    /// With the last block.
    Whole,
    /// With an ERROR in place of this block's ACK.
    Aborted(u16, &'static str),
    /// After this block's ACK, when the cable breaks.
    Pulled(u16),
    /// When nothing arrived for a while.
    Starved,
}

impl<'a> Rom<'a> {
    pub fn new(host: &'a Host, architecture: u16) -> Self {
        Self { host, architecture }
    }

    /// Asks for an address with this `secs` field, and returns all offers.
    pub fn discover(&self, secs: u16) -> Result<Vec<Offer>> {
        self.host.inside(|| {
            let cable = Cable::open(IPV4)?;
            self.send(&cable, DISCOVER, secs, &[])?;
            let end = Instant::now() + COLLECTED;
            let mut offers = Vec::new();
            while let Some(reply) = receive(&cable, end)? {
                if reply.message == OFFER && reply.mac == own_mac()? {
                    offers.push(Offer { address: reply.address, server: reply.server });
                }
            }
            Ok(offers)
        })
    }

    /// The offer of one server among several, which may be slow: dnsmasq pings an address for 3 s first. This listens
    /// without a pause, because that server may see only the first DISCOVER: later ones are answered in the kernel and
    /// go no further.
    pub fn offer_of(&self, server: Ipv4Addr) -> Result<Offer> {
        self.host.inside(|| {
            let cable = Cable::open(IPV4)?;
            let end = Instant::now() + PATIENCE;
            while Instant::now() < end {
                self.send(&cable, DISCOVER, 0, &[])?;
                let again = Instant::now() + COLLECTED;
                while let Some(reply) = receive(&cable, again)? {
                    if reply.message == OFFER && reply.mac == own_mac()? && reply.server == server {
                        return Ok(Offer { address: reply.address, server });
                    }
                }
            }
            bail!("{server} makes no offer within {} s", PATIENCE.as_secs())
        })
    }

    /// Accepts an offer, and waits until its server confirms it.
    pub fn request(&self, offer: &Offer) -> Result<()> {
        self.host.inside(|| {
            let cable = Cable::open(IPV4)?;
            let own = [&[50, 4][..], &offer.address.octets(), &[54, 4], &offer.server.octets()].concat();
            self.send(&cable, REQUEST, 0, &own)?;
            let end = Instant::now() + PATIENCE;
            while let Some(reply) = receive(&cable, end)? {
                if reply.message == ACK && reply.mac == own_mac()? {
                    return Ok(());
                }
            }
            bail!("{offer:?} is not confirmed")
        })
    }

    /// Gets an address from `server`, and configures the host with it.
    pub fn bind(&self, server: &str) -> Result<Offer> {
        let offers = self.discover(0)?;
        let server: Ipv4Addr = server.parse()?;
        let offer = offers.into_iter().find(|o| o.server == server).context("no offer of the appliance's")?;
        self.request(&offer)?;
        // The host may have the address from an earlier boot.
        let _ = self.host.address(&format!("{}/24", offer.address));
        Ok(offer)
    }

    /// Fetches a file by TFTP, one block at a time. Returns the received bytes; an ERROR of the server is an error.
    pub fn read(&self, server: &str, path: &str, ends: Ends) -> Result<Vec<u8>> {
        let server: Ipv4Addr = server.parse()?;
        self.host.inside(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(if matches!(ends, Ends::Starved) {
                COLLECTED
            } else {
                PATIENCE
            }))?;
            let request = [&[0, 1][..], path.as_bytes(), b"\0octet\0blksize\x001468\0"].concat();
            socket.send_to(&request, (server, 69))?;
            let (mut bytes, mut buffer) = (Vec::new(), [0; 2048]);
            loop {
                let (len, from) = match socket.recv_from(&mut buffer) {
                    Err(_) if matches!(ends, Ends::Starved) => return Ok(bytes),
                    received => received.with_context(|| format!("{path} after {} bytes", bytes.len()))?,
                };
                ensure!(len >= 4, "a packet of {len} bytes");
                let block = match buffer[1] {
                    6 => 0,
                    3 => u16::from_be_bytes([buffer[2], buffer[3]]),
                    5 => bail!("{path}: {}", String::from_utf8_lossy(&buffer[4..len - 1])),
                    other => bail!("opcode {other}"),
                };
                if block > 0 {
                    bytes.extend(&buffer[4..len]);
                }
                let last = block > 0 && len - 4 < 1468;
                if let (Ends::Aborted(at, words), true) = (ends, block > 0)
                    && at == block
                {
                    socket.send_to(&[&[0, 5, 0, 3][..], words.as_bytes(), &[0]].concat(), from)?;
                    return Ok(bytes);
                }
                let [a, b] = block.to_be_bytes();
                socket.send_to(&[0, 4, a, b], from)?;
                if last || matches!(ends, Ends::Pulled(at) if block == at) {
                    return Ok(bytes);
                }
            }
        })
    }

    fn send(&self, cable: &Cable, message: u8, secs: u16, own: &[u8]) -> Result<()> {
        let mac = own_mac()?;
        let mut bytes = vec![0; 240];
        bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
        bytes[4..8].copy_from_slice(&[mac[5], message, 0x77, mac[5]]);
        bytes[8..10].copy_from_slice(&secs.to_be_bytes());
        bytes[10] = 0x80;
        bytes[28..34].copy_from_slice(&mac);
        bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
        bytes.extend([53, 1, message]);
        bytes.extend(own);
        let class = format!("PXEClient:Arch:{:05}:UNDI:003000", self.architecture);
        bytes.extend([60, class.len() as u8]);
        bytes.extend(class.as_bytes());
        let [a, b] = self.architecture.to_be_bytes();
        bytes.extend([57, 2, 5, 0xc0, 93, 2, a, b, 94, 3, 1, 3, 0, 55, 6, 1, 3, 51, 54, 66, 67, 255]);
        let ends = (SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68), SocketAddrV4::new(Ipv4Addr::BROADCAST, 67));
        let sent = cable.send(&udp_frame((mac, BROADCAST), ends.0, ends.1, &bytes))?;
        ensure!(sent, "the cable is full");
        Ok(())
    }
}

/// The next answer of a DHCP server's, if one comes in time.
fn receive(cable: &Cable, end: Instant) -> Result<Option<Reply>> {
    let mut buffer = [0; 2048];
    while Instant::now() < end {
        match cable.receive(&mut buffer)? {
            Some(len) => {
                if let Some(reply) = udp_from(&buffer[..len], 67).and_then(Reply::parse) {
                    return Ok(Some(reply));
                }
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    Ok(None)
}
