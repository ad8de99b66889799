//! Other traffic through the port while the programs are attached, and properties of every frame that leaves it.
//! Checked by hosts on the cable and by tshark, which use none of our code.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::ADDRESS;
use lab::clients::{Dhcp, Fetch};
use lab::frames::{BROADCAST, Cable, Mac, VLAN, own_mac, tagged, udp_frame};
use lab::guest::Guest;
use lab::guest::appliance::FILES;
use lab::net::{self, Host};
use lab::process::{PATIENCE, Process, output, wait_for};
use lab::world::World;

use crate::row::content;

/// Ping and TCP in both directions, with enough bytes for segmentation and reassembly by cards that offer them.
pub(crate) fn other_traffic(world: &World, guest: &Guest, host: &Host, address: &str) -> Result<()> {
    output(host.command("ping").args(["-c", "3", "-i", "0.2", "-s", "1400", "-W", "10", ADDRESS]))?;
    guest.text(&format!("ping -c 3 -s 1400 -W 10 {address}"))?;
    let got = Fetch::CurlHttp.fetch(world, host, ADDRESS, "file")?;
    ensure!(got == content(), "by HTTP: {} bytes, not the same", got.len());

    let listener = host.inside(|| Ok(TcpListener::bind("0.0.0.0:7777")?))?;
    std::thread::scope(|scope| {
        // One after the other, because BusyBox's nc can't end only one direction.
        let peer = scope.spawn(|| -> Result<Vec<u8>> {
            listener.accept()?.0.write_all(&content())?;
            let mut bytes = Vec::new();
            listener.accept()?.0.read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        let down = guest.run(&format!("nc {address} 7777 </dev/null"))?;
        ensure!(down.stdout == content(), "by TCP to the machine: {} bytes, not the same", down.stdout.len());
        guest.text(&format!("nc {address} 7777 <{FILES}/file"))?;
        let up = peer.join().expect("the peer does not panic")?;
        ensure!(up == content(), "by TCP from the machine: {} bytes, not the same", up.len());
        Ok(())
    })
}

/// A capture on a host. Its cable completes each frame's checksums before it delivers the frame, as a wire does.
pub(crate) struct Capture {
    file: PathBuf,
    tcpdump: Process,
}

impl Capture {
    pub(crate) fn start(world: &World, host: &Host) -> Result<Self> {
        // No offload between the port and the host: the captured frames are what a card would receive.
        output(Command::new("ethtool").args(["-K", &host.port(), "tx", "off"]))?;
        let file = world.path(format!("{}.pcap", host.port()));
        let log = file.with_extension("tcpdump");
        let mut tcpdump = host.command("tcpdump");
        tcpdump.args(["-i", "eth0", "-U", "--immediate-mode", "-B", "65536", "-w"]).arg(&file);
        let _ = fs::remove_file(&log);
        let tcpdump = Process::start(&mut tcpdump, &log)?;
        wait_for(PATIENCE, || Ok(fs::read_to_string(&log)?.contains("listening on").then_some(())))?;
        Ok(Self { file, tcpdump })
    }

    pub(crate) fn stop(mut self) -> Result<Captured> {
        self.tcpdump.terminate(Duration::from_secs(5))?;
        Ok(Captured(self.file))
    }
}

/// What a host received and sent.
pub(crate) struct Captured(PathBuf);

impl Captured {
    fn frames(&self, filter: &str) -> Result<Vec<String>> {
        let mut tshark = Command::new("tshark");
        tshark.args(["-n", "-r"]).arg(&self.0).args(["-Y", filter]);
        for protocol in ["ip", "udp", "tcp"] {
            tshark.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
        }
        Ok(output(&mut tshark)?.lines().map(str::to_owned).collect())
    }

    /// Every checksum of the appliance is right, and there are DHCP, TFTP and TCP among its frames.
    ///
    /// Linux replaces a sum of zero by 0xffff for TCP, too (`skb_checksum_help`). That is equal for a receiver (RFC
    /// 1624 section 3), but Wireshark remarks on it: one frame in 65,536.
    pub(crate) fn checksums_are_right(&self) -> Result<()> {
        let ours = format!("ip.src == {ADDRESS}");
        for kind in ["dhcp", "udp && !dhcp", "tcp"] {
            ensure!(
                !self.frames(&format!("{ours} && {kind}"))?.is_empty(),
                "no frames of {kind} were captured"
            );
        }
        let wrong = self.frames(&format!(
            "{ours} && (ip.checksum.status != \"Good\" || (udp && udp.checksum.status != \"Good\") || \
             (tcp && tcp.checksum.status != \"Good\" && tcp.checksum != 0xffff) || _ws.malformed)"
        ))?;
        ensure!(wrong.is_empty(), "{} frames with wrong checksums, first: {}", wrong.len(), wrong[0]);
        Ok(())
    }
}

const DISCOVER: u8 = 1;
const REQUEST: u8 = 3;

/// A known machine asks with a VLAN tag, which the card may remove before anything sees the frame: there must be no
/// answer without the tag. The same requests without a tag are answered.
pub(crate) fn tags_are_kept_apart(world: &World, host: &Host) -> Result<()> {
    // From now on, the kernel knows the machine.
    let address = Dhcp::Udhcpc.lease(world, host)?;
    let capture = Capture::start(world, host)?;
    let mac = host.inside(own_mac)?;
    for (kind, id) in [(DISCOVER, 0x7701_0001u32), (REQUEST, 0x7701_0003)] {
        host.inside(|| {
            let cable = Cable::open(VLAN)?;
            ensure!(cable.send(&tagged(&message(mac, address, kind, id), VLAN, 5))?, "the cable is full");
            // VLAN 0 is only a priority, not a separate network.
            ensure!(cable.send(&message(mac, address, kind, id + 1))?, "the cable is full");
            Ok(())
        })?;
    }
    // Frames keep their order: when this one is answered, those before it were processed.
    Dhcp::Udhcpc.lease(world, host)?;
    let captured = capture.stop()?;
    for (kind, id) in [(DISCOVER, 0x7701_0001u32), (REQUEST, 0x7701_0003)] {
        let answers =
            |id: u32, tag: &str| captured.frames(&format!("ip.src == {ADDRESS} && dhcp.id == {id} && {tag}"));
        let wrong = answers(id, "!vlan")?;
        ensure!(
            wrong.is_empty(),
            "a tagged message of type {kind} is answered without its tag: {}",
            wrong[0]
        );
        ensure!(
            !answers(id + 1, "!vlan")?.is_empty(),
            "a message of type {kind} without a tag is not answered"
        );
    }
    Ok(())
}

/// A DHCP message of a machine that remembers its address (RFC 2131 section 4.3.2, INIT-REBOOT), as a frame.
fn message(mac: Mac, address: Ipv4Addr, kind: u8, id: u32) -> Vec<u8> {
    let mut message = vec![0; 240];
    // BOOTREQUEST, Ethernet; to be answered by broadcast (RFC 2131 section 2).
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[4..8].copy_from_slice(&id.to_be_bytes());
    message[10] = 0x80;
    message[28..34].copy_from_slice(&mac);
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, kind, 50, 4]);
    message.extend(address.octets());
    message.push(255);
    message.resize(300, 0);
    let (from, to) = (SocketAddrV4::new([0; 4].into(), 68), SocketAddrV4::new([255; 4].into(), 67));
    udp_frame((mac, BROADCAST), from, to, &message)
}

/// Plugs another host in.
pub(crate) fn second(number: u8) -> Result<Host> {
    let host = Host::new("b", number)?;
    net::plug(&host.port(), lab::guest::LAN).context("plugging it in")?;
    Ok(host)
}
