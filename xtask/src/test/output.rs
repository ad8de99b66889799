//! Parses libtest's output: how each test ended, and what it printed.

/// A test's result, if the line is one.
pub(super) fn end(line: &str) -> Option<(&str, bool)> {
    let (name, end) = line.strip_prefix("test ")?.split_once(" ... ")?;
    match end {
        "ok" => Some((name, true)),
        "FAILED" => Some((name, false)),
        // Ignored, with the reason in its source.
        _ => None,
    }
}

/// After this line comes the output of each test, which may contain another test program's output.
pub(super) fn is_end_of_results(line: &str) -> bool {
    matches!(line, "successes:" | "failures:")
}

/// The tests that report that they were skipped, completely or in part, with the reason. Before the first test's output
/// the program itself reports.
pub(super) fn skipped(output: &str) -> Vec<(&str, &str)> {
    let (mut test, mut skipped) = ("all of it", Vec::new());
    for line in output.lines() {
        let heading = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        test = heading.unwrap_or(test);
        if line.starts_with("skipped") {
            skipped.push((test, line));
        }
    }
    skipped
}

/// What a lab test reports of itself (`lab::world::test`), in seconds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Took {
    pub(super) test: String,
    /// From when it had its resources.
    pub(super) seconds: f64,
    /// Processor time, if it came to its end.
    pub(super) processor: Option<f64>,
}

pub(super) fn took(output: &str) -> impl Iterator<Item = Took> {
    output.lines().filter_map(|line| {
        let (test, rest) = line.split_once(": ")?;
        let (seconds, rest) = rest.split_once(" s, ")?;
        let (processor, rest) = rest.split_once(" s of a processor, after ")?;
        rest.ends_with(" s of waiting for its share of the machine").then_some(())?;
        Some(Took {
            test: test.to_owned(),
            seconds: seconds.parse().ok()?,
            processor: processor.parse().ok(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 3 tests
test tests::a ... ok
test b ... FAILED
test c ... ignored, takes minutes

successes:

---- tests::a stdout ----
skipped: tshark is not installed
a word

successes:
    tests::a
";

    #[test]
    fn ends_and_skips_are_found() {
        let ends: Vec<_> =
            OUTPUT.lines().take_while(|line| !is_end_of_results(line)).filter_map(end).collect();
        assert_eq!(ends, [("tests::a", true), ("b", false)]);
        assert_eq!(skipped(OUTPUT), [("tests::a", "skipped: tshark is not installed")]);
        let end = "after 0.1 s of waiting for its share of the machine";
        let said = format!(
            "a: b\nstorage: 9.7 s, 3.2 s of a processor, {end}\nc: 1.0 s, ? s of a processor, {end}\n"
        );
        let all: Vec<_> = took(&said).map(|t| (t.test, t.seconds, t.processor)).collect();
        assert_eq!(all, [("storage".to_owned(), 9.7, Some(3.2)), ("c".to_owned(), 1.0, None)]);
        assert_eq!(skipped("skipped: no root\n"), [("all of it", "skipped: no root")]);
    }
}
