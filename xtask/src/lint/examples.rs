//! Finds examples in comments that rustdoc would run, because `cargo xtask test` does not run rustdoc. Building the
//! daemon's library again, for no example at all, took one and a half minutes of each run.

use super::source::Source;

pub(crate) fn check(sources: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    for source in sources {
        let mut open = false;
        for (number, line) in (1..).zip(source.text.lines()) {
            let line = line.trim_start();
            let comment = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
            let Some(language) = comment.and_then(|text| text.trim().strip_prefix("```")) else { continue };
            if !open && language != "text" {
                let file = source.file.display();
                broken.push(format!(
                    "{file}:{number}: nobody runs an example in a comment: make it a test, or begin it with ```text"
                ));
            }
            open = !open;
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::lint::source;

    #[test]
    fn what_rustdoc_would_run_is_named() {
        let of = |text: &str| check(&[source::parse(Path::new("a.rs"), text.to_owned()).unwrap()]);
        assert_eq!(of("/// ```text\n/// a\n/// ```\nfn f() {}\n"), [""; 0]);
        assert!(
            of("/// ```\n/// assert!(true);\n/// ```\nfn f() {}\n")[0].starts_with("a.rs:1: nobody runs")
        );
        assert_eq!(of("//! ```text\n//! ```\n//! ```rust\n//! ```\n").len(), 1);
    }
}
