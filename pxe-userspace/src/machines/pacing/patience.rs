//! How long each firmware waits for an offer.

use std::time::Duration;

use pxe_common::dhcp::Firmware;

/// The seconds that a firmware waits after each of its DISCOVERs. After the last of them it gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience(&'static [u64]);

/// PXE 2.1 section 2.2.4; EDK2's `mPxeDhcpTimeout` and `mHttpDhcpTimeout`.
const PXE: Patience = Patience(&[4, 8, 16, 32]);

/// `DHCP_DISC_START_TIMEOUT_SEC` and `DHCP_DISC_END_TIMEOUT_SEC`.
const IPXE: Patience = Patience(&[1, 2, 4, 8]);

impl Patience {
    pub fn of(firmware: Firmware) -> Self {
        match firmware {
            Firmware::IpxeBios | Firmware::IpxeUefiX64 => IPXE,
            Firmware::Bios | Firmware::UefiX64 | Firmware::HttpX64 | Firmware::None | Firmware::Other(_) => {
                PXE
            }
        }
    }

    /// From the first DISCOVER to the last one.
    pub fn last(self) -> Duration {
        Duration::from_secs(self.0[..self.0.len() - 1].iter().sum())
    }

    /// From the first DISCOVER until it gives up.
    pub fn end(self) -> Duration {
        Duration::from_secs(self.0.iter().sum())
    }

    /// From a DISCOVER to the last one, if the one before was `gap` earlier. The first ones may have been
    /// lost, so the gap is better evidence than the first one received.
    pub fn left_after(self, gap: Duration) -> Duration {
        // Timers are not exact: RFC 2131 section 4.1 randomises them by a second.
        let waits = &self.0[..self.0.len() - 1];
        let done = waits.iter().take_while(|wait| gap + gap / 4 >= Duration::from_secs(**wait)).count();
        Duration::from_secs(waits[done..].iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_simulated_firmwares_wait_as_long() {
        for firmware in [Firmware::Bios, Firmware::UefiX64, Firmware::IpxeBios] {
            let ms: Vec<u64> = Patience::of(firmware).0.iter().map(|s| s * 1000).collect();
            assert_eq!(ms, crate::storm::discover_waits(firmware), "{firmware}");
        }
    }

    #[test]
    fn the_pause_says_which_discover_it_is() {
        let left = |ms| PXE.left_after(Duration::from_millis(ms)).as_secs();
        assert_eq!(
            [left(100), left(3800), left(4000), left(7500), left(16_000), left(90_000)],
            [28, 24, 24, 16, 0, 0]
        );
        assert_eq!((PXE.last().as_secs(), PXE.end().as_secs()), (28, 60));
        assert_eq!((IPXE.last().as_secs(), IPXE.end().as_secs()), (7, 15));
    }
}
