//! Bytes in documents: hexadecimal digits.

use alloc::string::String;
use alloc::vec::Vec;

/// In lower case.
pub fn encode(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect()
}

/// In upper or lower case; `None` if there is anything else, or half a byte.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let digits = digits?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// The first bytes encoded in `text`; `None` if [`decode`] fails, or there are fewer.
pub fn prefix<const N: usize>(text: &str) -> Option<[u8; N]> {
    decode(text.get(..2 * N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_pairs_of_digits() {
        assert_eq!(encode(&[0, 0x0a, 0xff]), "000aff");
        assert_eq!(decode("000aFF"), Some(Vec::from([0, 0x0a, 0xff])));
        for bad in ["0", "0g", "+1", "ä"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
        assert_eq!(prefix("000aFF"), Some([0, 0x0a]));
        assert_eq!((prefix::<4>("000aff"), prefix::<1>("+1")), (None, None));
    }
}
