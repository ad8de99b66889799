//! Values that TOML has no type for: durations, sizes, published ports, DHCP options, host names.

use std::time::Duration;

use super::file::OptionValue;
use super::{Protocol, PublishedPort};

/// `90s`, `1h`, `1h30m`, `7d`.
pub fn duration(text: &str) -> Option<Duration> {
    let mut total = 0u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].chars().next()?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(seconds)?)?;
        rest = &rest[digits + unit.len_utf8()..];
    }
    (!text.is_empty()).then(|| Duration::from_secs(total))
}

/// `512M`, `2G`, `65536K`, in bytes. Units are powers of 1024, as memory is sold.
pub fn size(text: &str) -> Option<u64> {
    let number = text.trim_end_matches("iB").trim_end_matches(['K', 'M', 'G', 'T']);
    let unit: u64 = match text[number.len()..].trim_end_matches("iB") {
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// A size as [`size`] reads it, in the largest unit of which it is a whole number. Bytes below 1K are dropped.
pub fn written_size(bytes: u64) -> String {
    let units = [("T", 40), ("G", 30), ("M", 20)];
    let whole = units.iter().find(|(_, shift)| bytes != 0 && bytes.trailing_zeros() >= *shift);
    let (unit, shift) = whole.unwrap_or(&("K", 10));
    format!("{}{unit}", bytes >> shift)
}

/// `800M`, `2.5G`, `100Mbit`: bits a second, in powers of 1000 as links are sold. Returns bytes a second.
pub(super) fn rate(text: &str) -> Option<u64> {
    let text = text.trim_end_matches("/s").trim_end_matches("bit");
    let number = text.trim_end_matches(['K', 'k', 'M', 'G']);
    let unit: u64 = match &text[number.len()..] {
        "K" | "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => return None,
    };
    let (whole, tenths) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok())?;
    let tenths = digits(tenths).filter(|tenths| *tenths < 10)?;
    let bits = digits(whole)?.checked_mul(unit)?.checked_add(tenths * unit / 10)?;
    Some(bits / 8)
}

/// `1 disk`, `2 disks`.
pub(super) fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// `8080:80`, `53:53/udp`, or `80` for host and container alike.
pub(super) fn published_port(text: &str) -> Option<PublishedPort> {
    let (ports, protocol) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => return None,
    };
    let (host, container) = ports.split_once(':').unwrap_or((ports, ports));
    let port = |text: &str| text.parse::<u16>().ok().filter(|p| *p != 0);
    Some(PublishedPort { host: port(host)?, container: port(container)?, protocol })
}

/// An option's value in bytes. An address, alone or in a list, is four bytes. `hex:…` is bytes in hexadecimal. Other
/// text stands for itself.
pub(super) fn option_bytes(value: &OptionValue) -> Result<Vec<u8>, &'static str> {
    let bytes = match value {
        OptionValue::Bytes(bytes) => bytes.clone(),
        OptionValue::Addresses(addresses) => addresses.iter().flat_map(|a| a.octets()).collect(),
        OptionValue::Text(text) => match (text.parse::<std::net::Ipv4Addr>(), text.strip_prefix("hex:")) {
            (Ok(address), _) => address.octets().to_vec(),
            (_, Some(hex)) => hex_bytes(hex).ok_or("`hex:` takes pairs of hexadecimal digits")?,
            (_, None) => text.as_bytes().to_vec(),
        },
    };
    match bytes.len() {
        1..=255 => Ok(bytes),
        0 => Err("an option holds at least one byte"),
        _ => Err("an option holds at most 255 bytes (RFC 2132 section 2)"),
    }
}

fn hex_bytes(text: &str) -> Option<Vec<u8>> {
    crate::base::text::unhex(&text.replace([':', ' '], ""))
}

/// At most 63 letters, digits and inner hyphens (RFC 1123 section 2.1).
pub(super) fn is_host_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Why an option can't be set by its number, and what to set instead.
pub(super) fn reserved_option(number: u8) -> Option<&'static str> {
    Some(match number {
        0 | 255 => "0 and 255 are padding and the end mark (RFC 2132 section 3)",
        1 => "the netmask follows from [network] address",
        3 => "use [dhcp] router",
        6 => "use [dhcp] dns",
        12 => "a node's host name is its [[node]] name",
        15 => "use [dhcp] domain",
        42 => "use [dhcp] ntp",
        50 | 52..=57 | 61 | 82 => "it belongs to the protocol itself",
        51 | 58 | 59 => "use [dhcp] lease-time",
        43 | 60 | 66 | 67 | 93 | 94 | 97 => "what a machine boots is its profile's",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in
            [("90s", Some(90)), ("1h", Some(3600)), ("1h30m", Some(5400)), ("7d", Some(604_800))]
        {
            assert_eq!(duration(text).map(|d| d.as_secs()), seconds, "{text}");
        }
        for text in ["", "1", "h", "1 h", "-1s", "1y", "99999999999999999d", "1é"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("512M"), Some(512 << 20));
        assert_eq!(size("2GiB"), Some(2 << 30));
        for text in ["512M", "2G", "3T", "1500M", "1K", "1025K"] {
            assert_eq!(size(text).map(written_size).as_deref(), Some(text));
        }
        for text in ["", "512", "M", "1.5G", "iB", "1iB", "99999999999T", "1MB"] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn rates() {
        for (text, bytes) in
            [("800M", 100_000_000), ("2.5G", 312_500_000), ("100Mbit/s", 12_500_000), ("64k", 8000)]
        {
            assert_eq!(rate(text), Some(bytes), "{text}");
        }
        for text in
            ["", "800", "M", "1.25G", "-1M", "+1M", "1.M", ".5M", "1MB", "1 M", "99999999999999G", "1T"]
        {
            assert_eq!(rate(text), None, "{text}");
        }
    }

    #[test]
    fn ports() {
        let port = |text| published_port(text).map(|p| (p.host, p.container, p.protocol));
        assert_eq!(port("8080:80"), Some((8080, 80, Protocol::Tcp)));
        assert_eq!(port("53:53/udp"), Some((53, 53, Protocol::Udp)));
        assert_eq!(port("80/tcp"), Some((80, 80, Protocol::Tcp)));
        for text in ["", "0:80", "80:", "1:2:3", "80/sctp", "65536:1"] {
            assert_eq!(port(text), None, "{text}");
        }
    }

    #[test]
    fn options() {
        let text = |t: &str| option_bytes(&OptionValue::Text(t.to_owned()));
        assert_eq!(text("10.0.0.1").unwrap(), [10, 0, 0, 1]);
        assert_eq!(text("hex:0a:FF").unwrap(), [10, 255]);
        assert_eq!(text("hello").unwrap(), b"hello");
        assert!(text("hex:abc").is_err());
        assert!(text("").is_err());
        assert!(text(&"x".repeat(256)).is_err());
    }
}
