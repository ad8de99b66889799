//! Files of gigabytes by TFTP: installers and images of disks.

use std::fs::{self, File};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lab::appliance::{ADDRESS, Appliance};
use lab::process::{PATIENCE, wait_for};
use lab::world;

/// With a last block that is short.
const LEN: u64 = (1 << 30) + 77;
const BLKSIZE: u64 = 1468;
const WINDOW: u64 = 16;
/// Every so often the file says where it is. The rest is a hole.
const MARKS_EVERY: u64 = 1 << 20;

/// The first answer comes before the kernel has any of the file. The daemon sends it, until the kernel has all of it,
/// and then the kernel does.
#[test]
fn a_large_file_is_answered_at_once_and_goes_on_in_the_kernel() {
    world::test(&["ip"], |world| {
        fs::create_dir_all(world.path("files"))?;
        let file = File::create(world.path("files/disk"))?;
        file.set_len(LEN)?;
        for at in (0..LEN - 8).step_by(MARKS_EVERY as usize) {
            file.write_all_at(&at.to_be_bytes(), at)?;
        }
        let (appliance, hosts) = Appliance::with_hosts(world, &["a"])?;
        hosts[0].address("10.77.0.50/24")?;
        let count = |name: &str| -> Result<u64> {
            let status = appliance.json(&["status"])?;
            status["counters"][name].as_u64().with_context(|| format!("no {name}: {status}"))
        };
        let socket = hosts[0].inside(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        let mut client = Client::ask(socket)?;
        ensure!(count("kernel.published-bytes")? == 0, "it was answered after it was published");

        for _ in 0..20 {
            client.window()?;
        }
        let by_daemon = count("tftp.bytes-by-daemon")?;
        ensure!(by_daemon >= 20 * WINDOW * BLKSIZE, "{by_daemon} bytes came from the daemon");
        // While somebody goes on with it, it is published.
        wait_for(PATIENCE, || {
            client.window()?;
            Ok((count("kernel.published-bytes")? == LEN).then_some(()))
        })?;
        while !client.done() {
            client.window()?;
        }
        let replies = count("kernel.tc.replies")?;
        ensure!(replies > 0 && count("tftp.fast-path")? == 1, "the kernel sent none of it");
        ensure!(count("tftp.bytes-by-daemon")? < LEN, "the daemon sent all of it");
        wait_for(PATIENCE, || Ok((count("tftp.finished")? == 1).then_some(())))?;
        Ok(())
    });
}

struct Client {
    socket: UdpSocket,
    server: SocketAddr,
    /// Blocks that came.
    blocks: u64,
}

impl Client {
    fn ask(socket: UdpSocket) -> Result<Self> {
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let request =
            format!("\0\x01disk\0octet\0tsize\x000\0blksize\x00{BLKSIZE}\0windowsize\x00{WINDOW}\0");
        let mut answer = [0; 200];
        let (len, server) = wait_for(PATIENCE, || {
            socket.send_to(request.as_bytes(), (ADDRESS, 69))?;
            Ok(socket.recv_from(&mut answer).ok())
        })?;
        let answer = String::from_utf8_lossy(&answer[..len]).into_owned();
        ensure!(answer.contains(&LEN.to_string()), "no size in {answer:?}");
        Ok(Self { socket, server, blocks: 0 })
    }

    fn done(&self) -> bool {
        self.blocks > LEN / BLKSIZE
    }

    /// Acknowledges what came, and takes what follows, all of it right.
    fn window(&mut self) -> Result<()> {
        let last = (self.blocks + WINDOW).min(LEN / BLKSIZE + 1);
        let mut packet = [0; 2_000];
        let mut silent = 0;
        self.acknowledge()?;
        while self.blocks < last {
            let Ok((len, from)) = self.socket.recv_from(&mut packet) else {
                silent += 1;
                ensure!(silent < 20, "silence after block {}", self.blocks);
                self.acknowledge()?;
                continue;
            };
            let [0, 3, a, b, ref data @ ..] = packet[..len] else { bail!("no DATA: {:?}", &packet[..len]) };
            ensure!(from == self.server, "from {from}");
            if u16::from_be_bytes([a, b]) != (self.blocks + 1) as u16 {
                continue;
            }
            ensure!(data == expected(self.blocks), "block {} is wrong", self.blocks + 1);
            self.blocks += 1;
        }
        if self.done() {
            self.acknowledge()?;
        }
        Ok(())
    }

    fn acknowledge(&self) -> Result<()> {
        let [a, b] = (self.blocks as u16).to_be_bytes();
        self.socket.send_to(&[0, 4, a, b], self.server)?;
        Ok(())
    }
}

/// The bytes after so many blocks.
fn expected(blocks: u64) -> Vec<u8> {
    let begin = blocks * BLKSIZE;
    let mut bytes = vec![0; (LEN - begin).min(BLKSIZE) as usize];
    // A mark may begin in the block before.
    let mark = begin.saturating_sub(7).next_multiple_of(MARKS_EVERY);
    for (at, byte) in (mark..).zip(mark.to_be_bytes()) {
        if let Some(place) = at.checked_sub(begin).and_then(|at| bytes.get_mut(at as usize)) {
            *place = byte;
        }
    }
    bytes
}
