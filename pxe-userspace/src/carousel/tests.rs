//! Opening rounds, and a whole one on the loopback.

use super::*;

fn carousel(at_least: usize) -> Carousel {
    let settings = config::Carousel { at_least, ..config::Carousel::default() };
    Carousel::new(settings, Ipv4Addr::LOCALHOST, 1500)
}

fn node(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, n)
}

fn ask(carousel: &Carousel, sha256: &str, from: u8, report: &Report, now: Instant) -> Option<Offer> {
    let image = Blob::from_bytes(vec![1u8; 10_000]);
    carousel.ask(sha256, &image, node(from), report, now).unwrap()
}

#[test]
fn a_round_opens_when_enough_machines_want_an_image_at_a_time() {
    let carousel = carousel(3);
    let (a, b) = ("aa".repeat(32), "bb".repeat(32));
    let (now, wants) = (Instant::now(), Report::default());
    assert_eq!(ask(&carousel, &a, 1, &wants, now), None);
    assert_eq!(ask(&carousel, &a, 1, &wants, now), None, "it asks again, and is one machine");
    assert_eq!(ask(&carousel, &b, 2, &wants, now), None, "another image");
    assert_eq!(ask(&carousel, &a, 3, &wants, now + WINDOW / 2), None);
    let late = now + WINDOW;
    assert_eq!(ask(&carousel, &a, 4, &wants, late), None, "the first has gone");
    let offer = ask(&carousel, &a, 1, &wants, late).unwrap();
    assert_eq!(offer.group, "239.255.77.170:7477".parse().unwrap());
    assert_eq!((offer.symbol_size, offer.block_symbols), (1408, 1024));
    assert!(ask(&carousel, &a, 5, &wants, late).is_some(), "late joiners are told at once");
    assert_eq!(ask(&carousel, &b, 2, &wants, late), None);
}

#[test]
fn a_machine_that_is_done_opens_no_round() {
    let carousel = carousel(2);
    let (sha256, now) = ("aa".repeat(32), Instant::now());
    let done = Report { done: true, ..Report::default() };
    for n in 1..9 {
        assert_eq!(ask(&carousel, &sha256, n, &done, now), None);
    }
    assert_eq!(ask(&carousel, &sha256, 1, &Report::default(), now), None);
    assert!(carousel.0.images.lock().unwrap().len() <= 1);
}

#[test]
fn the_documents_are_those_that_nodes_know() {
    let example: serde_json::Value =
        serde_json::from_str(include_str!("../../../pxe-init/src/carousel/example.json")).unwrap();
    let report: Report = serde_json::from_value(example["report"].clone()).unwrap();
    let lacks = vec![Lack { first: 3, last: 3, symbols: 12 }, Lack { first: 5, last: 140, symbols: 1024 }];
    assert_eq!(report, Report { sequence: 7000, came: 6900, lacks, done: false });
    let offer = Offer {
        group: "239.255.77.1:7477".parse().unwrap(),
        symbol_size: 1408,
        block_symbols: 1024,
        report_every: 640,
        http_rate: 195_000,
    };
    assert_eq!(serde_json::to_value(offer).unwrap(), example["offer"]);
}
