//! Any JSON document as a page shows it: names and values, lists of objects as tables. Pure.

use maud::{Markup, html};
use serde_json::{Map, Value};

use super::words::said;
use crate::base::table::size;

/// Entries of a list, and how deep values are shown. Machines write some of these documents.
const ENTRIES_MAX: usize = 256;
const DEPTH_MAX: usize = 6;

pub(super) fn document(value: &Value) -> Markup {
    shown("", value, 0)
}

fn shown(key: &str, value: &Value, depth: usize) -> Markup {
    if depth > DEPTH_MAX {
        return html! { "…" };
    }
    match value {
        Value::Null => html! { "-" },
        Value::Bool(true) => html! { "yes" },
        Value::Bool(false) => html! { "no" },
        Value::Number(number) => html! { (figure(key, number)) },
        Value::String(text) => html! { (said(text)) },
        Value::Array(entries) if entries.is_empty() => html! { "none" },
        Value::Array(entries) if entries.iter().all(Value::is_object) => table(entries, depth),
        Value::Array(entries) => html! {
            ul.plain { @for entry in entries.iter().take(ENTRIES_MAX) { li { (shown(key, entry, depth + 1)) } } }
        },
        Value::Object(fields) => html! {
            dl.fields {
                @for (name, value) in fields.iter().take(ENTRIES_MAX) {
                    dt { (said(&named(name))) }
                    dd { (shown(name, value, depth + 1)) }
                }
            }
        },
    }
}

/// A column for each key that an entry has, in the order in which they come.
fn table(entries: &[Value], depth: usize) -> Markup {
    let objects: Vec<&Map<String, Value>> =
        entries.iter().take(ENTRIES_MAX).filter_map(Value::as_object).collect();
    let mut columns: Vec<&String> = Vec::new();
    for column in objects.iter().flat_map(|object| object.keys()) {
        if !columns.contains(&column) && columns.len() < 16 {
            columns.push(column);
        }
    }
    html! {
        .scroll {
            table.small {
                thead { tr { @for column in &columns { th scope="col" { (said(&named(column))) } } } }
                tbody {
                    @for object in objects {
                        tr { @for column in &columns {
                            td { @if let Some(value) = object.get(*column) { (shown(column, value, depth + 1)) } }
                        } }
                    }
                }
            }
        }
    }
}

fn named(key: &str) -> String {
    key.replace('-', " ")
}

/// Bytes where the key says that it is bytes: the API has sizes in bytes everywhere.
fn figure(key: &str, number: &serde_json::Number) -> String {
    let is_size =
        ["size", "bytes", "total", "capacity"].iter().any(|word| key.split('-').any(|part| part == *word));
    match number.as_u64().filter(|n| is_size && *n >= 1024) {
        Some(bytes) => size(bytes),
        None => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_names_values_and_tables() {
        let shown = document(&json!({
            "system": { "vendor": "<QEMU>", "serial": null, "secure-boot": false },
            "disks": [{ "name": "sda", "size": 2_147_483_648u64 }, { "name": "sdb", "wear": 3 }],
            "flags": ["a\u{1b}", "b"],
            "tpm": [],
        }))
        .into_string();
        for part in [
            "<dt>vendor</dt><dd>&lt;QEMU&gt;</dd>",
            "<dt>secure boot</dt><dd>no</dd>",
            "<td>2.0 GiB</td>",
            "<th scope=\"col\">wear</th>",
            "<li>a^[</li>",
            "<dt>tpm</dt><dd>none</dd>",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        let mut deep = json!("end");
        for _ in 0..100 {
            deep = json!({ "a": deep });
        }
        assert!(!document(&deep).into_string().contains("end"));
    }
}
