//! A TFTP client that reads a file as its test directs, in lock-step or in windows (RFC 1350, 2347, 2348, 7440).

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::net::Host;

/// The last ACK is retransmitted after this long, as firmware does.
const RETRY: Duration = Duration::from_secs(2);
const TRIES: u32 = 8;

/// A transfer.
pub struct Reader {
    socket: UdpSocket,
    /// The bytes received, in order.
    pub bytes: Vec<u8>,
    blksize: usize,
    window: usize,
    /// Blocks received in order. Numbers on the wire wrap.
    pub blocks: usize,
    /// How often nothing arrived and the last ACK was retransmitted.
    pub retries: u32,
    finished: bool,
}

impl Reader {
    /// Requests a file, and its first window. A window of 1 is lock-step, and needs no option.
    pub fn begin(host: &Host, server: &str, path: &str, blksize: usize, window: usize) -> Result<Self> {
        let socket = host.inside(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        socket.set_read_timeout(Some(RETRY))?;
        let mut request = format!("\0\x01{path}\0octet\0blksize\0{blksize}\0");
        if window > 1 {
            request += &format!("windowsize\0{window}\0");
        }
        let mut buf = [0; 2048];
        let mut answer = None;
        for _ in 0..TRIES {
            socket.send_to(request.as_bytes(), (server, 69))?;
            if let Ok(got) = socket.recv_from(&mut buf) {
                answer = Some(got);
                break;
            }
        }
        let (len, server) = answer.with_context(|| format!("no answer to a request for {path}"))?;
        ensure!(buf[..2] == [0, 6], "no OACK: {:?}", &buf[..len]);
        socket.connect(server)?;
        let reader =
            Self { socket, bytes: Vec::new(), blksize, window, blocks: 0, retries: 0, finished: false };
        reader.acknowledge()?;
        Ok(reader)
    }

    /// Receives blocks up to this one or the last, and requests the next ones.
    pub fn until(&mut self, block: usize) -> Result<()> {
        while self.blocks < block && !self.finished {
            self.window()?;
            self.acknowledge()?;
        }
        Ok(())
    }

    /// Receives all that is left.
    pub fn rest(&mut self) -> Result<()> {
        self.until(usize::MAX)
    }

    fn window(&mut self) -> Result<()> {
        let end = self.blocks + self.window;
        let mut buf = [0; 2048];
        let mut tries = 0;
        while self.blocks < end && !self.finished {
            let len = match self.socket.recv(&mut buf) {
                Ok(len) => len,
                Err(e) if tries < TRIES => {
                    ensure!(e.kind() == std::io::ErrorKind::WouldBlock, "after block {}: {e}", self.blocks);
                    tries += 1;
                    self.retries += 1;
                    self.acknowledge()?;
                    continue;
                }
                Err(e) => bail!("after block {}: {e}, {TRIES} times", self.blocks),
            };
            ensure!(len >= 4 && buf[..2] == [0, 3], "no DATA: {:?}", &buf[..len.min(80)]);
            // A retransmission of a received block is ignored.
            if u16::from_be_bytes([buf[2], buf[3]]) == (self.blocks + 1) as u16 {
                self.bytes.extend_from_slice(&buf[4..len]);
                self.blocks += 1;
                self.finished = len < 4 + self.blksize;
            }
        }
        Ok(())
    }

    fn acknowledge(&self) -> Result<()> {
        self.socket.send(&[[0, 4], (self.blocks as u16).to_be_bytes()].concat())?;
        Ok(())
    }
}
