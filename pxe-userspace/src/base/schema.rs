//! JSON schemas of values whose types come from other crates, for `#[schemars(with = "…")]`. The types of `pxe-contract`
//! are among them, because that crate has serde and nothing else.

use std::borrow::Cow;

use pxe_contract::stage;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::text::word;

/// Declares a type that stands for a schema.
macro_rules! schemas {
    ($($(#[$words:meta])* $name:ident($title:literal) = $schema:expr;)*) => {$(
        $(#[$words])*
        pub enum $name {}

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                $title.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    )*};
}

schemas! {
    /// A MAC address, as [`Mac`](pxe_common::Mac) is written and read.
    Mac("Mac") = json_schema!({
        "description": "A MAC address.",
        "type": "string",
        "pattern": "^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$",
        "examples": ["52:54:00:77:00:01"],
    });
    /// An IPv4 prefix with the host's own address in it ([`Ipv4Net`](ipnet::Ipv4Net)).
    Prefix("Prefix") = json_schema!({
        "description": "An IPv4 address, and the length of its network's prefix.",
        "type": "string",
        "pattern": "^[0-9]{1,3}(\\.[0-9]{1,3}){3}/[0-9]{1,2}$",
        "examples": ["10.77.0.1/24"],
    });
    /// A [`Stage`](stage::Stage) of a boot.
    Stage("Stage") = json_schema!({
        "description": "A stage of a boot. `warning` is none: it says that something needs attention.",
        "type": "string",
        "enum": stage::Stage::ALL.map(word),
    });
    /// [`Firmware`](pxe_common::dhcp::Firmware), as text.
    Firmware("Firmware") = json_schema!({
        "description": "What a machine's firmware said it is, in a word.",
        "type": "string",
        "minLength": 1,
    });
    /// Who wrote a line of a console ([`Source`](pxe_contract::console::Source)).
    Source("Source") = json_schema!({
        "description": "Who wrote the line: the node's kernel, pxe-init, the image's program, or a kernel that crashed.",
        "type": "string",
        "enum": ["kernel", "stage1", "workload", "netconsole"],
    });
    /// What says whether an image's program is healthy ([`HealthCheck`](pxe_contract::image::HealthCheck)).
    HealthCheck("HealthCheck") = json_schema!({
        "description": "A program that says whether the workload is healthy. Times in milliseconds.",
        "type": "object",
        "required": ["argv", "interval", "timeout", "start-period", "retries"],
        "properties": {
            "argv": { "type": "array", "items": { "type": "string" } },
            "interval": { "type": "integer", "minimum": 0 },
            "timeout": { "type": "integer", "minimum": 0 },
            "start-period": { "type": "integer", "minimum": 0 },
            "retries": { "type": "integer", "minimum": 0 },
        },
    });
    /// How many machines of a launch may fail.
    Limit("Limit") = json_schema!({
        "description": "A number of machines, or a share of those of the launch.",
        "anyOf": [
            { "type": "integer", "minimum": 0, "maximum": u32::MAX },
            { "type": "string", "pattern": "^([0-9]{1,9}|([0-9]|[1-9][0-9]|100)%)$" },
        ],
    });
    /// What a machine is made of ([`Facts`](pxe_contract::facts::Facts)).
    Facts("Facts") = json_schema!({
        "description": "What a machine is made of, by part. What it could not say is missing.",
        "type": "object",
    });
    /// The body of every answer that is an error ([`ErrorDocument`](pxe_contract::failure::ErrorDocument)).
    Failure("Failure") = json_schema!({
        "description": "Why a request could not be served.",
        "type": "object",
        "required": ["error", "hint"],
        "properties": {
            "error": { "description": "What is wrong.", "type": "string" },
            "hint": { "description": "What to do.", "type": "string" },
        },
    });
}
