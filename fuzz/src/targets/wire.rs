//! A frame's headers: a parsed datagram is inside the frame, and written again it parses to the same.
use pxe_common::wire::{Checksum, Datagram, HEADERS_LEN};

pub(crate) fn run(frame: &[u8]) {
    let Some(headers) = frame.first_chunk() else { return };
    let Ok(datagram) = Datagram::parse(headers, frame.len()) else { return };
    assert!(HEADERS_LEN + usize::from(datagram.payload_len) <= frame.len());
    let again = datagram.headers(Checksum::ZERO);
    assert_eq!(Datagram::parse(&again, frame.len()), Ok(datagram));
}
