//! One module per target: `run` takes bytes, and panics if a promise is broken.

mod carousel_packet;
mod cmdline;
mod config;
mod dhcp_reply;
mod dhcp_request;
mod dhcp_server;
mod http_head;
mod image_archive;
mod image_layer;
mod kernel_package;
mod lldp;
mod range;
mod smbios;
mod tftp_packet;
mod tftp_session;
mod visible;
mod wire;

/// A target.
pub(crate) type Target = fn(&[u8]);

/// All targets by name, which is the name of their file and of their seeds' directory.
pub(crate) const ALL: [(&str, Target); 17] = [
    ("carousel_packet", carousel_packet::run),
    ("cmdline", cmdline::run),
    ("config", config::run),
    ("dhcp_reply", dhcp_reply::run),
    ("dhcp_request", dhcp_request::run),
    ("dhcp_server", dhcp_server::run),
    ("http_head", http_head::run),
    ("image_archive", image_archive::run),
    ("image_layer", image_layer::run),
    ("kernel_package", kernel_package::run),
    ("lldp", lldp::run),
    ("range", range::run),
    ("smbios", smbios::run),
    ("tftp_packet", tftp_packet::run),
    ("tftp_session", tftp_session::run),
    ("visible", visible::run),
    ("wire", wire::run),
];
