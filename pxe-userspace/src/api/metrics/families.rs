//! Every family of `/metrics`: its name, its help, its unit, its type and its labels.
//!
//! The library adds the prefix, the unit and `_total`. Labels have few values: reasons, causes and stages are enums, and
//! no more than [`MOST_PORTS`] ports are named. Machines are counted and not named.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric as _, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use pxe_common::verdict::{Drop, Hook, Pass};

use super::{KernelMeasures, Scrape};
use crate::base::text::word;
use crate::dataplane::HookCounters;
use crate::machines::diagnosis::BUCKETS;
use crate::serve::dhcp::{Counters, PacingStatus};

/// The most ports that are named. A Docker bridge may have any number.
const MOST_PORTS: usize = 256;

/// What the TFTP server counts, by its own names: see [`tftp::Stats`](crate::serve::tftp::Stats). Its bytes are in `sent_bytes`.
pub(super) const TFTP: [(&str, &str); 13] = [
    ("requests", "Requests for files."),
    ("refused", "Requests that were answered by an ERROR."),
    ("malformed", "Packets that are no TFTP."),
    ("unknown-transfer", "Packets of no transfer under way."),
    ("fast-path", "Transfers that the kernel programs were given."),
    ("handed-back", "Transfers that the kernel programs gave back."),
    ("finished", "Transfers whose last block was acknowledged."),
    ("aborted", "Transfers that their clients ended."),
    ("expired", "Transfers whose clients fell silent."),
    ("repeated", "Blocks that were retransmitted."),
    ("writes-refused", "Requests to write."),
    ("foreign", "Packets from beyond the segment, or from another station than the address's."),
    ("gave-way", "Transfers that nobody had answered, and that ended for others."),
];
pub(super) const TFTP_BYTES: &str = "bytes-by-daemon";

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families(encoder);
        self.appliance(&mut families)?;
        self.boots(&mut families)?;
        self.dhcp(&mut families)?;
        self.sent(&mut families)?;
        match &self.measures.kernel {
            Some(kernel) => kernel.write(&mut families),
            None => Ok(()),
        }
    }
}

impl Scrape {
    fn appliance(&self, families: &mut Families<'_>) -> fmt::Result {
        let measures = &self.measures;
        families.info("build", "The running version.", [[("version", measures.version.to_owned())]])?;
        let started = measures.started.as_microsecond() as f64 / 1e6;
        let help = "When the daemon started, in Unix time.";
        families.gauge("start_time", help, Some(Unit::Seconds), [([], started)])?;
        families.gauge("alerts", "Things somebody should look at.", None, [([], measures.alerts)])?;
        let ports = measures.ports.iter().take(MOST_PORTS);
        let ports = ports.map(|port| [("port", port.name.clone()), ("tier", word(port.tier))]);
        families.info("port", "Ports of the bridge and the fast path's tier on each.", ports)
    }

    fn boots(&self, families: &mut Families<'_>) -> fmt::Result {
        let nodes = self.machines.iter().map(|(stage, count)| {
            let stage = stage.map_or_else(|| "none".to_owned(), word);
            ([("stage", stage)], *count)
        });
        families.gauge("nodes", "Machines by the stage that their last boot reached.", None, nodes)?;
        let PacingStatus { most, under_way, waiting, capacity: _ } = self.measures.dhcp.pacing;
        families.gauge("boots_under_way", "Boots that are counted by pacing.", None, [([], under_way)])?;
        let help = "Machines that wait for their turn to boot.";
        families.gauge("boots_waiting", help, None, [([], waiting)])?;
        let help = "Boots at a time that the links carry, where that is known.";
        families.gauge("boots_limit", help, None, most.map(|most| ([], most)))?;
        self.stages(families)?;
        let failures = self.boots.failures.iter().map(|(cause, count)| ([("cause", word(*cause))], *count));
        families.counter("boot_failures", "Boots that failed, by their first cause.", None, failures)?;
        families.gauge("transfers", "Transfers of files under way.", None, [([], self.boots.transfers)])
    }

