//! Checks that a `match` on an enum of ours names every variant, so that whoever adds one is led to each place that
//! depends on it. A `match` with only one other arm asks for one variant, as `if let` does, and is allowed.
//!
//! clippy's `wildcard_enum_match_arm` requires the same for all enums, including errno with its 130 values.

use std::collections::{BTreeMap, BTreeSet};

use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};
use syn::{ExprMatch, Item, Pat, Path};

use super::source::{Source, is_for_tests};

/// A wildcard arm has this in the line before it, with a reason.
const EXCUSE: &str = "// The rest: ";

/// Enums and their variants, by name. Two enums with the same name are treated as one.
type Enums = BTreeMap<String, BTreeSet<String>>;

pub(crate) fn check(sources: &[Source]) -> Vec<String> {
    let mut declared = Declared::default();
    for source in sources {
        source.items.iter().for_each(|item| declared.visit_item(item));
    }
    let mut broken = Vec::new();
    for source in sources.iter().filter(|source| !source.is_test) {
        let mut matches = Matches { source, enums: &declared.0, own: Vec::new(), broken: &mut broken };
        source.items.iter().for_each(|item| matches.visit_item(item));
    }
    broken
}

#[derive(Default)]
struct Declared(Enums);

impl<'ast> Visit<'ast> for Declared {
    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        let variants = item.variants.iter().map(|variant| variant.ident.to_string());
        self.0.entry(item.ident.to_string()).or_default().extend(variants);
    }
}

struct Matches<'a> {
    source: &'a Source,
    enums: &'a Enums,
    /// The types that `Self` stands for, innermost last.
    own: Vec<String>,
    broken: &'a mut Vec<String>,
}

impl<'ast> Visit<'ast> for Matches<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !matches!(item, Item::Mod(module) if is_for_tests(&module.attrs)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let own = match &*item.self_ty {
            syn::Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
            _ => None,
        };
        self.own.push(own.unwrap_or_default());
        visit::visit_item_impl(self, item);
        self.own.pop();
    }

    fn visit_expr_match(&mut self, found: &'ast ExprMatch) {
        self.judge(found);
        visit::visit_expr_match(self, found);
    }
}

impl Matches<'_> {
    fn judge(&mut self, found: &ExprMatch) {
        let Some(name) = found.arms.iter().find_map(|arm| self.ours(&arm.pat)) else { return };
        if found.arms.len() == 2 {
            return;
        }
        for arm in found.arms.iter().filter(|arm| arm.guard.is_none() && is_for_the_rest(&arm.pat)) {
            let line = arm.pat.span().start().line;
            let before = self.source.text.lines().nth(line.saturating_sub(2)).unwrap_or_default();
            if !before.contains(EXCUSE) {
                let file = self.source.file.display();
                self.broken.push(format!(
                    "{file}:{line}: name the rest of {name}, or say why not in a line `{EXCUSE}…` before it"
                ));
            }
        }
    }

    /// Our enum that a pattern belongs to.
    fn ours(&self, pattern: &Pat) -> Option<String> {
        match pattern {
            Pat::Or(or) => or.cases.iter().find_map(|case| self.ours(case)),
            Pat::Reference(reference) => self.ours(&reference.pat),
            Pat::Paren(paren) => self.ours(&paren.pat),
            Pat::Ident(ident) => self.ours(&ident.subpat.as_ref()?.1),
            Pat::Path(path) => self.variant_of(&path.path),
            Pat::TupleStruct(tuple) => self.variant_of(&tuple.path),
            Pat::Struct(fields) => self.variant_of(&fields.path),
            _ => None,
        }
    }

    fn variant_of(&self, path: &Path) -> Option<String> {
        let mut segments = path.segments.iter().rev().map(|segment| segment.ident.to_string());
        let (variant, name) = (segments.next()?, segments.next()?);
        let name = if name == "Self" { self.own.last()?.clone() } else { name };
        self.enums.get(&name)?.contains(&variant).then_some(name)
    }
}

fn is_for_the_rest(pattern: &Pat) -> bool {
    match pattern {
        Pat::Wild(_) => true,
        Pat::Ident(ident) => {
            ident.subpat.is_none() && ident.ident.to_string().starts_with(char::is_lowercase)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::lint::source;

    fn of(arms: &str) -> Vec<String> {
        let text = format!(
            "enum Tier {{ Xdp, Tc, Daemon }}\nfn f(tier: Tier) {{\n    match tier {{\n{arms}\n    }}\n}}\n"
        );
        check(&[source::parse(Path::new("a.rs"), text).unwrap()])
    }

    #[test]
    fn an_arm_for_the_rest_of_an_enum_of_ours_is_named() {
        assert_eq!(of("Tier::Xdp => {}\nTier::Tc => {}\n_ => {}").len(), 1);
        assert!(
            of("Tier::Xdp => {}\nTier::Tc => {}\nother => {}")[0]
                .starts_with("a.rs:6: name the rest of Tier")
        );
    }

    #[test]
    fn guards_reasons_others_enums_and_one_question_are_none() {
        assert_eq!(of("Tier::Xdp => {}\n_ => {}"), [""; 0]);
        assert_eq!(of("Tier::Xdp => {}\n_ if g() => {}\nTier::Tc | Tier::Daemon => {}"), [""; 0]);
        assert_eq!(of("Tier::Xdp => {}\nTier::Tc => {}\n// The rest: a hundred more.\n_ => {}"), [""; 0]);
        assert_eq!(of("ErrorKind::NotFound => {}\nErrorKind::Other => {}\n_ => {}"), [""; 0]);
    }
}
