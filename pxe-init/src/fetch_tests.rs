use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::thread::JoinHandle;

use super::*;
use crate::delta::tests::file;

/// What a connection does with a request that starts at this byte.
type Answer = Box<dyn Fn(u64, &mut TcpStream) + Send>;

/// A server that gives each connection the next answer, and returns the first byte of each request.
fn server(answers: Vec<Answer>) -> (SocketAddrV4, JoinHandle<Vec<u64>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!("bound to IPv4") };
    let served = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            while !request.ends_with("\r\n\r\n") {
                reader.read_line(&mut request).unwrap();
            }
            assert!(request.starts_with("GET /boot/x HTTP/1.1\r\n"), "{request}");
            let from = request.split("Range: bytes=").nth(1).unwrap().split('-').next().unwrap();
            asked.push(from.parse().unwrap());
            answer(*asked.last().unwrap(), &mut stream);
        }
        asked
    });
    (address, served)
}

fn contents() -> Vec<u8> {
    (0..1_000_000u32).flat_map(u32::to_le_bytes).collect()
}

fn remote(server: SocketAddrV4) -> Remote {
    let contents = contents();
    let sha256 = sha256(&contents[..]).unwrap();
    Remote { server: Appliance::plain(server), path: "/boot/x".into(), size: contents.len() as u64, sha256 }
}

/// Sends the requested bytes, and hangs up after this many.
fn up_to(bytes: usize) -> Answer {
    Box::new(move |from, stream| {
        let contents = contents();
        let (size, last) = (contents.len(), contents.len() - 1);
        let rest = &contents[from as usize..];
        write!(stream, "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {from}-{last}/{size}\r\n\r\n")
            .unwrap();
        let _ = stream.write_all(&rest[..bytes.min(rest.len())]);
    })
}

fn says(answer: &'static str) -> Answer {
    Box::new(move |_, stream| drop(stream.write_all(answer.as_bytes())))
}

#[test]
fn a_transfer_goes_on_where_it_was_cut() {
    let (address, served) = server(vec![
        up_to(300_000),
        says("HTTP/1.1 503 Service Unavailable\r\n\r\n"),
        says("HTTP/1.1 20"),
        up_to(0),
        up_to(1_500_001),
        up_to(usize::MAX),
    ]);
    let mut got = Vec::new();
    let fetched = fetch(&remote(address), &[], &mut got).unwrap();
    assert!(got == contents());
    assert_eq!(fetched.resumed, 5);
    let asked = served.join().unwrap();
    assert_eq!(asked, [0, 300_000, 300_000, 300_000, 300_000, 1_800_001]);
}

#[test]
fn a_flipped_bit_is_refused() {
    let flipped: Answer = Box::new(|_, stream| {
        let mut contents = contents();
        let (size, last) = (contents.len(), contents.len() - 1);
        contents[1_234_567] ^= 1;
        write!(stream, "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-{last}/{size}\r\n\r\n")
            .unwrap();
        stream.write_all(&contents).unwrap();
    });
    let (address, served) = server(vec![flipped]);
    let error = fetch(&remote(address), &[], &mut io::sink()).unwrap_err();
    assert!(matches!(error, FetchError::Digest { .. }), "{error}");
    assert!(error.to_string().starts_with("the image is damaged: SHA-256 "), "{error}");
    served.join().unwrap();
}

#[test]
fn what_can_not_become_better_is_not_tried_again() {
    let (address, served) = server(vec![says("HTTP/1.1 404 Not Found\r\n\r\n")]);
    let error = fetch(&remote(address), &[], &mut io::sink()).unwrap_err();
    assert!(matches!(error, FetchError::Refused { status: 404, .. }), "{error}");
    served.join().unwrap();

    let (address, served) =
        server(vec![says("HTTP/1.1 206 x\r\nContent-Range: bytes 0-9/10\r\n\r\n0123456789")]);
    let error = fetch(&remote(address), &[], &mut io::sink()).unwrap_err();
    assert!(matches!(error, FetchError::OtherSize { found: 10, expected: 4_000_000, .. }), "{error}");
    served.join().unwrap();

    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (address, served) = server(vec![up_to(1000)]);
    let error = fetch(&remote(address), &[], &mut Full).unwrap_err();
    assert!(matches!(error, FetchError::Keep(_)), "{error}");
    served.join().unwrap();
}

