//! Tests against a minimal appliance: correct HTTP, and a round that does what a test wants.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use pxe_contract::symbols::{Content, Header};
use raptorq::{ObjectTransmissionInformation, SourceBlockEncoder};

use super::assembly::tests::Memory;
use super::*;

const SYMBOL: u16 = 512;
const BLOCK: u16 = 100;

fn image() -> Vec<u8> {
    (0..300_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

/// What happens to a round's packets.
#[derive(Clone, Copy, PartialEq)]
enum Round {
    None,
    Silent,
    /// One in this many is lost, the same in every pass.
    Lossy(u32),
    /// Bytes of another image, with the right name on it.
    Poisoned,
    /// The first symbols only, again and again.
    Stuck,
}

struct Fake {
    server: SocketAddrV4,
    remote: Remote,
    /// Image bytes sent by HTTP.
    by_http: Arc<AtomicUsize>,
    /// What reports said.
    reports: Arc<Mutex<Vec<serde_json::Value>>>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Fake {
    /// Offers a round after this many requests.
    fn start(round: Round, after: usize) -> Self {
        let image = image();
        let sha256 = fetch::sha256(&image[..]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(server) = listener.local_addr().unwrap() else { unreachable!("bound to IPv4") };
        // A port that nobody else uses, because tests run in parallel.
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let group = SocketAddrV4::new(Ipv4Addr::new(239, 255, 77, 9), port);
        let remote = Remote {
            server: Appliance::plain(server),
            path: "/image".into(),
            size: image.len() as u64,
            sha256,
        };
        let (by_http, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let reports = Arc::new(Mutex::new(Vec::new()));
        let offer = serde_json::json!({
            "group": group, "symbol-size": SYMBOL, "block-symbols": BLOCK, "report-every": 100, "http-rate": 1000,
        });
        let mut threads = Vec::new();
        {
            let (by_http, reports, over) = (by_http.clone(), reports.clone(), over.clone());
            let asked = Arc::new(AtomicUsize::new(0));
            threads.push(std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let (by_http, reports, asked) = (by_http.clone(), reports.clone(), asked.clone());
                    let offer = offer.clone();
                    std::thread::spawn(move || {
                        let mut stream = stream.unwrap();
                        let (head, body) = request(&mut stream);
                        if head.starts_with("POST /carousel/") {
                            reports.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
                            let answer = match round {
                                Round::None => "HTTP/1.1 404 Not Found\r\n\r\n".to_owned(),
                                _ if asked.fetch_add(1, Ordering::Relaxed) < after => {
                                    "HTTP/1.1 204 No Content\r\n\r\n".to_owned()
                                }
                                _ => format!("HTTP/1.1 200 OK\r\n\r\n{offer}"),
                            };
                            let _ = stream.write_all(answer.as_bytes());
                        } else {
                            // In pieces with pauses, if a round is to begin in between.
                            let pause = if after > 0 { ASK_EVERY * 11 / 10 } else { Duration::ZERO };
                            serve(&head, &mut stream, pause, &by_http);
                        }
                    });
                }
            }));
        }
        if !matches!(round, Round::None | Round::Silent) {
            let over = over.clone();
            let sha256 = remote.sha256.clone();
            threads.push(std::thread::spawn(move || sender(round, group, &sha256, &over)));
        }
        Self { server, remote, by_http, reports, over, threads }
    }

    fn fetch(&self) -> (Came, Vec<u8>) {
        let mut store = Memory::new(self.remote.size as usize);
        let came = fetch(&self.remote, &mut store).unwrap();
        (came, store.content().expect("all of it was written"))
    }
}

/// The head of a request, and its body.
fn request(stream: &mut std::net::TcpStream) -> (String, Vec<u8>) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap_or(0) > 0 {}
    let mut body = vec![0; field(&head, "Content-Length:").parse().unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    (head, body)
}

fn field<'a>(head: &'a str, name: &str) -> &'a str {
    head.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim()
}

/// Sends what a request wants of the image.
fn serve(head: &str, stream: &mut std::net::TcpStream, pause: Duration, sent: &AtomicUsize) {
    let image = image();
    let (first, last) = field(head, "Range: bytes=").split_once('-').unwrap();
    let (first, whole): (usize, _) = (first.parse().unwrap(), image.len());
    let last = last.parse().unwrap_or(whole - 1);
    let head = format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{last}/{whole}\r\n\r\n");
    let _ = stream.write_all(head.as_bytes());
    for piece in image[first..=last].chunks(100_000) {
        // Counted before it is sent, because the receiver compares at once.
        sent.fetch_add(piece.len(), Ordering::Relaxed);
        if stream.write_all(piece).is_err() {
            return;
        }
        std::thread::sleep(pause);
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = std::net::TcpStream::connect(self.server);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the appliance of this test panicked");
        }
    }
}

