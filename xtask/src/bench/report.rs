//! A benchmark's report: tables, and whether the goals are met. On the terminal, as a picture in `target/bench`, and
//! in docs/performance.md on request.

use std::fmt::{self, Display, Write as _};
use std::fs;

use anyhow::{Context as _, Result};
use jiff::Zoned;

use super::picture;
use super::samples::shown;

pub(super) struct Report {
    /// The benchmark's name.
    pub(super) name: &'static str,
    pub(super) tables: Vec<Table>,
    pub(super) goals: Vec<Goal>,
    /// What a reader must know to judge the numbers.
    pub(super) notes: Vec<String>,
}

pub(super) struct Table {
    pub(super) caption: String,
    /// The columns, and whether the picture has them.
    pub(super) heads: Vec<(&'static str, bool)>,
    pub(super) groups: Vec<Group>,
}

/// Rows that are compared with one another.
pub(super) struct Group {
    pub(super) title: String,
    /// Name, and a value for each column.
    pub(super) rows: Vec<(String, Vec<Option<f64>>)>,
}

/// A goal of the documentation.
pub(super) struct Goal {
    pub(super) what: String,
    /// `None` if it was not measured.
    pub(super) value: Option<f64>,
    pub(super) bound: Bound,
}

#[derive(Clone, Copy)]
pub(super) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Report {
    /// Prints everything and draws the picture; with `update_docs` also for docs/performance.md.
    pub(super) fn publish(&self, update_docs: bool) -> Result<()> {
        for table in &self.tables {
            println!("\n{}", table.caption);
            table.groups.iter().for_each(|group| print!("\n{}", table.text(group)));
        }
        if !self.goals.is_empty() {
            println!("\ngoals, by medians of pairs");
            self.goals.iter().for_each(|goal| println!("  {goal}"));
        }
        self.notes.iter().for_each(|note| println!("\nnote: {note}"));
        let svg = picture::draw(&self.tables)?;
        let name = self.name;
        fs::write(::lab::target().join(format!("bench/{name}.svg")), &svg)?;
        println!("\nraw samples in target/bench/{name}.json, a picture in target/bench/{name}.svg");
        if update_docs {
            let docs = ::lab::workspace().join("docs");
            fs::create_dir_all(docs.join("performance"))?;
            fs::write(docs.join(format!("performance/{name}.svg")), svg)?;
            let page = docs.join("performance.md");
            let text = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
            let text = with_section(&text, name, &self.markdown()?)
                .with_context(|| format!("{} has no section for `bench {name}`", page.display()))?;
            fs::write(&page, text)?;
            println!("docs/performance.md has these numbers now");
        }
        Ok(())
    }

    fn markdown(&self) -> Result<String> {
        let words = std::env::args().skip(2).filter(|word| word != "--update-docs");
        let command =
            std::iter::once("cargo xtask bench".to_owned()).chain(words).collect::<Vec<_>>().join(" ");
        let mut text = format!(
            "`{command}`, {}, {}.\n\n![{name}](performance/{name}.svg)\n",
            Zoned::now().date(),
            machine()?,
            name = self.name
        );
        for note in &self.notes {
            writeln!(text, "\nNote: {note}.")?;
        }
        if !self.goals.is_empty() {
            text.push_str("\n| measure | median | goal | |\n| --- | --- | --- | --- |\n");
        }
        for goal in &self.goals {
            let value = goal.value.map_or("-".into(), shown);
            writeln!(text, "| {} | {value} | {} | {} |", goal.what, goal.bound, goal.verdict())?;
        }
        for table in &self.tables {
            writeln!(text, "\n{}\n\n{}", table.caption, table.markdown())?;
        }
        Ok(text)
    }
}

impl Table {
    fn text(&self, group: &Group) -> String {
        let width = 2 + group.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max(14);
        let heads: String = self.heads.iter().map(|(head, _)| format!("{head:>11}")).collect();
        let mut text = format!("{}\n{:width$}{heads}\n", group.title, "");
        for (name, values) in &group.rows {
            let values: String =
                values.iter().map(|v| format!("{:>11}", v.map_or("-".into(), shown))).collect();
            text += &format!("  {name:w$}{values}\n", w = width - 2);
        }
        text
    }

