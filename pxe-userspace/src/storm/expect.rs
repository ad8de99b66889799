//! `--expect 'p99<60s,failed=0'`: what must hold for exit code 0.

use std::fmt;
use std::str::FromStr;

/// What can be expected of an outcome.
const NAMES: [&str; 9] =
    ["p50", "p90", "p99", "max", "booted", "failed", "retries", "server-retries", "restarts"];

/// Conditions, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expectations(Vec<Expectation>);

#[derive(Clone, Debug, PartialEq)]
struct Expectation {
    name: &'static str,
    comparison: Comparison,
    value: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Less,
    AtMost,
    Equal,
    AtLeast,
    More,
}

impl Expectations {
    /// The conditions that don't hold, in words. A condition on a missing figure does not hold.
    pub(super) fn broken(&self, figure: impl Fn(&str) -> Option<f64>) -> Vec<String> {
        let broken = self.0.iter().filter_map(|expected| {
            let found = figure(expected.name);
            let holds = found.is_some_and(|found| expected.comparison.holds(found, expected.value));
            let found = found.filter(|f| f.is_finite()).map_or("not reached".to_owned(), number);
            (!holds).then(|| format!("{expected} expected, {found}"))
        });
        broken.collect()
    }
}

impl Comparison {
    const ALL: [(&'static str, Self); 5] = [
        // The longer signs first.
        ("<=", Self::AtMost),
        (">=", Self::AtLeast),
        ("<", Self::Less),
        (">", Self::More),
        ("=", Self::Equal),
    ];

    fn holds(self, found: f64, value: f64) -> bool {
        match self {
            Self::Less => found < value,
            Self::AtMost => found <= value,
            Self::Equal => found == value,
            Self::AtLeast => found >= value,
            Self::More => found > value,
        }
    }
}

impl FromStr for Expectations {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(|part| Expectation::parse(part.trim())).collect::<Result<_, _>>().map(Self)
    }
}

impl Expectation {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text:?}: write NAME<VALUE (or <= = >= >), where NAME is one of {}", NAMES.join(", "))
        };
        let at = text.find(['<', '>', '=']).ok_or_else(wrong)?;
        let (name, rest) = text.split_at(at);
        let name = NAMES.into_iter().find(|n| *n == name.trim()).ok_or_else(wrong)?;
        let found = Comparison::ALL.into_iter().find_map(|(sign, c)| Some((c, rest.strip_prefix(sign)?)));
        let (comparison, value) = found.ok_or_else(wrong)?;
        Ok(Self { name, comparison, value: seconds(value.trim()).ok_or_else(wrong)? })
    }
}

/// `60`, `1.5s`, `250ms`, `2m`.
pub(super) fn seconds(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let value = digits.parse::<f64>().ok()? * unit;
    (value.is_finite() && value >= 0.0 && !digits.contains(['e', 'E', '+', '-'])).then_some(value)
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value}") } else { format!("{value:.3}") }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = Comparison::ALL.iter().find(|(_, c)| *c == self.comparison).map_or("", |(s, _)| s);
        write!(f, "{}{sign}{}", self.name, number(self.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_is_judged() {
        let expected: Expectations = "p99<60s, failed=0,max<=1.5m,booted>=10".parse().unwrap();
        let figures = |p99: f64, failed: f64| {
            move |name: &str| match name {
                "p99" => Some(p99),
                "failed" => Some(failed),
                "max" => Some(90.0),
                "booted" => Some(10.0),
                _ => None,
            }
        };
        assert!(expected.broken(figures(59.9, 0.0)).is_empty());
        assert_eq!(
            expected.broken(figures(60.0, 2.0)),
            ["p99<60 expected, 60", "failed=0 expected, 2"],
            "60 is not under 60"
        );
        assert_eq!(expected.broken(figures(f64::INFINITY, 0.0)), ["p99<60 expected, not reached"]);
        assert_eq!("retries=0".parse::<Expectations>().unwrap().broken(|_| None).len(), 1);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in ["", "p99", "p99<", "p98<1", "p99!1", "failed=x", "p99<1y", "p99<-1", "p99<1,", "p99<1e3"]
        {
            assert!(bad.parse::<Expectations>().is_err(), "{bad:?}");
        }
        assert_eq!(seconds("250ms"), Some(0.25));
        assert_eq!(seconds("inf"), None);
        assert_eq!(seconds("NaN"), None);
    }
}
