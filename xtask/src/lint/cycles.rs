//! Checks that the daemon's modules have no cycles, so that each can be read after those that it uses. A room is a
//! module of a wing, or a top-level module on its own.

use std::collections::BTreeMap;

use syn::visit::{self, Visit};
use syn::{Item, UseTree};

use super::source::{Source, is_for_tests};

const DAEMON: &str = "pxe-userspace/src";

/// Modules that contain rooms. Every other top-level module is itself a room.
const WINGS: [&str; 6] = ["serve", "provision", "machines", "operate", "nodes", "host"];

/// The rooms that each room uses, with a file that uses it.
type Uses = BTreeMap<String, BTreeMap<String, String>>;

/// One line for every two rooms of a cycle.
pub(crate) fn check(sources: &[Source]) -> Vec<String> {
    let uses = uses(sources);
    let mut broken = Vec::new();
    for (room, used) in &uses {
        for (other, file) in used {
            if reaches(&uses, other, room) {
                broken.push(format!(
                    "{DAEMON}/{file}: {room} uses {other}, and that uses {room}, perhaps by others"
                ));
            }
        }
    }
    broken
}

fn uses(sources: &[Source]) -> Uses {
    let mut uses = Uses::new();
    for source in sources.iter().filter(|source| !source.is_test) {
        let Ok(file) = source.file.strip_prefix(DAEMON) else { continue };
        let parts: Vec<String> =
            file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
        let module: Vec<String> = parts.into_iter().filter(|part| part != "mod").collect();
        let own = room(&module.iter().map(String::as_str).collect::<Vec<_>>());
        let mut paths = Paths { module, found: Vec::new() };
        source.items.iter().for_each(|item| paths.visit_item(item));
        for path in paths.found {
            let used = room(&path.iter().map(String::as_str).collect::<Vec<_>>());
            // A wing's own names belong to the room of the same name.
            if used != own && !used.is_empty() && !own.is_empty() {
                uses.entry(own.clone()).or_default().entry(used).or_insert(file.display().to_string());
            }
        }
    }
    uses
}

/// The room that a path in the crate leads to.
fn room(path: &[&str]) -> String {
    match path {
        [] | ["lib" | "main", ..] => String::new(),
        [wing, room, ..] if WINGS.contains(wing) && room.starts_with(char::is_lowercase) => {
            format!("{wing}/{room}")
        }
        // `machines::Machine` belongs to the register.
        ["machines", ..] => "machines/register".to_owned(),
        // A wing only lists its rooms.
        [wing, ..] if WINGS.contains(wing) => String::new(),
        [room, ..] => (*room).to_owned(),
    }
}

fn reaches(uses: &Uses, from: &str, to: &str) -> bool {
    let (mut seen, mut next) = (vec![from], vec![from]);
    while let Some(room) = next.pop() {
        for used in uses.get(room).into_iter().flat_map(BTreeMap::keys) {
            if used == to {
                return true;
            }
            if !seen.contains(&used.as_str()) {
                seen.push(used);
                next.push(used);
            }
        }
    }
    false
}

/// Every path that begins with `crate` or `super`, from the crate's root.
struct Paths {
    /// The file's module. Inner modules of a file count as the file.
    module: Vec<String>,
    found: Vec<Vec<String>>,
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_for_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.add(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.leaves(&item.tree, &mut Vec::new());
    }
}

impl Paths {
    fn leaves(&mut self, tree: &UseTree, before: &mut Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.leaves(&path.tree, before);
                before.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.leaves(tree, before)),
            UseTree::Name(name) => self.add([&before[..], &[name.ident.to_string()]].concat()),
            UseTree::Rename(name) => self.add([&before[..], &[name.ident.to_string()]].concat()),
            UseTree::Glob(_) => self.add(before.clone()),
        }
    }

    fn add(&mut self, path: Vec<String>) {
        let ups = path.iter().take_while(|part| *part == "super").count();
        match path.first().map(String::as_str) {
            Some("crate") => self.found.push(path[1..].to_vec()),
            Some("super") if ups <= self.module.len() => {
                self.found.push([&self.module[..self.module.len() - ups], &path[ups..]].concat());
            }
            _ => {}
        }
    }
}

fn attributes(item: &Item) -> &[syn::Attribute] {
    match item {
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        Item::Const(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::lint::source;

    fn check_all(files: &[(&str, &str)]) -> Vec<String> {
        let parsed = files
            .iter()
            .map(|(file, text)| source::parse(&Path::new(DAEMON).join(file), (*text).to_owned()).unwrap());
        check(&parsed.collect::<Vec<_>>())
    }

    #[test]
    fn a_cycle_is_named_by_both_its_rooms() {
        let found = check_all(&[
            ("serve/dhcp/mod.rs", "use crate::machines::{Machine, timeline::Event};"),
            ("machines/timeline/mod.rs", "fn f() { crate::store::open() }"),
            ("store/mod.rs", "use crate::serve::dhcp::Lease;"),
        ]);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(
            found[0].starts_with("pxe-userspace/src/machines/timeline/mod.rs: machines/timeline uses store")
        );
    }

    #[test]
    fn rooms_of_one_wing_name_each_other_by_super() {
        let found = check_all(&[
            ("provision/planner.rs", "use super::boot::Plan;"),
            ("provision/boot/plan.rs", "fn f() { super::super::planner::plan() }"),
        ]);
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn the_same_room_tests_and_the_way_down_are_none() {
        let found = check_all(&[
            ("serve/dhcp/server.rs", "use crate::serve::dhcp::Lease; use crate::base::text;"),
            ("base/text.rs", "#[cfg(test)] mod tests { use crate::serve::dhcp::Lease; }"),
        ]);
        assert_eq!(found, [""; 0]);
    }
}
