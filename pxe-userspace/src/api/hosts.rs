//! The host names of the API, and which pages may send requests from a browser. Pure.
//!
//! Any web page can make a browser send requests to addresses that only the browser can reach. If its own name resolves
//! to such an address (DNS rebinding), it can even read the answers. But it can't make the browser send wrong values in
//! `Host`, `Origin` and `Sec-Fetch-Site`.

use std::net::IpAddr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Uri, Version, header};

use super::{Failure, Kind};

/// The permitted values of `Host`.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    /// Our addresses, beside the one to which a request came.
    pub addresses: Vec<IpAddr>,
    /// In lower case.
    pub names: Vec<String>,
}

/// The origin that a request claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// From our own page, as the browser says.
    OwnPage,
    /// From no page: a program, or an address that somebody typed.
    NoPage,
}

impl Hosts {
    /// Returns a request's one authority if it is ours. `local` is the address to which the request came.
    pub(super) fn judge(
        &self,
        version: Version,
        uri: &Uri,
        headers: &HeaderMap,
        local: IpAddr,
    ) -> Result<Option<Authority>, Failure> {
        let invalid = |error: &str| Failure::new(Kind::Invalid, error, "RFC 9112 section 3.2");
        let mut named = headers.get_all(header::HOST).iter();
        let host = match (named.next(), named.next()) {
            (Some(host), None) => Some(authority(host).ok_or_else(|| invalid("what Host says is no host"))?),
            (Some(_), Some(_)) => return Err(invalid("there are two Host headers")),
            (None, _) if version <= Version::HTTP_10 => None,
            (None, _) => return Err(invalid("there is no Host header")),
        };
        for authority in host.iter().chain(uri.authority()) {
            if !self.is_own(authority.host(), local) {
                let hint = "ask by address, or name it in [api] names";
                return Err(Failure::new(Kind::Misdirected, "this is not that host", hint));
            }
        }
        Ok(host)
    }

    fn is_own(&self, host: &str, local: IpAddr) -> bool {
        let host =
            host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        match host.parse::<IpAddr>() {
            Ok(address) => {
                let (address, local) = (address.to_canonical(), local.to_canonical());
                address == local
                    || address.is_loopback() && local.is_loopback()
                    || self.addresses.contains(&address)
                    || self.names.contains(&host)
            }
            Err(_) => host == "localhost" || self.names.contains(&host),
        }
    }
}

/// Refuses requests of foreign pages. `own` is the request's host.
pub(super) fn source(headers: &HeaderMap, own: Option<&Authority>) -> Result<Source, Failure> {
    let foreign = || {
        Err(Failure::new(
            Kind::Forbidden,
            "another site's page asks",
            "open the API's own page, or use a program",
        ))
    };
    let mut source = Source::NoPage;
    for site in headers.get_all("sec-fetch-site") {
        match site.as_bytes() {
            b"same-origin" => source = Source::OwnPage,
            b"none" => {}
            // Also for `same-site`, because another port of this host may be somebody else's.
            _ => return foreign(),
        }
    }
    for origin in headers.get_all(header::ORIGIN) {
        let theirs = origin.to_str().ok().and_then(|origin| {
            let (scheme, authority) = origin.split_once("://")?;
            let authority: Authority = authority.parse().ok()?;
            Some((scheme.to_owned(), authority))
        });
        match (theirs, own) {
            (Some((scheme, theirs)), Some(own)) if same(&scheme, &theirs, own) => source = Source::OwnPage,
            _ => return foreign(),
        }
    }
    Ok(source)
}

/// Whether an origin is the requested host. Without a port, `Host` means the scheme's port; a proxy before us may use the
/// other scheme.
fn same(scheme: &str, theirs: &Authority, own: &Authority) -> bool {
    let default = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    let port = |authority: &Authority| authority.port_u16().unwrap_or(default);
    theirs.host().eq_ignore_ascii_case(own.host()) && port(theirs) == port(own)
}

