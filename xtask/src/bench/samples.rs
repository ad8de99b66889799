//! Samples, one record per measurement, and what is computed from them: medians, ratios of pairs.

use std::any::Any;
use std::fmt::Display;
use std::fs;

use ::lab::appliance::Appliance;
use anyhow::{Context as _, Result};
use serde::Serialize;

use super::report::{Group, Table};

/// The appliance's name in tables and samples.
pub(super) const OURS: &str = "Bridgehead";

/// All measurements of one kind: `C` is what was measured, `O` the result.
#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct Samples<C, O: 'static> {
    #[serde(skip)]
    name: &'static str,
    list: Vec<Sample<C, O>>,
    #[serde(skip)]
    columns: &'static [Column<O>],
}

/// One measurement, as `target/bench/NAME.json` keeps it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Sample<C, O> {
    #[serde(flatten)]
    cell: C,
    server: &'static str,
    pair: u32,
    /// The result, or why there is none.
    outcome: Result<Outcome<O>, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Outcome<O> {
    #[serde(flatten)]
    pub(super) load: O,
    /// The kernel programs' share, in percent; only for the appliance.
    pub(super) kernel_percent: Option<f64>,
}

/// A column of the table.
pub(super) struct Column<O> {
    pub(super) head: &'static str,
    /// Whether the picture has it, too.
    pub(super) drawn: bool,
    pub(super) of: fn(&O) -> f64,
}

/// A server that is measured.
pub(super) trait Contender {
    fn name(&self) -> &'static str;
}

impl<C: Copy + PartialEq + Display + Serialize, O: Serialize> Samples<C, O> {
    /// Samples are written to `target/bench/NAME.json`. The first column is the one that is compared.
    pub(super) fn new(name: &'static str, columns: &'static [Column<O>]) -> Self {
        Self { name, list: Vec::new(), columns }
    }

    /// Measures every cell with every contender, in turn. `measure` returns `None` if that is impossible.
    /// A contender that failed is not tried again, and our own failure ends the benchmark.
    pub(super) fn measure<S: Contender>(
        &mut self,
        cells: &[C],
        pairs: u32,
        contenders: &mut [S],
        mut measure: impl FnMut(&mut S, &C, u32) -> Option<Result<Outcome<O>>>,
    ) -> Result<()> {
        for (number, cell) in (1..).zip(cells) {
            println!("{number}/{}  {cell}", cells.len());
            for pair in 1..=pairs {
                for contender in &mut *contenders {
                    self.turn(cell, pair, contender, &mut measure)?;
                }
            }
            save(self.name, self)?;
        }
        Ok(())
    }

    fn turn<S: Contender>(
        &mut self,
        cell: &C,
        pair: u32,
        contender: &mut S,
        measure: &mut impl FnMut(&mut S, &C, u32) -> Option<Result<Outcome<O>>>,
    ) -> Result<()> {
        let server = contender.name();
        if self.of(cell, server).any(|sample| sample.outcome.is_err()) {
            return Ok(());
        }
        let Some(outcome) = measure(contender, cell, pair) else { return Ok(()) };
        let outcome = if server == OURS {
            Ok(outcome.with_context(|| format!("{server}, {cell}"))?)
        } else {
            outcome.map_err(|e| format!("{e:#}"))
        };
        match &outcome {
            Ok(outcome) => {
                let Column { head, of, .. } = self.columns[0];
                println!("    {server}: {} {head}", shown(of(&outcome.load)));
            }
            Err(why) => println!("    {server}: {why}"),
        }
        self.list.push(Sample { cell: *cell, server, pair, outcome });
        Ok(())
    }

    /// The median of a contender's results.
    pub(super) fn median(&self, cell: &C, server: &str, of: fn(&O) -> f64) -> Option<f64> {
        median(self.outcomes(cell, server).map(|(_, outcome)| of(&outcome.load)))
    }

    /// The median of one contender's result over the other's in the same pair.
    pub(super) fn ratio(&self, cell: &C, one: &str, other: &str, of: fn(&O) -> f64) -> Option<f64> {
        median(self.outcomes(cell, one).filter_map(|(pair, one)| {
            let (_, other) = self.outcomes(cell, other).find(|(number, _)| *number == pair)?;
            Some(of(&one.load) / of(&other.load))
        }))
    }

