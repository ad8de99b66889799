//! `[carousel]`: one image to many machines at once, by multicast.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Deserialize;
use toml::Spanned;

use super::file::File;
use super::findings::Findings;
use super::{Network, values};

/// How one image is sent to many machines at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Carousel {
    /// Machines that must want an image at the same time; 0: never.
    pub at_least: usize,
    /// Multicast groups; each image has one of them.
    pub group: Ipv4Net,
    pub port: u16,
    /// The most that all rounds send together, in bytes a second.
    pub ceiling: f64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct CarouselTable {
    at_least: Option<Spanned<usize>>,
    group: Option<Spanned<Ipv4Net>>,
    port: Option<Spanned<u16>>,
    ceiling: Option<Spanned<String>>,
}

impl Default for Carousel {
    fn default() -> Self {
        // In the IPv4 Local Scope (RFC 2365 section 6.1).
        let group = Ipv4Net::new_assert(Ipv4Addr::new(239, 255, 77, 0), 24);
        Self { at_least: 3, group, port: 7477, ceiling: 1.25e9 }
    }
}

/// Bytes a second. A slower round takes longer than HTTP to each machine.
const LOWEST_CEILING: u64 = 125_000;

/// Administratively scoped addresses (RFC 2365 section 6): a site's border routers don't forward them.
const SCOPED: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(239, 0, 0, 0), 8);

pub(super) fn carousel(raw: &File, network: &Network, findings: &mut Findings<'_>) -> Carousel {
    let mut carousel = Carousel::default();
    let CarouselTable { at_least, group, port, ceiling } = &raw.carousel;
    if let Some(at_least) = at_least {
        carousel.at_least = *at_least.get_ref();
        if carousel.at_least == 1 {
            let what = "one machine alone is served better by HTTP";
            findings.add(at_least.span(), what, "use 2 or more, or 0 to send images by HTTP only");
        }
    }
    if let Some(group) = group {
        carousel.group = group.get_ref().trunc();
        if !SCOPED.contains(group.get_ref()) || group.get_ref().prefix_len() < 16 {
            findings.add(
                group.span(),
                format!("{} are no groups of this site's own", group.get_ref()),
                format!(
                    "use a part of {SCOPED} (RFC 2365) with a prefix of /16 to /32, such as 239.255.77.0/24"
                ),
            );
        }
    }
    if let Some(port) = port {
        carousel.port = *port.get_ref();
        if carousel.port == 0 {
            findings.add(port.span(), "port 0 is none", "nodes are told the port: name one, such as 7477");
        }
    }
    if let Some(ceiling) = ceiling {
        match values::rate(ceiling.get_ref()).filter(|rate| *rate >= LOWEST_CEILING) {
            Some(bytes) => carousel.ceiling = bytes as f64,
            None => findings.add(
                ceiling.span(),
                format!("`{}` is no rate", ceiling.get_ref()),
                "write bits a second as \"800M\" or \"2G\", and 1M at the least",
            ),
        }
    }
    // [network] ceiling limits all boots. Packets beyond it would only wait in the port's queue.
    if let Some(all_boots) = network.ceiling {
        carousel.ceiling = carousel.ceiling.min(all_boots as f64);
    }
    carousel
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const BASE: &str = "[network]\nbridge = \"pxe0\"\naddress = \"10.77.0.1/24\"\n[dhcp]\nmode = \"off\"\n";

    fn parse(table: &str) -> Result<Carousel, String> {
        let parsed = super::super::parse(&format!("{BASE}[carousel]\n{table}\n"), Path::new("b.toml"));
        parsed.map(|config| config.carousel).map_err(|problems| problems[0].to_string())
    }

    #[test]
    fn what_is_written_is_meant() {
        assert_eq!(parse(""), Ok(Carousel::default()));
        let carousel =
            parse("at-least = 10\ngroup = \"239.192.3.7/30\"\nport = 9\nceiling = \"800M\"").unwrap();
        let group = "239.192.3.4/30".parse().unwrap();
        assert_eq!(carousel, Carousel { at_least: 10, group, port: 9, ceiling: 1e8 });
        assert_eq!(parse("at-least = 0").unwrap().at_least, 0);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (table, words) in [
            ("at-least = 1", "b.toml:7:12: one machine alone"),
            ("group = \"224.0.0.0/24\"", "b.toml:7:9: 224.0.0.0/24 are no groups"),
            ("group = \"239.0.0.0/8\"", "are no groups"),
            ("port = 0", "port 0 is none"),
            ("ceiling = \"fast\"", "`fast` is no rate"),
            ("ceiling = \"1K\"", "`1K` is no rate"),
        ] {
            let error = parse(table).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
