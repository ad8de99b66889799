//! Netascii (RFC 764): lines end with CR LF, and a lone CR is followed by a zero. Pure.

/// `bytes` in netascii.
pub(super) fn encode(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 16);
    for byte in bytes {
        match byte {
            b'\n' => out.extend_from_slice(b"\r\n"),
            b'\r' => out.extend_from_slice(b"\r\0"),
            other => out.push(*other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::encode;

    #[test]
    fn lines_and_returns() {
        assert_eq!(encode(b"a\nb\r\nc"), b"a\r\nb\r\0\r\nc");
    }
}
