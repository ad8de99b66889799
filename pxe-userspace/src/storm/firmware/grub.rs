//! GRUB 2.06 over TFTP: what it asks for before its configuration, and what it reads there.

use pxe_common::Mac;

use super::super::link::Waits;
use super::super::tftp::{Habits, Silence, Stray};

/// GRUB_NET_TRIES times GRUB_NET_INTERVAL and GRUB_NET_INTERVAL_ADDITION (include/grub/net.h).
const TRIES: [u32; 40] = {
    let mut waits = [0; 40];
    let mut i = 0;
    while i < waits.len() {
        waits[i] = 400 + 20 * i as u32;
        i += 1;
    }
    waits
};

pub(in super::super) static TFTP: Habits = Habits {
    probe: None,
    options: b"blksize\x001024\0tsize\x000\0",
    request: &TRIES,
    // grub-core/net/net.c, grub_net_fs_read_real: it polls, and sends nothing.
    silence: Silence::Waits(&TRIES),
    // grub-core/net/tftp.c, tftp_receive.
    stray: Stray::OwnNumber,
};

pub(in super::super) const ARP: Waits = &TRIES;

/// Its first UDP port, the same after every boot; each further file uses the next one.
pub(in super::super) const FIRST_PORT: u16 = 25_300;

/// Requested first, and again after the lists.
pub(in super::super) fn config_path(mac: Mac) -> String {
    format!("/grub/grub.cfg-01-{}", mac.to_string().replace(':', "-"))
}

/// The lists that normal mode looks for before it reads the configuration. They need not exist.
pub(in super::super) fn lists(platform: &str) -> [String; 4] {
    ["command", "fs", "crypto", "terminal"].map(|name| format!("/grub/{platform}/{name}.lst"))
}

/// The contents of a configuration from the appliance (`boot::grub`).
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Config {
    /// The kernel's path, the initrds', and the kernel's command line.
    Boot { files: Vec<String>, cmdline: Vec<String> },
    /// The reason, and after how many seconds to ask again.
    Refused { cause: String, pause: u64 },
}

pub(in super::super) fn config(text: &str) -> Config {
    let (mut files, mut cmdline, mut said, mut pause) = (Vec::new(), Vec::new(), Vec::new(), 5);
    for line in text.lines() {
        let line = line.trim().trim_start_matches("if ").trim_end_matches("; then");
        let mut words = words(line).into_iter();
        match words.next().as_deref() {
            Some("linux") => {
                files.extend(words.next());
                cmdline = words.collect();
            }
            // The file that comes over HTTP has a kilobyte: no load worth simulating.
            Some("initrd") => files.extend(words.filter(|word| !word.starts_with('('))),
            Some("echo") => said.extend(words),
            Some("set") => {
                let seconds = words.next().and_then(|w| w.strip_prefix("pause=")?.parse().ok());
                pause = seconds.unwrap_or(pause);
            }
            _ => {}
        }
    }
    match files.is_empty() {
        true => Config::Refused { cause: said.pop().unwrap_or_default(), pause },
        false => Config::Boot { files, cmdline },
    }
}

/// Words in single quotes or without, as GRUB's shell reads them.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => (quoted, any) = (!quoted, true),
            '\\' if !quoted => word.extend(chars.next()),
            ' ' if !quoted => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            c => word.push(c),
        }
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    words
}
