//! The pcapng blocks of a trace (draft-ietf-opsawg-pcapng), little-endian.
//!
//! Pure. Only four block types are needed, and only written, so a crate would be more code.

/// Option codes; each block type has its own from 2, and 1 is a comment in all of them.
mod option {
    pub(super) const END: u16 = 0;
    pub(super) const COMMENT: u16 = 1;
    pub(super) const SHB_USER_APPLICATION: u16 = 4;
    pub(super) const IF_NAME: u16 = 2;
    pub(super) const IF_DESCRIPTION: u16 = 3;
    pub(super) const IF_TIME_RESOLUTION: u16 = 9;
    pub(super) const EPB_FLAGS: u16 = 2;
    pub(super) const ISB_DROPPED_BY_OS: u16 = 7;
}

mod block {
    pub(super) const SECTION: u32 = 0x0a0d_0d0a;
    pub(super) const INTERFACE: u32 = 1;
    pub(super) const STATISTICS: u32 = 5;
    pub(super) const PACKET: u32 = 6;
}

const LINKTYPE_ETHERNET: u16 = 1;
/// Times are in nanoseconds: 10 to the power of minus this.
const RESOLUTION: u8 = 9;

/// A frame's direction, as seen from the appliance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    In = 1,
    Out = 2,
}

/// A frame, as its block describes it.
pub(super) struct Frame<'a> {
    /// The index among the interface blocks written before.
    pub(super) interface: u32,
    /// Nanoseconds since 1970.
    pub(super) nanoseconds: u64,
    /// The recorded part.
    pub(super) bytes: &'a [u8],
    /// The length on the wire.
    pub(super) len: u32,
    pub(super) direction: Direction,
    pub(super) comments: &'a [String],
}

/// Begins a file.
pub(super) fn section(out: &mut Vec<u8>, comment: &str) {
    block(out, block::SECTION, |out| {
        out.extend(0x1a2b_3c4d_u32.to_le_bytes());
        out.extend(1u16.to_le_bytes());
        out.extend(0u16.to_le_bytes());
        // The section's length is not known in advance.
        out.extend(u64::MAX.to_le_bytes());
        put(out, option::COMMENT, comment.as_bytes());
        put(out, option::SHB_USER_APPLICATION, concat!("bridgehead ", env!("CARGO_PKG_VERSION")).as_bytes());
        put(out, option::END, &[]);
    });
}

/// Describes an interface; the first has number 0.
pub(super) fn interface(out: &mut Vec<u8>, name: &str, description: &str) {
    block(out, block::INTERFACE, |out| {
        out.extend(LINKTYPE_ETHERNET.to_le_bytes());
        out.extend(0u16.to_le_bytes());
        // No limit on a frame's length.
        out.extend(0u32.to_le_bytes());
        put(out, option::IF_NAME, name.as_bytes());
        put(out, option::IF_DESCRIPTION, description.as_bytes());
        put(out, option::IF_TIME_RESOLUTION, &[RESOLUTION]);
        put(out, option::END, &[]);
    });
}

pub(super) fn frame(out: &mut Vec<u8>, frame: &Frame<'_>) {
    block(out, block::PACKET, |out| {
        out.extend(frame.interface.to_le_bytes());
        time(out, frame.nanoseconds);
        out.extend((frame.bytes.len() as u32).to_le_bytes());
        out.extend(frame.len.to_le_bytes());
        out.extend(frame.bytes);
        pad(out);
        for comment in frame.comments {
            put(out, option::COMMENT, comment.as_bytes());
        }
        put(out, option::EPB_FLAGS, &(frame.direction as u32).to_le_bytes());
        put(out, option::END, &[]);
    });
}

/// Writes how many frames were lost because the buffer was full.
pub(super) fn statistics(out: &mut Vec<u8>, interface: u32, nanoseconds: u64, dropped: u64) {
    block(out, block::STATISTICS, |out| {
        out.extend(interface.to_le_bytes());
        time(out, nanoseconds);
        put(out, option::ISB_DROPPED_BY_OS, &dropped.to_le_bytes());
        put(out, option::END, &[]);
    });
}

/// A block has its length at both ends. Everything in it is padded to multiples of four bytes.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let len = (out.len() - start + 4) as u32;
    out[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
    out.extend(len.to_le_bytes());
}

fn put(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(u16::MAX.into())];
    out.extend(code.to_le_bytes());
    out.extend((value.len() as u16).to_le_bytes());
    out.extend(value);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The upper half comes first, in any byte order.
fn time(out: &mut Vec<u8>, nanoseconds: u64) {
    out.extend(((nanoseconds >> 32) as u32).to_le_bytes());
    out.extend((nanoseconds as u32).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn wireshark_reads_it() {
        if Command::new("tshark").arg("-v").output().is_err() {
            eprintln!("skipped: tshark is not installed (cargo xtask setup)");
            return;
        }
        let mut file = Vec::new();
        section(&mut file, "n1's boot");
        interface(&mut file, "eth1", "port of pxe0");
        interface(&mut file, "a-name", "x");
        // An ARP request whose length needs padding, and a truncated one.
        let mut arp = vec![0xff; 6];
        arp.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        arp.extend([2, 0, 0, 0, 0, 1, 10, 77, 0, 100, 0, 0, 0, 0, 0, 0, 10, 77, 0, 1]);
        arp.push(0);
        let comments = ["answered by tc".to_owned(), "größer".to_owned()];
        let nanoseconds = 1_700_000_000_123_456_789;
        let mut whole = Frame {
            interface: 1,
            nanoseconds,
            bytes: &arp,
            len: arp.len() as u32,
            direction: Direction::Out,
            comments: &comments,
        };
        frame(&mut file, &whole);
        whole = Frame { interface: 0, bytes: &arp[..14], direction: Direction::In, comments: &[], ..whole };
        frame(&mut file, &whole);
        statistics(&mut file, 1, nanoseconds, 3);

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.pcapng");
        std::fs::write(&path, &file).unwrap();
        let mut tshark = Command::new("tshark");
        tshark.args(["-n", "-T", "fields", "-r"]).arg(&path);
        for field in [
            "frame.interface_name",
            "frame.time_epoch",
            "frame.packet_flags_direction",
            "frame.len",
            "frame.cap_len",
            "arp.src.proto_ipv4",
            "frame.comment",
        ] {
            tshark.args(["-e", field]);
        }
        let output = tshark.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let rows = String::from_utf8(output.stdout).unwrap();
        let rows: Vec<Vec<&str>> = rows.lines().map(|row| row.split('\t').collect()).collect();
        let time = "1700000000.123456789";
        assert_eq!(
            rows[0],
            ["a-name", time, "0x00000002", "43", "43", "10.77.0.100", "answered by tc,größer"]
        );
        assert_eq!(rows[1], ["eth1", time, "0x00000001", "43", "14", "", ""]);
        assert_eq!(rows.len(), 2);
    }
}
