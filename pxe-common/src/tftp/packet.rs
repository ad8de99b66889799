//! The six packets (RFC 1350 section 5, RFC 2347): parsed without copying, built in a buffer.

use super::{BlockNo, HEADER_LEN};

/// Opcodes.
mod opcode {
    pub(super) const READ: u16 = 1;
    pub(super) const WRITE: u16 = 2;
    pub(super) const DATA: u16 = 3;
    pub(super) const ACK: u16 = 4;
    pub(super) const ERROR: u16 = 5;
    pub(super) const OACK: u16 = 6;
}

/// A packet, borrowed from its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// A client wants to read a file.
    Read(Request<'a>),
    /// A client wants to write one.
    Write(Request<'a>),
    /// A block.
    Data(BlockNo, &'a [u8]),
    /// A block arrived.
    Ack(BlockNo),
    /// The transfer is over.
    Error(ErrorCode, &'a [u8]),
    /// The options that the server accepts.
    Oack(Options<'a>),
}

/// What a read or write request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The file's name as sent; not necessarily UTF-8.
    pub path: &'a [u8],
    /// The encoding of the bytes.
    pub mode: Mode,
    /// The other wishes of the client.
    pub options: Options<'a>,
}

/// Transfer modes. `mail` is obsolete (RFC 1350 section 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Unchanged bytes.
    Octet,
    /// Text with CR LF at the ends of lines.
    Netascii,
}

/// Name and value pairs (RFC 2347), in any order; checked to be complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options<'a>(&'a [u8]);

/// Why a transfer was refused or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCode(pub u16);

impl ErrorCode {
    /// See the message.
    pub const OTHER: Self = Self(0);
    /// No such file.
    pub const NOT_FOUND: Self = Self(1);
    /// Forbidden for this client, or for writing.
    pub const ACCESS: Self = Self(2);
    /// An operation that TFTP does not have, or not now.
    pub const ILLEGAL: Self = Self(4);
    /// From an address and port without a transfer.
    pub const UNKNOWN_TRANSFER: Self = Self(5);
    /// The options are not acceptable (RFC 2347). EDK2 ends its size probe with it.
    pub const OPTIONS: Self = Self(8);
}

/// Why bytes are not a TFTP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter than the packet's fixed part.
    Short,
    /// No such opcode.
    Opcode,
    /// A string without its final zero, or an option without a value.
    Text,
    /// Neither octet nor netascii.
    Mode,
}

impl<'a> Packet<'a> {
    /// Reads a UDP payload.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (op, rest) = number(bytes)?;
        match op {
            opcode::READ => Ok(Self::Read(Request::parse(rest)?)),
            opcode::WRITE => Ok(Self::Write(Request::parse(rest)?)),
            opcode::DATA => number(rest).map(|(block, data)| Self::Data(BlockNo(block), data)),
            opcode::ACK => number(rest).map(|(block, _)| Self::Ack(BlockNo(block))),
            opcode::ERROR => {
                let (code, rest) = number(rest)?;
                // Some clients omit the message's final zero.
                let message = text(rest).map_or(rest, |(message, _)| message);
                Ok(Self::Error(ErrorCode(code), message))
            }
            opcode::OACK => Ok(Self::Oack(Options::parse(rest)?)),
            _ => Err(Malformed::Opcode),
        }
    }
}

impl<'a> Request<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (path, rest) = text(bytes)?;
        let (mode, rest) = text(rest)?;
        let mode = if mode.eq_ignore_ascii_case(b"octet") {
            Mode::Octet
        } else if mode.eq_ignore_ascii_case(b"netascii") {
            Mode::Netascii
        } else {
            return Err(Malformed::Mode);
        };
        Ok(Self { path, mode, options: Options::parse(rest)? })
    }
}

impl<'a> Options<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (_name, value) = text(rest)?;
            (_, rest) = text(value)?;
        }
        Ok(Self(bytes))
    }

    /// Every option, in the order sent.
    pub fn iter(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            let (name, value) = text(rest).ok()?;
            let (value, next) = text(value).ok()?;
            rest = next;
            Some((name, value))
        })
    }

    /// The value of the option `name`, in upper or lower case (RFC 2347).
    pub fn get(self, name: &str) -> Option<&'a [u8]> {
        self.iter().find(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
    }
}

/// An ACK's block, if the four bytes are an ACK.
#[inline(always)]
pub fn ack(bytes: [u8; HEADER_LEN]) -> Option<BlockNo> {
    let [a, b, c, d] = bytes;
    (u16::from_be_bytes([a, b]) == opcode::ACK).then_some(BlockNo(u16::from_be_bytes([c, d])))
}

/// Whether a payload that begins like this is an ERROR.
#[inline(always)]
pub fn is_error(bytes: [u8; HEADER_LEN]) -> bool {
    u16::from_be_bytes([bytes[0], bytes[1]]) == opcode::ERROR
}