/// An image of 40 blocks of 50 kB, and a newer one with two others in it.
pub(crate) fn two_images() -> (Vec<u8>, Vec<u8>) {
    let mut blocks: Vec<Vec<u8>> = (0..40).map(|n| vec![n; 50_000]).collect();
    let old = file(&blocks.iter().map(Vec::as_slice).collect::<Vec<_>>());
    blocks[20] = vec![200; 60_000];
    blocks.insert(7, vec![201; 70_000]);
    let new = file(&blocks.iter().map(Vec::as_slice).collect::<Vec<_>>());
    (old, new)
}

fn on_disk(contents: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(contents).unwrap();
    file
}

/// One connection for all of it, from the first block's list to the last table.
#[test]
fn what_an_older_image_has_is_not_fetched() {
    let (old, new) = two_images();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let SocketAddr::V4(server) = listener.local_addr().unwrap() else { unreachable!("bound to IPv4") };
    let (len, sha256) = (new.len(), sha256(&new[..]).unwrap());
    let expected = new.clone();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut ranges = Vec::new();
        loop {
            let mut request = String::new();
            while !request.ends_with("\r\n\r\n") {
                if reader.read_line(&mut request).unwrap() == 0 {
                    return ranges;
                }
            }
            let range = request.split("Range: bytes=").nth(1).unwrap().lines().next().unwrap();
            let (first, last) = range.split_once('-').unwrap();
            let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
            write!(stream, "HTTP/1.1 206 x\r\nContent-Range: bytes {first}-{last}/{}\r\n\r\n", new.len())
                .unwrap();
            stream.write_all(&new[first..=last]).unwrap();
            ranges.push(first..last + 1);
        }
    });
    let remote =
        Remote { server: Appliance::plain(server), path: "/boot/x".into(), size: len as u64, sha256 };
    let mut got = Vec::new();
    let unrelated = on_disk(b"something else");
    let fetched = fetch(&remote, &[unrelated, on_disk(&old)], &mut got).unwrap();
    assert!(got == expected);
    assert_eq!(fetched.resumed, 0);
    let ranges = served.join().unwrap();
    assert_eq!(fetched.bytes, ranges.iter().map(|range| range.len() as u64).sum::<u64>());
    let (first, second) = (7 + 7 * 50_000, 7 + 20 * 50_000 + 70_000);
    let (footer, list) = (len - 16, len - 16 - 41 * 20);
    let blocks = [first..first + 70_000, second..second + 60_000];
    let [a, b] = blocks;
    assert_eq!(ranges, [footer..len, list..footer, 0..7, a, b, list - 5..len]);
}

/// BusyBox's httpd, which hangs up after each answer.
pub(crate) struct Httpd {
    pub(crate) address: SocketAddrV4,
    process: Child,
}

impl Httpd {
    /// Serves the files in `root`. Until it listens, the link seems to be lost.
    pub(crate) fn start(root: &Path) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let SocketAddr::V4(address) = free else { unreachable!("bound to IPv4") };
        let mut httpd = Command::new("busybox");
        httpd.args(["httpd", "-f", "-p", &address.to_string(), "-h"]).arg(root);
        Self { address, process: httpd.spawn().expect("busybox is installed (apt: busybox-static)") }
    }
}

impl Drop for Httpd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn another_server_sends_the_same() {
    let (old, new) = two_images();
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("image"), &new).unwrap();
    let httpd = Httpd::start(root.path());
    let (size, sha256) = (new.len() as u64, sha256(&new[..]).unwrap());
    let fetch = |older: &[u8]| {
        let server = Appliance::plain(httpd.address);
        let remote = Remote { server, path: "/image".into(), size, sha256: sha256.clone() };
        let mut got = Vec::new();
        fetch(&remote, &[on_disk(older)], &mut got).map(|fetched| (fetched.bytes, got))
    };
    let (bytes, got) = fetch(&old).unwrap();
    assert!(got == new && bytes < 135_000, "{bytes}");
    let (bytes, got) = fetch(&old[..old.len() - 1]).unwrap();
    assert!(got == new && bytes > size, "{bytes}");
    let mut damaged = old;
    damaged[30 * 50_000] ^= 1;
    assert!(matches!(fetch(&damaged), Err(FetchError::Digest { .. })));
}
