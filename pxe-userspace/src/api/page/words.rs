//! Values as people read them on a page. Pure.

use jiff::Timestamp;

use crate::base::text;

/// Untrusted text, with its escapes made visible. HTML's own characters are escaped where it is put into a page.
pub(super) fn said(text: &str) -> String {
    text::visible(text)
}

/// A time in UTC: of today, the time of day; of another day, its date, too.
pub(super) fn when(time: Timestamp, now: Timestamp) -> String {
    let day = |time: Timestamp| time.strftime("%F").to_string();
    let form = if day(time) == day(now) { "%H:%M:%S" } else { "%F %H:%M" };
    time.strftime(form).to_string()
}

/// A time as machines read it.
pub(super) fn exactly(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// Seconds, as `850 ms`, `12.3 s`, `4 min 10 s`.
pub(super) fn lasting(seconds: f64) -> String {
    match seconds {
        s if s < 0.9995 => format!("{:.0} ms", s * 1000.0),
        s if s < 99.95 => format!("{s:.1} s"),
        s => format!("{} min {} s", (s / 60.0) as u64, s as u64 % 60),
    }
}

/// `1 machine`, `1,000 machines`.
pub(super) fn machines(count: usize) -> String {
    format!("{} {}", number(count), if count == 1 { "machine" } else { "machines" })
}

/// With commas between thousands.
pub(super) fn number(count: usize) -> String {
    let digits = count.to_string();
    let head = digits.len() % 3;
    let groups = digits.as_bytes()[head..].chunks(3).map(|group| String::from_utf8_lossy(group).into_owned());
    let head = Some(digits[..head].to_owned()).filter(|head| !head.is_empty());
    head.into_iter().chain(groups).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_people_read_it() {
        assert_eq!([0, 7, 999, 1000, 1_234_567].map(number), ["0", "7", "999", "1,000", "1,234,567"]);
        assert_eq!(machines(1), "1 machine");
        assert_eq!([0.0123, 0.9999, 12.34, 250.0].map(lasting), ["12 ms", "1.0 s", "12.3 s", "4 min 10 s"]);
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let now = at("2026-01-05T10:00:02.104233Z");
        assert_eq!(when(now, now), "10:00:02");
        assert_eq!(when(at("2026-01-04T23:59:59Z"), now), "2026-01-04 23:59");
        assert_eq!(exactly(now), "2026-01-05T10:00:02.104233Z");
        assert_eq!(said("a\u{1b}[2J<b>"), "a^[[2J<b>");
    }
}