    fn stages(&self, families: &mut Families<'_>) -> fmt::Result {
        let help = "From a machine's DISCOVER to each stage of its boot.";
        let unit = Some(Unit::Seconds);
        let mut family =
            families.0.encode_descriptor("boot_stage", help, unit.as_ref(), MetricType::Histogram)?;
        for (stage, histogram) in &self.boots.stages {
            let bounds = BUCKETS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(histogram.counts).collect();
            let count = histogram.counts.iter().sum();
            let labels = [("stage", word(*stage))];
            let mut sample = family.encode_family(&labels)?;
            sample.encode_histogram::<NoLabelSet>(histogram.sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn dhcp(&self, families: &mut Families<'_>) -> fmt::Result {
        let Counters {
            discovers,
            requests,
            declines,
            releases,
            informs,
            offers,
            acks,
            naks,
            malformed,
            odd,
            forged,
            ignored,
            foreign_relay,
            senseless,
            held,
            exhausted,
            overtaken,
            reply_too_long,
        } = &self.measures.dhcp.counters;
        for (name, help, count) in [
            ("dhcp_discovers", "DHCPDISCOVERs that the daemon received.", discovers),
            ("dhcp_requests", "DHCPREQUESTs that the daemon received.", requests),
            ("dhcp_declines", "DHCPDECLINEs that the daemon received.", declines),
            ("dhcp_releases", "DHCPRELEASEs that the daemon received.", releases),
            ("dhcp_informs", "DHCPINFORMs that the daemon received.", informs),
            ("dhcp_offers", "DHCPOFFERs that the daemon sent.", offers),
            ("dhcp_acks", "DHCPACKs that the daemon sent.", acks),
            ("dhcp_naks", "DHCPNAKs that the daemon sent.", naks),
            ("dhcp_odd", "Messages of which an option was ignored.", odd),
            ("dhcp_forged", "Messages in a machine's name from another station.", forged),
            ("dhcp_ignored", "Messages of machines that [dhcp] unknown leaves alone.", ignored),
            ("dhcp_foreign_relay", "Messages from relays of other subnets.", foreign_relay),
            ("dhcp_senseless", "Messages about no lease of ours.", senseless),
            ("dhcp_held", "DHCPDISCOVERs of machines that wait for their turn.", held),
            ("dhcp_exhausted", "DHCPDISCOVERs for which no address was free.", exhausted),
            ("dhcp_overtaken", "Leases that the kernel confirmed after they had ended.", overtaken),
            ("dhcp_reply_too_long", "Replies longer than their clients take.", reply_too_long),
        ] {
            families.counter(name, help, None, [([], *count)])?;
        }
        let malformed = malformed.iter().map(|(reason, count)| ([("reason", (*reason).to_owned())], *count));
        families.counter(
            "dhcp_malformed",
            "Messages that DHCP does not allow, by reason.",
            None,
            malformed,
        )?;
        families.gauge("dhcp_bound", "Addresses that are leased.", None, [([], self.measures.dhcp.bound)])?;
        let free = self.measures.dhcp.room.free;
        families.gauge("dhcp_free", "Addresses of the range that are nobody's.", None, [([], free)])?;
        let rivals = self.measures.dhcp.rivals.len();
        families.gauge("dhcp_rivals", "Other DHCP servers that were noticed.", None, [([], rivals)])
    }

    /// Who sent how much, and what the daemon's own servers did.
    fn sent(&self, families: &mut Families<'_>) -> fmt::Result {
        let tftp = |name: &str| {
            let counted = self.measures.tftp.iter().find(|(counted, _)| *counted == name);
            counted.map_or(0, |(_, count)| *count)
        };
        let kernel =
            self.measures.kernel.iter().flat_map(KernelMeasures::hooks).map(|(hook, counters)| {
                (hook.name(), counters.get("reply-bytes").copied().unwrap_or_default())
            });
        let own = [("daemon", tftp(TFTP_BYTES)), ("http", self.http_sent_bytes)];
        let sent = kernel.chain(own).map(|(tier, bytes)| ([("tier", tier.to_owned())], bytes));
        let help = "Sent to machines, by who sent it: whole frames in the kernel, contents elsewhere.";
        families.counter("sent", help, Some(Unit::Bytes), sent)?;
        families.counter("http_sent", "Sent by HTTP.", Some(Unit::Bytes), [([], self.http_sent_bytes)])?;
        for (name, help) in TFTP {
            families.counter(&format!("tftp_{}", name.replace('-', "_")), help, None, [([], tftp(name))])?;
        }
        Ok(())
    }
}

impl KernelMeasures {
    fn hooks(&self) -> [(Hook, &HookCounters); 2] {
        [(Hook::Xdp, &self.counters.xdp), (Hook::Tc, &self.counters.tc)]
    }

    fn write(&self, families: &mut Families<'_>) -> fmt::Result {
        for (name, help, counter) in [
            ("kernel_replies", "Frames with blocks of files that the kernel programs sent.", "replies"),
            ("kernel_dhcp_offers", "DHCPOFFERs that the kernel programs sent.", "dhcp-offers"),
            ("kernel_dhcp_acks", "DHCPACKs that the kernel programs sent.", "dhcp-acks"),
            ("kernel_events_lost", "What the programs did and the daemon was not told.", "events-lost"),
        ] {
            let samples = self.hooks().into_iter().filter_map(|(hook, counters)| {
                Some(([("tier", hook.name().to_owned())], *counters.get(counter)?))
            });
            families.counter(name, help, None, samples)?;
        }
        let help = "Frames that need no answer, by reason.";
        families.counter("kernel_dropped_frames", help, None, self.by_reason(Drop::NAMES))?;
        let help = "Frames that the kernel programs left to the next one or to the daemon, by reason.";
        families.counter("kernel_passed_frames", help, None, self.by_reason(Pass::NAMES))?;
        let help = "Contents of files that the kernel programs have.";
        families.gauge("kernel_published", help, Some(Unit::Bytes), [([], self.published_bytes)])
    }

    fn by_reason(&self, reasons: &'static [&'static str]) -> impl Iterator<Item = (Labels<2>, u64)> {
        self.hooks().into_iter().flat_map(move |(hook, counters)| {
            reasons.iter().filter_map(move |reason| {
                let labels = [("tier", hook.name().to_owned()), ("reason", (*reason).to_owned())];
                Some((labels, *counters.get(reason)?))
            })
        })
    }
}

type Labels<const N: usize> = [(&'static str, String); N];

/// Writes families, one after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn counter<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl IntoIterator<Item = (Labels<N>, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        for (labels, value) in samples {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauge<const N: usize, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl IntoIterator<Item = (Labels<N>, V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        for (labels, value) in samples {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// A family of type info: labels with the value 1.
    fn info<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Labels<N>>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Info)?;
        samples.into_iter().try_for_each(|labels| family.encode_info(&labels))
    }
}
