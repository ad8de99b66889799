//! How much is sent, over the last minutes, as a picture that the server draws. Pure.

use std::collections::VecDeque;
use std::fmt::Write as _;

use maud::{Markup, html};
use serde_json::{Value, json};

use crate::base::table::size;

/// Samples of the picture.
pub(super) const SAMPLES: usize = 150;
/// Seconds between two of them.
pub(super) const EVERY: u64 = 2;

const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 96.0;
/// Bytes a second at the top of the picture, at least: noise looks like noise.
const LEAST: f64 = 64.0 * 1024.0;

/// Bytes a second, the newest last.
#[derive(Clone, Debug, Default)]
pub(super) struct Chart {
    rates: VecDeque<f64>,
    /// Bytes sent until the last sample.
    sent: Option<u64>,
}

impl Chart {
    /// Takes the total of what was sent so far. Where that is less than before, somebody began to count anew.
    pub(super) fn sample(&mut self, sent: u64, seconds: f64) {
        if let Some(before) = self.sent.replace(sent) {
            self.rates.push_back(sent.saturating_sub(before) as f64 / seconds.max(0.1));
            if self.rates.len() > SAMPLES {
                self.rates.pop_front();
            }
        }
    }

    fn top(&self) -> f64 {
        let most = self.rates.iter().copied().fold(LEAST, f64::max);
        // A power of two, so that the scale does not change with every sample.
        most.log2().ceil().exp2()
    }

    /// The line's path, from the left edge or from where samples begin.
    fn line(&self) -> String {
        let step = WIDTH / (SAMPLES - 1) as f64;
        let top = self.top();
        let first = SAMPLES - self.rates.len();
        let mut path = String::new();
        for (n, rate) in self.rates.iter().enumerate() {
            let (x, y) = ((first + n) as f64 * step, HEIGHT - rate / top * (HEIGHT - 2.0));
            let command = if n == 0 { 'M' } else { 'L' };
            // Writing to a String can't fail.
            let _ = write!(path, "{command}{x:.0} {y:.1}");
        }
        path
    }

    /// The same, closed below.
    fn area(&self) -> String {
        if self.rates.is_empty() {
            return String::new();
        }
        let first = (SAMPLES - self.rates.len()) as f64 * WIDTH / (SAMPLES - 1) as f64;
        format!("{}V{HEIGHT}H{first:.0}z", self.line())
    }

    fn now(&self) -> String {
        format!("{}/s", size(self.rates.back().copied().unwrap_or(0.0) as u64))
    }

    fn scale(&self) -> String {
        format!("{}/s", size(self.top() as u64))
    }

    /// In words, for who can't see it.
    fn title(&self) -> String {
        let most = self.rates.iter().copied().fold(0.0, f64::max);
        format!("Sent to machines in the last five minutes, at most {}/s", size(most as u64))
    }

    pub(super) fn markup(&self) -> Markup {
        html! {
            p.figure { b id="chart-now" { (self.now()) } " sent to machines" }
            .chart {
                svg role="img" aria-labelledby="chart-title" viewBox={ "0 0 " (WIDTH) " " (HEIGHT) }
                    preserveAspectRatio="none" {
                    title id="chart-title" { (self.title()) }
                    path.grid d={ "M0 .5H" (WIDTH) "M0 " (HEIGHT / 2.0) "H" (WIDTH) "M0 " (HEIGHT - 0.5) "H" (WIDTH) } {}
                    path.area id="chart-area" d=(self.area()) {}
                    path.curve id="chart-line" d=(self.line()) {}
                }
                span.scale aria-hidden="true" id="chart-scale" { (self.scale()) }
            }
            p.axis aria-hidden="true" { span { "5 min ago" } span { "now" } }
        }
    }

    /// What of the picture changes, by the ids of its parts.
    pub(super) fn patch(&self, into: &mut serde_json::Map<String, Value>) {
        into.insert("chart-now".into(), json!({ "text": self.now() }));
        into.insert("chart-scale".into(), json!({ "text": self.scale() }));
        into.insert("chart-title".into(), json!({ "text": self.title() }));
        into.insert("chart-area".into(), json!({ "d": self.area() }));
        into.insert("chart-line".into(), json!({ "d": self.line() }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_ends_at_the_right_edge() {
        let mut chart = Chart::default();
        assert_eq!((chart.line().as_str(), chart.area().as_str()), ("", ""));
        chart.sample(1000, 2.0);
        assert_eq!(chart.line(), "", "one total is no rate");
        chart.sample(1000 + (2 << 20), 2.0);
        assert_eq!((chart.line().as_str(), chart.scale().as_str()), ("M600 2.0", "1.0 MiB/s"));
        chart.sample(500, 2.0);
        assert_eq!(chart.line(), "M596 2.0L600 96.0", "a daemon that began anew sent nothing");
        assert_eq!(chart.area(), "M596 2.0L600 96.0V96H596z");
        for n in 0..2 * SAMPLES as u64 {
            chart.sample(500 + n, 2.0);
        }
        assert_eq!(chart.rates.len(), SAMPLES);
        assert!(chart.line().starts_with("M0 "), "{}", chart.line());
        assert!(chart.markup().into_string().contains("aria-labelledby"));
    }
}