    /// Medians, a row for each server, a group for each cell.
    pub(super) fn table(&self, caption: &str, cells: &[C], servers: &[&'static str]) -> Table {
        let mut heads: Vec<_> = self.columns.iter().map(|column| (column.head, column.drawn)).collect();
        heads.extend([("kernel %", false), ("we/they", false)]);
        let row = |cell: &C, server: &'static str| {
            let mut values: Vec<_> =
                self.columns.iter().map(|column| self.median(cell, server, column.of)).collect();
            let share = self.outcomes(cell, server).filter_map(|(_, outcome)| outcome.kernel_percent);
            values.extend([median(share), self.ratio(cell, OURS, server, self.columns[0].of)]);
            (server.to_owned(), values)
        };
        let group = |cell: &C| Group {
            title: cell.to_string(),
            rows: servers.iter().map(|server| row(cell, server)).collect(),
        };
        Table { caption: caption.to_owned(), heads, groups: cells.iter().map(group).collect() }
    }

    fn of(&self, cell: &C, server: &str) -> impl Iterator<Item = &Sample<C, O>> {
        self.list.iter().filter(move |sample| sample.cell == *cell && sample.server == server)
    }

    fn outcomes(&self, cell: &C, server: &str) -> impl Iterator<Item = (u32, &Outcome<O>)> {
        self.of(cell, server).filter_map(|sample| Some((sample.pair, sample.outcome.as_ref().ok()?)))
    }
}

/// Runs a load on a server and returns the share of the appliance's kernel programs: their `counters` over `done`
/// of the outcome. The counters include what happened before the measurement itself.
pub(super) fn with_kernel_percent<O>(
    server: &dyn Any,
    counters: &[&str],
    done: fn(&O) -> u64,
    load: impl FnOnce() -> Result<O>,
) -> Result<Outcome<O>> {
    let Some(appliance) = server.downcast_ref::<Appliance>() else {
        return Ok(Outcome { load: load()?, kernel_percent: None });
    };
    let count = || -> Result<u64> {
        let status = appliance.json(&["status"])?;
        let value = |hook, name| status["counters"][format!("kernel.{hook}.{name}")].as_u64();
        let names = counters.iter().flat_map(|name| [value("xdp", name), value("tc", name)]);
        Ok(names.flatten().sum())
    };
    let before = count()?;
    let load = load()?;
    let share = (count()? - before) as f64 / done(&load) as f64;
    Ok(Outcome { load, kernel_percent: Some((share * 100.0).min(100.0)) })
}

/// The middle value, or the mean of the two in the middle. NaN means not measured.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some((low + high) / 2.0)
}

/// A number with its significant digits.
pub(super) fn shown(value: f64) -> String {
    match value {
        value if value >= 1000.0 || value == 0.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}

/// Writes raw samples to `target/bench/NAME.json`.
pub(super) fn save(name: &str, samples: &impl Serialize) -> Result<()> {
    let dir = ::lab::target().join("bench");
    fs::create_dir_all(&dir)?;
    Ok(fs::write(dir.join(format!("{name}.json")), serde_json::to_vec_pretty(samples)?)?)
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
        assert_eq!(median([f64::NAN, 1.0, f64::INFINITY]), Some(1.0));
    }

    struct Named(&'static str);

    impl Contender for Named {
        fn name(&self) -> &'static str {
            self.0
        }
    }

    fn samples(results: &[(&'static str, u32, Result<f64, &'static str>)]) -> Result<Samples<u8, f64>> {
        let mut samples = Samples::new("test", &[Column { head: "x/s", drawn: true, of: |x| *x }]);
        for (name, pair, result) in results {
            samples.turn(&1, *pair, &mut Named(name), &mut |_, _, _| {
                let load = result.map_err(anyhow::Error::msg);
                Some(load.map(|load| Outcome { load, kernel_percent: None }))
            })?;
        }
        Ok(samples)
    }

    #[test]
    fn ratios_are_of_pairs() {
        let of = |x: &f64| *x;
        let pairs = [(OURS, 1, Ok(10.0)), ("peer", 1, Ok(1.0)), (OURS, 2, Ok(60.0)), ("peer", 2, Ok(2.0))];
        let samples = samples(&pairs).unwrap();
        assert_eq!(samples.ratio(&1, OURS, "peer", of), Some(20.0));
        assert_eq!(samples.median(&1, OURS, of), Some(35.0));
        assert_eq!(samples.ratio(&2, OURS, "peer", of), None);
    }

    #[test]
    fn a_peers_failure_is_a_result_and_ours_an_error() {
        let failing = samples(&[("peer", 1, Err("no")), ("peer", 2, Ok(1.0))]).unwrap();
        assert_eq!(failing.median(&1, "peer", |x| *x), None, "not tried again");
        assert!(samples(&[(OURS, 1, Err("no"))]).is_err());
    }
}
