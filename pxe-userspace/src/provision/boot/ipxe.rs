//! An iPXE script for one machine.

use pxe_common::Mac;
use pxe_contract::cmdline;
use pxe_contract::paths::{LoadStep, ipxe_script_again};

use super::Generated;
use super::plan::{Plan, Refusal};
use crate::base::text::percent;

/// Loads and boots over HTTP. On failure it requests the script again, as [`super::grub::boot`] does.
///
/// Each initrd is named on the kernel's command line: under UEFI the kernel's EFI stub looks there for the names that
/// iPXE offers. BIOS kernels ignore them.
pub fn boot(title: &str, trouble: Option<&str>, base_url: &str, mac: Mac, plan: &Plan) -> String {
    let names: Vec<String> = (0..plan.initrds.len()).map(|i| format!("initrd{i}")).collect();
    let mut kernel = format!("kernel {}", url(base_url, &plan.kernel));
    for name in &names {
        kernel.push_str(&format!(" initrd={name}"));
    }
    for word in &plan.cmdline {
        kernel.push_str(&format!(" {}", cmdline::quoted(word)));
    }
    let mut script = format!("#!ipxe\necho {}\n", text(title));
    if let Some(trouble) = trouble {
        script.push_str(&format!("echo {}\n", text(trouble)));
    }
    let at = |step: LoadStep| format!("set bridgehead-at {}\n", step.name());
    script.push_str(&format!("{}{kernel} || goto failed\n{}", at(LoadStep::Kernel), at(LoadStep::Initrd)));
    for (name, path) in names.iter().zip(&plan.initrds) {
        script.push_str(&format!("initrd --name {name} {} || goto failed\n", url(base_url, path)));
    }
    script.push_str(&at(LoadStep::Boot));
    // Without `imgfree`, the next attempt would load its files in addition to this one's.
    script.push_str(
        "boot\n:failed\necho Bridgehead: the kernel or an initrd could not be loaded; trying again in 5 s\n\
         imgfree\n",
    );
    script + &again(base_url, &ipxe_script_again("${bridgehead-at}", mac), 5)
}

/// Says why the machine is not booted, and requests the script again later.
pub fn refuse(title: &str, base_url: &str, own_path: &str, refusal: &Refusal) -> String {
    let cause = text(&refusal.to_string());
    format!("#!ipxe\necho {}\necho Bridgehead: {cause}\n{}", text(title), again(base_url, own_path, 30))
}

/// Repeats until the script can be had. A failed `chain` alone would end the script, and with it the boot.
fn again(base_url: &str, own_path: &str, pause: u32) -> String {
    format!(":again\nsleep {pause} ||\nchain --replace {base_url}/{own_path} || goto again\n")
}

/// The URL of a path, percent-encoded (RFC 3986 section 2.1). What the daemon makes itself has a path of its own;
/// everything else is below `/files`.
fn url(base_url: &str, path: &str) -> String {
    let below = if Generated::parse(path).is_some() { "" } else { "/files" };
    format!("{base_url}{below}/{}", percent(path, "/"))
}

/// Text for `echo`. iPXE's shell has no quoting (src/core/exec.c), so whatever is special to it is left out.
fn text(words: &str) -> String {
    let flat: String = words.chars().map(|c| if matches!(c, ' '..='~') { c } else { ' ' }).collect();
    let kept: Vec<&str> = flat
        .split(' ')
        .map(|w| w.trim_start_matches('#'))
        .filter(|w| !matches!(*w, "" | "||" | "&&" | ";"))
        .collect();
    kept.join(" ").replace("${", "$ {")
}
