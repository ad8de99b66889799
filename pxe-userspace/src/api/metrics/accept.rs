//! Which format a client prefers: RFC 9110 section 12.5.1, for two formats.

use axum::http::{HeaderMap, header};

use super::Format;

/// OpenMetrics for whoever prefers it, as Prometheus does, and plain text for all others.
pub(super) fn preferred(headers: &HeaderMap) -> Format {
    let lines = headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
    let ranges: Vec<Range<'_>> = lines.flat_map(|line| line.split(',')).filter_map(Range::parse).collect();
    let open_metrics = quality(&ranges, ["application/openmetrics-text", "application/*", "*/*"], "1.0.0");
    let text = quality(&ranges, ["text/plain", "text/*", "*/*"], "0.0.4");
    if open_metrics > text { Format::OpenMetrics } else { Format::Text }
}

/// A format's quality value: that of the most specific range that includes it.
fn quality(ranges: &[Range<'_>], names: [&str; 3], version: &str) -> f32 {
    names
        .iter()
        .find_map(|name| {
            let fits = |range: &&Range<'_>| {
                range.name.eq_ignore_ascii_case(name) && range.version.is_none_or(|v| v == version)
            };
            ranges.iter().filter(fits).map(|range| range.quality).max_by(f32::total_cmp)
        })
        .unwrap_or_default()
}

struct Range<'a> {
    name: &'a str,
    version: Option<&'a str>,
    quality: f32,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let mut range = Self { name: parts.next()?, version: None, quality: 1.0 };
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            match key.trim().to_ascii_lowercase().as_str() {
                "version" => range.version = Some(value.trim().trim_matches('"')),
                "q" => range.quality = value.trim().parse().ok()?,
                _ => {}
            }
        }
        Some(range)
    }
}
