//! The services for machines: DHCP, and files by TFTP, HTTP and multicast.

pub mod carousel;
pub mod dhcp;
pub mod files;
pub mod tftp;
