//! Opening rounds, and a complete round on the loopback interface.

use super::*;

fn carousel(at_least: usize) -> Carousel {
    let settings = config::Carousel { at_least, ..config::Carousel::default() };
    Carousel::new(settings, Ipv4Addr::LOCALHOST, 1500)
}

fn node(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, n)
}

fn ask(carousel: &Carousel, sha256: &str, from: u8, report: &Reception, now: Instant) -> Option<Offer> {
    let image = Blob::from_bytes(vec![1u8; 10_000]);
    carousel.ask(sha256, &image, node(from), report, now).unwrap()
}

#[test]
fn a_round_opens_when_enough_machines_want_an_image_at_a_time() {
    let carousel = carousel(3);
    let (a, b) = ("aa".repeat(32), "bb".repeat(32));
    let (now, wants) = (Instant::now(), Reception::default());
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
    let done = Reception { done: true, ..Reception::default() };
    for n in 1..9 {
        assert_eq!(ask(&carousel, &sha256, n, &done, now), None);
    }
    assert_eq!(ask(&carousel, &sha256, 1, &Reception::default(), now), None);
    assert!(carousel.0.images.lock().unwrap().len() <= 1);
}
