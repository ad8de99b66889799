//! Network cards by model, and the features that each offers its driver.

use std::fmt;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};

use crate::process::output;

/// A card of the machine that the appliance is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Card {
    Virtio(Virtio),
    E1000e,
    Vmxnet3,
    /// QEMU has it since 8.0.
    Igb,
}

/// virtio-net in QEMU's own process, without vhost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Virtio {
    /// Pairs of queues. The driver takes as many as there are processors, so the machine gets that many.
    pub queues: u8,
    /// A frame may be spread over several receive buffers (`VIRTIO_NET_F_MRG_RXBUF`).
    pub mergeable: bool,
    /// The driver may be given frames with unfinished checksums (`VIRTIO_NET_F_GUEST_CSUM`).
    pub guest_csum: bool,
    /// The driver may be given frames larger than the MTU (`VIRTIO_NET_F_GUEST_TSO4` and its kind).
    pub guest_gso: bool,
    /// The driver may send frames with unfinished checksums, and larger ones (`VIRTIO_NET_F_CSUM`, `_HOST_TSO4`).
    pub host_offloads: bool,
}

impl Virtio {
    /// QEMU's default.
    pub const PLAIN: Self =
        Self { queues: 1, mergeable: true, guest_csum: true, guest_gso: true, host_offloads: true };
}

impl Card {
    pub const VIRTIO: Self = Self::Virtio(Virtio::PLAIN);

    /// Its driver.
    pub fn module(self) -> &'static str {
        match self {
            Self::Virtio(_) => "virtio_net",
            Self::E1000e => "e1000e",
            Self::Vmxnet3 => "vmxnet3",
            Self::Igb => "igb",
        }
    }

    /// The machine's processors: one for each pair of the card's queues.
    pub fn processors(self) -> u8 {
        self.queues()
    }

    pub(super) fn queues(self) -> u8 {
        match self {
            Self::Virtio(Virtio { queues, .. }) => queues,
            Self::E1000e | Self::Vmxnet3 | Self::Igb => 1,
        }
    }

    fn model(self) -> &'static str {
        match self {
            Self::Virtio(_) => "virtio-net-pci",
            Self::E1000e => "e1000e",
            Self::Vmxnet3 => "vmxnet3",
            Self::Igb => "igb",
        }
    }

    /// QEMU's argument for the device, on the cable `netdev`.
    pub(super) fn device(self, netdev: &str, mac: &str) -> String {
        let mut device = format!("{},netdev={netdev},mac={mac},romfile=", self.model());
        if let Self::Virtio(Virtio { queues, mergeable, guest_csum, guest_gso, host_offloads }) = self {
            if queues > 1 {
                // A vector per queue, one for the control queue, one for changes of the configuration.
                device += &format!(",mq=on,vectors={}", 2 * u32::from(queues) + 2);
            }
            for (given, properties) in [
                (mergeable, &["mrg_rxbuf"][..]),
                (guest_csum, &["guest_csum"]),
                // Larger frames come with unfinished checksums, so they need both.
                (guest_csum && guest_gso, &["guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo"]),
                (host_offloads, &["csum", "gso", "host_tso4", "host_tso6", "host_ecn", "host_ufo"]),
            ] {
                for property in properties.iter().filter(|_| !given) {
                    device += &format!(",{property}=off");
                }
            }
        }
        device
    }

    /// Why there is no such card here.
    pub fn missing(self) -> Option<String> {
        let mut ask = Command::new("qemu-system-x86_64");
        // Asked for one model only, QEMU reports an unknown model but exits with 0.
        let known = match output(ask.args(["-device", "help"])) {
            Ok(known) => known,
            Err(error) => return Some(format!("{error:#}")),
        };
        let listed = known.contains(&format!("name \"{}\"", self.model()));
        (!listed).then(|| format!("this QEMU has no {}", self.model()))
    }
}

/// Short, in QEMU's words: `virtio-net,queues=4,guest_csum=off`.
impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Virtio(virtio) = self else { return f.write_str(self.model()) };
        f.write_str("virtio-net")?;
        if virtio.queues > 1 {
            write!(f, ",queues={}", virtio.queues)?;
        }
        let mut plain = *virtio;
        for (name, offered) in plain.offers() {
            if !*offered {
                write!(f, ",{name}=off")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Card {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (model, properties) = text.split_once(',').unwrap_or((text, ""));
        let plain = match model {
            "virtio-net" => {
                let mut virtio = Virtio::PLAIN;
                for property in properties.split(',').filter(|p| !p.is_empty()) {
                    virtio
                        .set(property)
                        .with_context(|| format!("{property} is nothing that virtio-net has"))?;
                }
                return Ok(Self::Virtio(virtio));
            }
            "e1000e" => Self::E1000e,
            "vmxnet3" => Self::Vmxnet3,
            "igb" => Self::Igb,
            _ => bail!("{model}: there are virtio-net, e1000e, vmxnet3 and igb"),
        };
        ensure!(properties.is_empty(), "{model} takes no properties");
        Ok(plain)
    }
}

impl Virtio {
    fn offers(&mut self) -> [(&'static str, &mut bool); 4] {
        [
            ("mrg_rxbuf", &mut self.mergeable),
            ("guest_csum", &mut self.guest_csum),
            ("guest_tso", &mut self.guest_gso),
            ("csum", &mut self.host_offloads),
        ]
    }

    fn set(&mut self, property: &str) -> Option<()> {
        let (name, value) = property.split_once('=')?;
        if name == "queues" {
            self.queues = value.parse().ok()?;
            return Some(());
        }
        let (_, offered) = self.offers().into_iter().find(|(known, _)| *known == name)?;
        *offered = value == "on";
        matches!(value, "on" | "off").then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_cards_say_the_same() {
        for words in ["virtio-net", "virtio-net,queues=4,mrg_rxbuf=off,guest_tso=off", "e1000e", "vmxnet3"] {
            assert_eq!(words.parse::<Card>().unwrap().to_string(), words);
        }
        for wrong in ["ne2000", "e1000e,queues=2", "virtio-net,queues=many", "virtio-net,mrg_rxbuf=maybe"] {
            assert!(wrong.parse::<Card>().is_err(), "{wrong}");
        }
    }
}