fn sender(round: Round, group: SocketAddrV4, sha256: &str, over: &AtomicBool) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpMulticastTtl, &0u8).unwrap();
    let mut content = image();
    let len = content.len() as u64;
    if round == Round::Poisoned {
        content[1000] ^= 1;
    }
    let geometry = Geometry::new(len, SYMBOL, BLOCK).unwrap();
    let id = pxe_contract::hex::prefix(sha256).unwrap();
    let mut sequence = 0;
    for pass in 0.. {
        for block in 0..geometry.blocks() {
            let range = geometry.block(block);
            let mut bytes = content[range.start as usize..range.end as usize].to_vec();
            bytes.resize(geometry.symbols(block) as usize * usize::from(SYMBOL), 0);
            let config = ObjectTransmissionInformation::new(bytes.len() as u64, SYMBOL, 1, 1, 8);
            let encoder = SourceBlockEncoder::new(0, &config, &bytes);
            let packets = match pass {
                // A stuck round starts over each time, so that it does not matter when a receiver joins.
                n if n == 0 || round == Round::Stuck => encoder.source_packets(),
                n => encoder.repair_packets((n - 1) * 10, 10),
            };
            for packet in packets {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let symbol = packet.payload_id().encoding_symbol_id();
                let header = Header { image: id, len, sequence, content: Content::Symbol { block, symbol } };
                sequence += 1;
                let lost = match round {
                    Round::Lossy(every) => sequence % every == 0,
                    Round::Stuck => block > 0 || symbol > 9,
                    _ => false,
                };
                if !lost {
                    socket.send_to(&[&header.bytes()[..], packet.data()].concat(), group).unwrap();
                }
                std::thread::sleep(Duration::from_micros(50));
            }
            if round == Round::Stuck {
                let header = Header { image: id, len, sequence, content: Content::Poll };
                socket.send_to(&header.bytes(), group).unwrap();
            }
        }
    }
}

#[test]
fn without_a_round_it_is_http_and_nobody_asks_twice() {
    let fake = Fake::start(Round::None, 0);
    let (came, content) = fake.fetch();
    assert!(content == image());
    assert_eq!((came.by_multicast, fake.by_http.load(Ordering::Relaxed)), (0, content.len()));
    assert_eq!(fake.reports.lock().unwrap().len(), 1);
}

#[test]
fn a_round_with_loss_brings_all_of_it() {
    let fake = Fake::start(Round::Lossy(17), 0);
    let (came, content) = fake.fetch();
    assert!(content == image());
    assert_eq!((came.by_multicast, fake.by_http.load(Ordering::Relaxed)), (content.len() as u64, 0));
    let reports = fake.reports.lock().unwrap();
    assert_eq!(reports.last().unwrap()["done"], true);
}

#[test]
fn a_fetch_that_has_begun_goes_on_with_a_round() {
    let fake = Fake::start(Round::Lossy(1000), 1);
    let (came, content) = fake.fetch();
    assert!(content == image());
    assert!(came.by_multicast > 0, "{came:?}");
}

#[test]
fn a_round_that_is_not_heard_is_left() {
    let fake = Fake::start(Round::Silent, 0);
    let (came, content) = fake.fetch();
    assert!(content == image());
    assert_eq!(came.by_multicast, 0);
}

#[test]
fn a_round_that_brings_nothing_new_is_left_with_what_it_brought() {
    let fake = Fake::start(Round::Stuck, 0);
    let (_, content) = fake.fetch();
    assert!(content == image());
    // Ten symbols had arrived by multicast.
    assert_eq!(fake.by_http.load(Ordering::Relaxed), content.len() - 10 * usize::from(SYMBOL));
    let reports = fake.reports.lock().unwrap();
    assert_eq!(reports[reports.len() - 2]["lacks"][0]["symbols"], 90, "{reports:?}");
}

#[test]
fn a_round_of_something_else_is_noticed() {
    let fake = Fake::start(Round::Poisoned, 0);
    let (came, content) = fake.fetch();
    assert!(content == image());
    assert_eq!((came.by_multicast, fake.by_http.load(Ordering::Relaxed)), (0, content.len()));
}