    fn markdown(&self) -> String {
        let mut text = String::from("| |");
        self.heads.iter().for_each(|(head, _)| text += &format!(" {head} |"));
        text += "\n|";
        text += &" --- |".repeat(self.heads.len() + 1);
        for Group { title, rows } in &self.groups {
            text += &format!("\n| **{title}** |{}", " |".repeat(self.heads.len()));
            for (name, values) in rows {
                text += &format!("\n| {name} |");
                values.iter().for_each(|v| text += &format!(" {} |", v.map_or("-".into(), shown)));
            }
        }
        text
    }
}

impl Goal {
    pub(super) fn new(what: &str, value: Option<f64>, bound: Bound) -> Self {
        Self { what: what.to_owned(), value, bound }
    }

    fn verdict(&self) -> &'static str {
        let met = self.value.map(|value| match self.bound {
            Bound::AtLeast(least) => value >= least,
            Bound::AtMost(most) => value <= most,
        });
        match met {
            None => "not measured",
            Some(true) => "met",
            Some(false) => "NOT MET",
        }
    }
}

impl Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value.map_or("-".into(), shown);
        write!(f, "{}: {value} (goal: {}): {}", self.what, self.bound, self.verdict())
    }
}

impl Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "at least {least}"),
            Self::AtMost(most) => write!(f, "at most {most}"),
        }
    }
}

/// The page with new text between a benchmark's marks, if it has these.
fn with_section(page: &str, name: &str, section: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- bench {name} -->\n"), format!("<!-- end of bench {name} -->"));
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}{section}{end}{after}"))
}

/// The machine on which the numbers were measured.
fn machine() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
    let values = |name: &str| {
        let of = |line: &str| line.strip_prefix(name)?.split_once(": ").map(|(_, value)| value.to_owned());
        cpus.lines().filter_map(of).collect::<Vec<_>>()
    };
    let model = values("model name").first().cloned().unwrap_or_else(|| std::env::consts::ARCH.into());
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
    let release: Vec<_> = release.split('.').take(2).collect();
    Ok(format!("{model}, {} CPUs, Linux {}", values("processor").len(), release.join(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_met_from_their_bound_on() {
        let verdict = |value, bound| Goal::new("x", value, bound).verdict();
        assert_eq!(verdict(Some(12.0), Bound::AtLeast(12.0)), "met");
        assert_eq!(verdict(Some(11.9), Bound::AtLeast(12.0)), "NOT MET");
        assert_eq!(verdict(Some(1.25), Bound::AtMost(1.25)), "met");
        assert_eq!(verdict(Some(1.26), Bound::AtMost(1.25)), "NOT MET");
        assert_eq!(verdict(None, Bound::AtMost(1.25)), "not measured");
    }

    #[test]
    fn only_the_benchmarks_own_section_changes() {
        let page = "a\n<!-- bench x -->\nold\n<!-- end of bench x -->\nb <!-- bench y -->";
        let new = with_section(page, "x", "new\n").unwrap();
        assert_eq!(new, "a\n<!-- bench x -->\nnew\n<!-- end of bench x -->\nb <!-- bench y -->");
        assert_eq!(with_section(page, "y", "new"), None);
    }

    #[test]
    fn the_page_has_a_section_for_every_benchmark() {
        let page = fs::read_to_string(::lab::workspace().join("docs/performance.md")).unwrap();
        for name in ["boot", "tftp", "dhcp", "limit", "storm"] {
            assert!(with_section(&page, name, "").is_some(), "{name}");
        }
    }
}
