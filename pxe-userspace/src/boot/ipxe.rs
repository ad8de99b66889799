//! An iPXE script for one machine.

use super::plan::{Plan, Refusal};

/// Loads and boots over HTTP; on failure asks for the script again, as [`super::grub::boot`] does.
///
/// Each initrd is named on the kernel's command line: under UEFI the kernel's EFI stub looks there
/// for the names that iPXE offers; BIOS kernels ignore them.
pub fn boot(title: &str, base_url: &str, own_path: &str, plan: &Plan) -> String {
    let names: Vec<String> = (0..plan.initrds.len()).map(|i| format!("initrd{i}")).collect();
    let mut kernel = format!("kernel {base_url}/{}", plan.kernel);
    for name in &names {
        kernel.push_str(&format!(" initrd={name}"));
    }
    for word in &plan.cmdline {
        kernel.push(' ');
        kernel.push_str(&escape(word));
    }
    let mut script = format!("#!ipxe\necho {}\n{kernel} || goto failed\n", escape(title));
    for (name, path) in names.iter().zip(&plan.initrds) {
        script.push_str(&format!("initrd --name {name} {base_url}/{path} || goto failed\n"));
    }
    script.push_str(
        "boot\n:failed\necho Bridgehead: the kernel or an initrd could not be loaded; trying again in 5 s\n",
    );
    script.push_str(&format!("sleep 5\nchain --replace {base_url}/{own_path}\n"));
    script
}

/// Says why the machine is not booted, and asks again later.
pub fn refuse(title: &str, base_url: &str, own_path: &str, refusal: &Refusal) -> String {
    format!(
        "#!ipxe\necho {}\necho Bridgehead: {}\nsleep 30\nchain --replace {base_url}/{own_path}\n",
        escape(title),
        escape(&refusal.to_string()),
    )
}

/// iPXE expands `${…}` and splits at white space and has no way to quote either of them. A space
/// inside a kernel parameter survives in double quotes, which the kernel takes away.
fn escape(word: &str) -> String {
    let flat: String = word
        .chars()
        .map(|c| match c {
            c if c.is_control() => ' ',
            '$' => '_',
            c => c,
        })
        .collect();
    // A line of text for `echo` has spaces, too, and may keep them.
    match flat.split_once('=') {
        Some((_, value)) if value.contains(' ') && !flat.contains(": ") => format!("\"{flat}\""),
        _ => flat,
    }
}
