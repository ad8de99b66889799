//! Embeds the kernel programs that `cargo xtask build` made. The daemon builds without them, too,
//! and then says at start that its fast path is off.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    let var = |name| PathBuf::from(env::var_os(name).expect("cargo sets it"));
    let object = var("CARGO_MANIFEST_DIR").join("../target/bpf/pxe-ebpf");
    println!("cargo::rerun-if-changed={}", object.display());
    let embedded = if object.is_file() {
        object
    } else {
        println!("cargo::warning=fast path not built: `cargo xtask build` makes {}", object.display());
        let empty = var("OUT_DIR").join("no-object");
        fs::write(&empty, "").expect("the output directory can be written to");
        empty
    };
    println!("cargo::rustc-env=PXE_EBPF_OBJECT={}", embedded.display());
}