fn authority(host: &HeaderValue) -> Option<Authority> {
    let authority: Authority = host.to_str().ok()?.parse().ok()?;
    // It may have a valid port, but no user.
    let rest = authority.as_str().strip_prefix(authority.host())?;
    (rest.is_empty() || authority.port_u16().is_some()).then_some(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let lines = lines.iter().map(|(name, value)| {
            (header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        });
        lines.collect::<Vec<_>>().into_iter().fold(HeaderMap::new(), |mut all, (name, value)| {
            all.append(name, value);
            all
        })
    }

    fn judged(host: &[&str], uri: &str, local: &str, version: Version) -> Result<(), Kind> {
        let hosts =
            Hosts { addresses: vec!["10.77.0.1".parse().unwrap()], names: vec!["boot.example.org".into()] };
        let lines: Vec<_> = host.iter().map(|host| ("host", *host)).collect();
        let judged = hosts.judge(version, &uri.parse().unwrap(), &headers(&lines), local.parse().unwrap());
        judged.map(drop).map_err(|failure| failure.kind)
    }

    #[test]
    fn hosts_of_ours_and_no_others() {
        let own = |host: &str| judged(&[host], "/api/status", "192.0.2.7", Version::HTTP_11);
        for host in [
            "192.0.2.7",
            "192.0.2.7:7480",
            "10.77.0.1:1",
            "localhost",
            "LOCALHOST:8080",
            "boot.example.org",
            "Boot.Example.Org:443",
            "boot.example.org.",
        ] {
            assert_eq!(own(host), Ok(()), "{host}");
        }
        for host in [
            "rebind.evil.example:7480",
            "evil.boot.example.org",
            "boot.example.org.evil",
            "127.0.0.1",
            "192.0.2.8",
            "localhost.evil.example",
            "[::1]",
            "0.0.0.0",
            "192.0.2.7.nip.io",
            "xlocalhost",
            "3221226039",
        ] {
            assert_eq!(own(host), Err(Kind::Misdirected), "{host}");
        }
        for host in ["", "a b", "user@localhost", "http://localhost", "localhost:x", "[::1"] {
            assert_eq!(own(host), Err(Kind::Invalid), "{host}");
        }
        let on_loopback = |host: &str, local: &str| judged(&[host], "/", local, Version::HTTP_11);
        assert_eq!(on_loopback("127.0.0.1:7480", "127.0.0.1"), Ok(()));
        assert_eq!(on_loopback("[::1]:7480", "::1"), Ok(()));
        assert_eq!(on_loopback("127.0.0.1", "::ffff:127.0.0.1"), Ok(()));
        assert_eq!(on_loopback("[::ffff:192.0.2.7]", "192.0.2.7"), Ok(()));
    }

    #[test]
    fn one_host_and_only_one() {
        let judged = |host: &[&str], uri: &str, version| judged(host, uri, "127.0.0.1", version);
        assert_eq!(judged(&[], "/", Version::HTTP_11), Err(Kind::Invalid));
        assert_eq!(judged(&[], "/", Version::HTTP_10), Ok(()), "it knows none");
        assert_eq!(judged(&["localhost", "localhost"], "/", Version::HTTP_11), Err(Kind::Invalid));
        assert_eq!(judged(&["localhost", "evil.example"], "/", Version::HTTP_11), Err(Kind::Invalid));
        // The request's target takes precedence over Host (RFC 9112 section 3.2.2): both have to be ours.
        assert_eq!(judged(&["localhost"], "http://localhost/", Version::HTTP_11), Ok(()));
        assert_eq!(judged(&["localhost"], "http://evil.example/", Version::HTTP_11), Err(Kind::Misdirected));
        assert_eq!(judged(&["evil.example"], "http://localhost/", Version::HTTP_11), Err(Kind::Misdirected));
    }

    #[test]
    fn requests_of_other_sites_pages_are_refused() {
        let own: Authority = "127.0.0.1:7480".parse().unwrap();
        let from = |lines: &[(&'static str, &str)]| {
            source(&headers(lines), Some(&own)).map_err(|failure| failure.kind)
        };
        assert_eq!(from(&[]), Ok(Source::NoPage));
        assert_eq!(from(&[("sec-fetch-site", "none")]), Ok(Source::NoPage));
        assert_eq!(from(&[("sec-fetch-site", "same-origin")]), Ok(Source::OwnPage));
        assert_eq!(from(&[("origin", "http://127.0.0.1:7480")]), Ok(Source::OwnPage));
        assert_eq!(from(&[("origin", "https://127.0.0.1:7480")]), Ok(Source::OwnPage), "a proxy has TLS");
        for origin in [
            "http://evil.example",
            "null",
            "",
            "http://127.0.0.1",
            "http://127.0.0.1:8080",
            "http://127.0.0.1:74800",
            "http://localhost:7480",
            "file://",
            "http://127.0.0.1:7480.evil.example",
            "moz-extension://127.0.0.1:7480",
            "http://evil@127.0.0.1:8080",
        ] {
            assert_eq!(from(&[("origin", origin)]), Err(Kind::Forbidden), "{origin}");
        }
        for site in ["cross-site", "same-site", "x", ""] {
            assert_eq!(from(&[("sec-fetch-site", site)]), Err(Kind::Forbidden), "{site}");
        }
        let both = [("sec-fetch-site", "same-origin"), ("origin", "http://evil.example")];
        assert_eq!(from(&both), Err(Kind::Forbidden));
        assert_eq!(from(&[("origin", "http://127.0.0.1:7480"), ("origin", "null")]), Err(Kind::Forbidden));
        let nowhere = source(&headers(&[("origin", "http://127.0.0.1:7480")]), None);
        assert_eq!(nowhere.map_err(|failure| failure.kind), Err(Kind::Forbidden));
        let https: Authority = "boot.example.org".parse().unwrap();
        let proxied = source(&headers(&[("origin", "https://boot.example.org")]), Some(&https));
        assert_eq!(proxied.unwrap(), Source::OwnPage);
    }
}
