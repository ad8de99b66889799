//! What the benchmarks of one server beside others share: samples, medians, ratios.

use std::time::Duration;
use std::{fs, thread};

use ::lab::load::cpu::Cpus;
use anyhow::Result;
use serde::Serialize;

/// A CPU for the client, the others for this process and the servers that it starts. Says so when the machine
/// is not quiet enough to believe what comes.
pub(super) fn cpus() -> Result<Cpus> {
    let cpus = Cpus::divide()?;
    cpus.leave_to_client()?;
    let meter = cpus.meter()?;
    thread::sleep(Duration::from_secs(1));
    let busy = meter.seconds()?;
    if busy > 0.05 {
        println!(
            "note: this machine is busy ({busy:.2} CPU seconds a second before any load): expect noise\n"
        );
    }
    Ok(cpus)
}

/// The middle of the values, or the mean of the two in the middle.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some((low + high) / 2.0)
}

/// Writes raw samples to `target/bench/NAME.json`.
pub(super) fn save(name: &str, samples: &impl Serialize) -> Result<()> {
    let dir = ::lab::target().join("bench");
    fs::create_dir_all(&dir)?;
    Ok(fs::write(dir.join(format!("{name}.json")), serde_json::to_vec_pretty(samples)?)?)
}

/// A number for a table's column, `-` for none.
pub(super) fn column(value: Option<f64>) -> String {
    match value {
        None => format!("{:>10}", "-"),
        Some(value) if value >= 1000.0 => format!("{value:>10.0}"),
        Some(value) if value >= 10.0 => format!("{value:>10.1}"),
        Some(value) => format!("{value:>10.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0]), Some(3.0));
        assert_eq!(median([4.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0]), Some(2.5));
    }
}
