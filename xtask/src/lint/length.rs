//! The length of functions.

use proc_macro2::Span;
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

use super::source::{Source, is_for_tests};

/// Maximum lines of a function, including its signature.
const LONGEST: usize = 100;

/// A longer function has this in the line before it, with a reason.
const EXCUSE: &str = "// Long: ";

pub(crate) fn check(sources: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    for source in sources.iter().filter(|source| !source.is_test) {
        let mut functions = Functions { source, broken: &mut broken };
        source.items.iter().for_each(|item| functions.visit_item(item));
    }
    broken
}

struct Functions<'a> {
    source: &'a Source,
    broken: &'a mut Vec<String>,
}

impl Functions<'_> {
    fn judge(&mut self, name: &syn::Ident, whole: Span, begins: Span) {
        let lines = whole.end().line + 1 - begins.start().line;
        if lines <= LONGEST {
            return;
        }
        let before: Vec<_> = self.source.text.lines().take(begins.start().line - 1).collect();
        let mut above = before.iter().rev().take_while(|line| is_above(line));
        if !above.any(|line| line.contains(EXCUSE)) {
            let (file, line) = (self.source.file.display(), begins.start().line);
            self.broken.push(format!(
                "{file}:{line}: {name} has {lines} lines: {LONGEST} at most, or a line `{EXCUSE}why` before it"
            ));
        }
    }
}

/// Whether a line belongs to a function: its comments and attributes.
fn is_above(line: &str) -> bool {
    line.trim_start().starts_with("//") || line.trim_start().starts_with('#')
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_for_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.judge(&function.sig.ident, function.span(), function.sig.span());
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.judge(&function.sig.ident, function.span(), function.sig.span());
        visit::visit_impl_item_fn(self, function);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::lint::source;

    fn of(lines: usize, before: &str) -> Vec<String> {
        let text = format!("{before}fn f() {{\n{}}}\n", "    g();\n".repeat(lines - 2));
        check(&[source::parse(Path::new("a.rs"), text).unwrap()])
    }

    #[test]
    fn long_functions_are_named_unless_they_say_why() {
        assert_eq!(of(LONGEST, ""), [""; 0]);
        assert_eq!(of(LONGEST + 1, "\n").len(), 1);
        assert!(of(LONGEST + 1, "\n")[0].starts_with("a.rs:2: f has 101 lines"));
        assert_eq!(of(LONGEST + 1, "// Long: one step after another.\n#[inline]\n"), [""; 0]);
    }
}
