//! Conditional requests (RFC 9110 section 13). Pure.

use axum::http::HeaderName;
use axum::http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE};
use jiff::Timestamp;
use jiff::fmt::rfc2822::{DateTimeParser, DateTimePrinter};

/// Returns the value of a header of the request, if present.
type Header<'h, H> = &'h H;

/// Whether the request's preconditions hold; otherwise the answer is 412.
pub(super) fn hold<'h, H>(header: Header<'_, H>, etag: &str, modified: Option<Timestamp>) -> bool
where
    H: Fn(HeaderName) -> Option<&'h str>,
{
    match (header(IF_MATCH), header(IF_UNMODIFIED_SINCE).and_then(read)) {
        // A weak tag is never equal to ours, which are strong (section 8.8.3.2).
        (Some(tags), _) => each(tags).any(|tag| tag == "*" || tag == etag),
        (None, Some(since)) => modified.is_none_or(|modified| modified <= since),
        (None, None) => true,
    }
}

/// Whether the client has the present representation already: then the answer is 304.
pub(super) fn is_unchanged<'h, H>(header: Header<'_, H>, etag: &str, modified: Option<Timestamp>) -> bool
where
    H: Fn(HeaderName) -> Option<&'h str>,
{
    match (header(IF_NONE_MATCH), header(IF_MODIFIED_SINCE).and_then(read)) {
        // Compared weakly (section 13.1.2).
        (Some(tags), _) => each(tags).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag),
        (None, Some(since)) => modified.is_some_and(|modified| modified <= since),
        (None, None) => false,
    }
}

/// Whether the client's partial copy, by the validator of If-Range, is of the present representation.
pub(super) fn is_current(validator: &str, etag: &str, modified: Option<Timestamp>) -> bool {
    validator == etag || modified.is_some_and(|modified| read(validator) == Some(modified))
}

/// A time in HTTP's format, in whole seconds.
pub(super) fn written(time: Timestamp) -> Option<String> {
    DateTimePrinter::new().timestamp_to_rfc9110_string(&time).ok()
}

fn read(date: &str) -> Option<Timestamp> {
    DateTimeParser::new().parse_timestamp(date).ok()
}

fn each(tags: &str) -> impl Iterator<Item = &str> {
    tags.split(',').map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETAG: &str = "\"ab-1\"";
    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";

    fn judged(sent: &[(HeaderName, &'static str)]) -> (bool, bool) {
        let header = |name: HeaderName| sent.iter().find(|(sent, _)| *sent == name).map(|(_, value)| *value);
        let modified = read(DATE);
        assert!(modified.is_some());
        (hold(&header, ETAG, modified), is_unchanged(&header, ETAG, modified))
    }

    #[test]
    fn of_a_file_with_a_tag_and_a_date() {
        for (sent, holds, unchanged) in [
            (&[][..], true, false),
            (&[(IF_MATCH, "\"x\", \"ab-1\"")], true, false),
            (&[(IF_MATCH, "*")], true, false),
            (&[(IF_MATCH, "\"x\"")], false, false),
            (&[(IF_MATCH, "W/\"ab-1\"")], false, false),
            (&[(IF_MATCH, "\"x\""), (IF_UNMODIFIED_SINCE, DATE)], false, false),
            (&[(IF_UNMODIFIED_SINCE, DATE)], true, false),
            (&[(IF_UNMODIFIED_SINCE, BEFORE)], false, false),
            (&[(IF_UNMODIFIED_SINCE, "yesterday")], true, false),
            (&[(IF_NONE_MATCH, "\"ab-1\"")], true, true),
            (&[(IF_NONE_MATCH, "W/\"ab-1\"")], true, true),
            (&[(IF_NONE_MATCH, "\"x\""), (IF_MODIFIED_SINCE, DATE)], true, false),
            (&[(IF_MODIFIED_SINCE, DATE)], true, true),
            (&[(IF_MODIFIED_SINCE, BEFORE)], true, false),
        ] {
            assert_eq!(judged(sent), (holds, unchanged), "{sent:?}");
        }
        assert!(is_current(ETAG, ETAG, None) && is_current(DATE, ETAG, read(DATE)));
        assert!(!is_current(BEFORE, ETAG, read(DATE)) && !is_current("W/\"ab-1\"", ETAG, read(DATE)));
        assert_eq!(read(DATE).and_then(written).as_deref(), Some(DATE));
    }
}