/// The header of a DATA packet.
#[inline(always)]
pub fn data_header(block: BlockNo) -> [u8; HEADER_LEN] {
    let [a, b] = block.0.to_be_bytes();
    [0, opcode::DATA as u8, a, b]
}

/// Builds an ERROR; a message that does not fit is cut. `None` if `buf` is shorter than five bytes.
pub fn error<'b>(buf: &'b mut [u8], code: ErrorCode, message: &str) -> Option<&'b [u8]> {
    let mut out = Writer { buf, len: 0 };
    out.put(&opcode::ERROR.to_be_bytes())?;
    out.put(&code.0.to_be_bytes())?;
    let room = out.buf.len().checked_sub(out.len + 1)?;
    out.put(&message.as_bytes()[..message.len().min(room)])?;
    out.put(&[0])?;
    Some(out.done())
}

/// Builds an OACK. `None` if `buf` is too small.
pub fn oack<'b>(buf: &'b mut [u8], options: &[(&str, u64)]) -> Option<&'b [u8]> {
    let mut out = Writer { buf, len: 0 };
    out.put(&opcode::OACK.to_be_bytes())?;
    for (name, value) in options {
        out.put(name.as_bytes())?;
        out.put(&[0])?;
        out.decimal(*value)?;
        out.put(&[0])?;
    }
    Some(out.done())
}

struct Writer<'b> {
    buf: &'b mut [u8],
    len: usize,
}

impl<'b> Writer<'b> {
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.len.checked_add(bytes.len())?;
        self.buf.get_mut(self.len..end)?.copy_from_slice(bytes);
        self.len = end;
        Some(())
    }

    fn decimal(&mut self, mut value: u64) -> Option<()> {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                return self.put(&digits[at..]);
            }
        }
    }

    fn done(self) -> &'b [u8] {
        &self.buf[..self.len]
    }
}

fn number(bytes: &[u8]) -> Result<(u16, &[u8]), Malformed> {
    match bytes {
        [a, b, rest @ ..] => Ok((u16::from_be_bytes([*a, *b]), rest)),
        _ => Err(Malformed::Short),
    }
}

fn text(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let end = bytes.iter().position(|b| *b == 0).ok_or(Malformed::Text)?;
    Ok((&bytes[..end], &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn edk2s_request() {
        let bytes = b"\0\x01grub-x64.efi\0octet\0tsize\x000\0blksize\x001468\0WindowSize\x004\0";
        let Ok(Packet::Read(request)) = Packet::parse(bytes) else { panic!("not a read request") };
        assert_eq!((request.path, request.mode), (&b"grub-x64.efi"[..], Mode::Octet));
        assert_eq!(request.options.get("windowsize"), Some(&b"4"[..]));
        assert_eq!(request.options.get("blksize"), Some(&b"1468"[..]));
        assert_eq!(request.options.get("timeout"), None);
        assert_eq!(request.options.iter().count(), 3);
    }

    #[test]
    fn what_is_no_packet() {
        for (bytes, why) in [
            (&b""[..], Malformed::Short),
            (b"\0", Malformed::Short),
            (b"\0\x04\0", Malformed::Short),
            (b"\0\x07\0\0", Malformed::Opcode),
            (b"\0\x01file", Malformed::Text),
            (b"\0\x01file\0octet", Malformed::Text),
            (b"\0\x01file\0mail\0", Malformed::Mode),
            (b"\0\x01file\0octet\0blksize\0", Malformed::Text),
            (b"\0\x01file\0octet\0blksize\x001468", Malformed::Text),
        ] {
            assert_eq!(Packet::parse(bytes), Err(why), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_built_reads_back() {
        let mut buf = [0; 64];
        let bytes = oack(&mut buf, &[("blksize", 1468), ("tsize", u64::MAX)]).unwrap();
        let Ok(Packet::Oack(options)) = Packet::parse(bytes) else { panic!("not an OACK") };
        assert_eq!(options.get("tsize"), Some(&b"18446744073709551615"[..]));
        let bytes = error(&mut buf, ErrorCode::NOT_FOUND, "no such file").unwrap();
        assert_eq!(Packet::parse(bytes), Ok(Packet::Error(ErrorCode::NOT_FOUND, b"no such file")));
        let mut small = [0; 8];
        assert_eq!(error(&mut small, ErrorCode::OTHER, "no room"), Some(&b"\0\x05\0\0no \0"[..]));
        assert_eq!(oack(&mut small, &[("blksize", 8)]), None);
        assert_eq!(ack([0, 4, 1, 2]), Some(BlockNo(0x0102)));
        assert_eq!(ack([0, 5, 1, 2]), None);
        assert_eq!(Packet::parse(&data_header(BlockNo(7))), Ok(Packet::Data(BlockNo(7), b"")));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(op in 0u8..8, bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let bytes: Vec<u8> = [0, op].into_iter().chain(bytes).collect();
            if let Ok(Packet::Read(r) | Packet::Write(r)) = Packet::parse(&bytes) {
                prop_assert!(r.path.len() + 2 * r.options.iter().count() < bytes.len());
            }
        }
    }
}
