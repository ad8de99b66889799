//! A node's settings in a kernel's command line: parsed settings, written again, are parsed to the same.

use std::net::SocketAddrV4;

use pxe_contract::settings::{Identity, Settings, endpoint, url};

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(appliance) = endpoint(text) {
        assert_eq!(endpoint(&url(appliance)), Some(appliance));
    }
    let Ok(settings) = Settings::parse(text) else { return };
    let appliance = settings.appliance.unwrap_or(SocketAddrV4::new([10, 77, 0, 1].into(), 80));
    let address = Some((settings.address, settings.prefix));
    let identity = Identity { appliance, mac: settings.mac.clone(), address };
    let words = [identity.words(), settings.boot.words()].concat();
    // We never write a word whose value contains a quote or a space.
    if words.iter().any(|word| word.contains(|c: char| c == '"' || c.is_whitespace())) {
        return;
    }
    let again = Settings::parse(&words.join(" ")).expect("what we write, we read");
    assert_eq!(again.boot, settings.boot);
    assert_eq!((again.address, again.prefix, again.mac), (settings.address, settings.prefix, settings.mac));
}
