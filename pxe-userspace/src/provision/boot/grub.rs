//! grub.cfg for one machine.

use pxe_common::Mac;
use pxe_contract::paths::{LOCKED, LoadStep, grub_config_again};

use super::Generated;
use super::plan::{Plan, Refusal};
use crate::base::text::one_line;

/// Loads the kernel and boots. When a file can't be loaded, GRUB says so and requests its configuration again: the
/// machine comes up by itself once the problem is solved.
///
/// The request says how far GRUB got, because GRUB's error appears on the machine's screen only. `trouble` is what the
/// appliance found out about the last attempt. `http` is where the appliance answers HTTP: files for this machine
/// alone do not come by TFTP.
pub fn boot(title: &str, trouble: Option<&str>, http: &str, mac: Mac, plan: &Plan) -> String {
    let mut kernel = vec![format!("/{}", plan.kernel)];
    kernel.extend(plan.cmdline.iter().cloned());
    let initrd = |path: &String| match Generated::parse(path) {
        Some(Generated::Node(_)) => format!("(http,{http})/{path}"),
        _ => format!("/{path}"),
    };
    let initrds: Vec<String> = plan.initrds.iter().map(initrd).collect();
    // `true` is a module of its own, which our image lacks; an empty echo always succeeds.
    let load_initrds =
        if initrds.is_empty() { "echo".to_owned() } else { format!("initrd {}", quoted(&initrds)) };
    format!(
        "{TERMINAL}\
         echo {title}\n\
         {trouble}\
         set bridgehead_at={at_kernel}\n\
         if linux {kernel}; then\n  \
           set bridgehead_at={at_initrd}\n  \
           if {load_initrds}; then\n    \
             set bridgehead_at={at_boot}\n    \
             boot\n  \
           fi\n\
         fi\n\
         if [ \"$lockdown\" = y ]; then\n  \
           set bridgehead_at=\"${{bridgehead_at}}{LOCKED}\"\n\
         fi\n\
         echo {failed}\n\
         {again}",
        title = quote(title),
        trouble = trouble.map(|words| format!("echo {}\n", quote(words))).unwrap_or_default(),
        at_kernel = LoadStep::Kernel.name(),
        at_initrd = LoadStep::Initrd.name(),
        at_boot = LoadStep::Boot.name(),
        kernel = quoted(&kernel),
        failed = quote("Bridgehead: the kernel or an initrd could not be loaded; trying again in 5 s"),
        // A MAC address has no characters that are special in double quotes.
        again = again(&format!("\"/{}\"", grub_config_again("$bridgehead_at", mac)), 5),
    )
}

/// Says why the machine is not booted, and requests the configuration again later: the cause may be gone by then.
pub fn refuse(title: &str, own_path: &str, refusal: &Refusal) -> String {
    let pause = match refusal {
        Refusal::Preparing(_) => 3,
        Refusal::NoProfile
        | Refusal::NoImage { .. }
        | Refusal::Memory { .. }
        | Refusal::NoStage2(_)
        | Refusal::NoStorageTools { .. }
        | Refusal::NoKernel { .. }
        | Refusal::Modules { .. }
        | Refusal::Cmdline { .. } => 30,
    };
    format!(
        "{TERMINAL}\
         echo {title}\n\
         echo {cause}\n\
         {again}",
        title = quote(title),
        cause = quote(&format!("Bridgehead: {refusal}")),
        again = again(&quote(&format!("/{own_path}")), pause),
    )
}

/// The serial port, if there is one, as well as the screen: a rack has no screens. On UEFI the console is the
/// firmware's, which decides by itself whether to use the serial port; a second driver on the same UART would print
/// every character twice.
const TERMINAL: &str = "\
if [ \"$grub_platform\" = pc ]; then
  if serial --unit=0 --speed=115200; then
    terminal_output console serial
  fi
fi
";

/// Requests the configuration again and again, from one loop. A `configfile` at the end of each file would nest: GRUB
/// 2.06 gives up on the 31st ("maximum recursion depth exceeded") and waits at its prompt forever. The loaded file
/// finds `bridgehead` set and returns to the loop. `ask` is the path of the next request, as a word of GRUB's shell.
fn again(ask: &str, pause: u32) -> String {
    format!(
        "set bridgehead_ask={ask}\n\
         if [ -z \"$bridgehead\" ]; then\n  \
           set bridgehead=retrying\n  \
           set pause={pause}\n  \
           while [ 1 ]; do\n    \
             sleep --interruptible $pause\n    \
             source \"$bridgehead_ask\"\n  \
           done\n\
         fi\n\
         set pause={pause}\n",
    )
}

/// Words for GRUB's shell, each in single quotes: only the quote itself is special in them.
fn quoted(words: &[String]) -> String {
    words.iter().map(|w| quote(w)).collect::<Vec<_>>().join(" ")
}

fn quote(word: &str) -> String {
    format!("'{}'", one_line(word).replace('\'', r"'\''"))
}
