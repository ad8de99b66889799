//! A frame's headers: what parses is inside the frame, and written again parses to the same.
use pxe_common::wire::{Checksum, Datagram, HEADERS_LEN, InFrame};

pub(crate) fn run(frame: &[u8]) {
    if let Ok(InFrame { datagram, payload, is_fragment }) = Datagram::in_frame(frame) {
        assert!(frame[payload.clone()].len() == payload.len());
        assert!(is_fragment || payload.len() == usize::from(datagram.payload_len));
    }
    let Some(headers) = frame.first_chunk() else { return };
    let Ok(datagram) = Datagram::parse(headers, frame.len()) else { return };
    assert!(HEADERS_LEN + usize::from(datagram.payload_len) <= frame.len());
    let again = datagram.headers(Checksum::ZERO);
    assert_eq!(Datagram::parse(&again, frame.len()), Ok(datagram));
}
