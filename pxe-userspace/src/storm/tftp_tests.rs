//! Each firmware's way through a transfer, packet by packet.

use pxe_common::Mac;
use pxe_common::wire::HEADERS_LEN;

use super::super::firmware::{Firmware, grub};
use super::super::link::MS;
use super::*;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const TID: u16 = 4000;

struct Client {
    link: Link,
    out: Frames,
    download: Download,
    now: u64,
}

impl Client {
    fn new(habits: &'static Habits) -> Self {
        let mut link = Link::new(Mac([2, 0, 0, 0, 0, 1]));
        link.address = Ipv4Addr::new(10, 77, 0, 100);
        link.next_hop = Some(Mac([2, 0, 0, 0, 0, 2]));
        let mut out = Frames::default();
        let download = Download::start(habits, "f", (SERVER, 25_300), Sink::keep(), &link, 0, &mut out);
        Self { link, out, download, now: 0 }
    }

    /// The payloads that were sent since the last call.
    fn sent(&mut self) -> Vec<Vec<u8>> {
        let sent = self.out.iter().map(|f| f[HEADERS_LEN..].to_vec()).collect();
        self.out.clear();
        sent
    }

    /// Hands the client a packet; returns its progress and what it sends.
    fn take(&mut self, payload: &[u8]) -> (Progress, Vec<Vec<u8>>) {
        let ports = (TID, self.download.port);
        let progress = self.download.receive(ports, payload, &mut self.link, self.now, &mut self.out);
        (progress, self.sent())
    }

    fn data(&mut self, block: u16, len: usize) -> (Progress, Vec<Vec<u8>>) {
        let [a, b] = block.to_be_bytes();
        self.take(&[&[0, 3, a, b][..], &vec![7; len]].concat())
    }

    /// Without any answer: when the client sends something, in milliseconds, and how it ends.
    fn silence(&mut self) -> (Vec<u64>, Progress) {
        let mut times = Vec::new();
        loop {
            self.now = self.download.due();
            match self.download.wake(&mut self.link, self.now, &mut self.out) {
                Progress::Going => times.extend(self.sent().iter().map(|_| self.now / MS)),
                end => return (times, end),
            }
        }
    }
}

fn ack(block: u8) -> Vec<Vec<u8>> {
    vec![vec![0, 4, 0, block]]
}

#[test]
fn edk2_probes_then_acknowledges_windows_and_what_is_out_of_order() {
    let mut client = Client::new(&Firmware::Uefi.rom().tftp);
    assert_eq!(client.sent(), [b"\0\x01f\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0".to_vec()]);
    let (_, sent) = client.take(b"\0\x06tsize\x009000\0blksize\x001468\0windowsize\x004\0");
    assert_eq!(sent[0], b"\0\x05\0\x08User aborted the transfer\0");
    assert_eq!(sent[1], b"\0\x01f\0octet\0blksize\x001468\0windowsize\x004\0");
    assert_eq!(client.take(b"\0\x06blksize\x001468\0windowsize\x004\0").1, ack(0));
    for block in 1..=3 {
        assert!(client.data(block, 1468).1.is_empty());
    }
    assert_eq!(client.data(4, 1468).1, ack(4));
    assert!(client.data(5, 1468).1.is_empty());
    assert_eq!(client.data(7, 1468).1, ack(5), "block 6 is missing");
    assert!(client.data(6, 1468).1.is_empty());
    let (end, sent) = client.data(7, 100);
    assert!(matches!(end, Progress::Done(_)), "{end:?}");
    assert_eq!(sent, ack(7));
    assert_eq!(client.link.tally.bytes, 6 * 1468 + 100);
}

#[test]
fn grub_acknowledges_old_blocks_by_their_number_and_waits() {
    let mut client = Client::new(&grub::TFTP);
    client.sent();
    assert_eq!(client.take(b"\0\x06blksize\x001024\0tsize\x009000\0").1, ack(0));
    for block in 1..=3 {
        assert_eq!(client.data(block, 1024).1, ack(block as u8));
    }
    assert_eq!(client.data(2, 1024).1, ack(2));
    assert!(client.data(5, 1024).1.is_empty(), "later ones are ignored");
    assert_eq!(client.link.tally.repeated, 1);
    let (sent, end) = client.silence();
    assert!(sent.is_empty() && matches!(end, Progress::Stalled(3)), "{sent:?} {end:?}");
    assert_eq!((client.now / MS, client.link.tally.retries), (31_600, 0));
}

#[test]
fn everybody_asks_again_as_long_as_it_does() {
    let cases: [(&Habits, &[u64], u64); 3] = [
        (&Firmware::Uefi.rom().tftp, &[4000, 8000, 12_000, 16_000, 20_000], 24_000),
        (&Firmware::Ipxe.rom().tftp, &[250, 750, 1750, 3750, 7750], 15_750),
        (&grub::TFTP, &[400, 820, 1260], 31_600),
    ];
    for (habits, first, end) in cases {
        // A `'static` of its own: these are constants of the firmwares.
        let habits: &'static Habits = habits;
        let mut client = Client::new(habits);
        let request = client.sent();
        let (times, how) = client.silence();
        assert_eq!((&times[..first.len()], client.now / MS), (first, end), "{request:?}");
        assert!(matches!(how, Progress::NoAnswer), "{how:?}");
        assert_eq!(client.link.tally.retries, times.len() as u64);
        assert_eq!(client.link.tally.unexplained, client.link.tally.retries, "no loss was simulated");
    }
}

#[test]
fn a_stranger_and_a_wrong_byte() {
    let mut contents = Contents::default();
    let mut first = contents.sink("f");
    first.take(&[7; 600]).unwrap();
    contents.finish("f", first).unwrap();
    let mut client = Client::new(&Firmware::Ipxe.rom().tftp);
    client.download.sink = contents.sink("f");
    client.sent();
    client.take(b"\0\x06blksize\x001432\0tsize\x00600\0");
    let from_elsewhere = (TID + 1, client.download.port);
    let progress =
        client.download.receive(from_elsewhere, b"\0\x05\0\0no\0", &mut client.link, 0, &mut client.out);
    assert!(matches!(progress, Progress::Going), "another port's ERROR is not ours");
    let (progress, _) = client.take(&[&[0, 3, 0, 1][..], &[7; 599], &[8]].concat());
    assert!(matches!(progress, Progress::Wrong(1)), "{progress:?}");
}
