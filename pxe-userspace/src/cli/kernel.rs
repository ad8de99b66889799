//! `bridgehead kernel`: the kernels that images can boot with.

use std::io::Write;
use std::path::Path;

use clap::Subcommand;
use serde_json::json;

use super::{Reading, print, read, sending, show};
use crate::api::client::{AskError, Client};
use crate::base::text::percent;
use crate::provision::image::{KernelList, KernelRecord};

#[derive(Debug, Subcommand)]
pub enum KernelCommand {
    /// Add a kernel with its modules, from a .deb, a directory or an image.
    ///
    /// A Debian package linux-image-*.deb (not installed: unpacked; needs dpkg-deb and kmod); a directory with
    /// vmlinuz, there or in boot/, and lib/modules/VERSION with its modules.dep; or an image of the store, whose
    /// kernel it takes. What exists as a path is taken for one, and sent. Its stage 1 is made here. A kernel of the same name
    /// is replaced, and machines that failed with this one try it again.
    #[command(after_help = "\
Examples:
  apt-get download linux-image-6.1.0-56-amd64
  bridgehead kernel add linux-image-6.1.0-56-amd64_*.deb
  bridgehead kernel add /usr/src/linux/install --name mine
  bridgehead kernel add debian-systemd:latest
Then, in the configuration: [[profile]] kernel = \"mine\"; or `bridgehead kernel default mine`.")]
    Add {
        #[arg(value_name = "DEB|DIR|IMAGE")]
        source: String,
        /// What profiles call it [default: its version]
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        reading: Reading,
    },
    /// The kernels that are here, and which is the default.
    List(Reading),
    /// Boot images that bring no kernel with this one, from each machine's next boot on.
    Default {
        /// Without one: the stock kernel of set-up again.
        name: Option<String>,
        #[command(flatten)]
        reading: Reading,
    },
    /// Forget a kernel. Its data stays until `image gc`.
    Rm {
        name: String,
        #[command(flatten)]
        reading: Reading,
    },
}

pub(super) fn run(command: KernelCommand, out: &mut dyn Write) -> Result<(), AskError> {
    match command {
        KernelCommand::Add { source, name, reading } => {
            let client = Client::new(&reading.api);
            let answer = match sending::kernel(&client, Path::new(&source))? {
                Some((sent, query)) => {
                    let name = name.map_or_else(String::new, |name| format!("&name={}", percent(&name, "")));
                    client.send(&format!("/api/kernels?{query}{name}"), sent)?
                }
                None => {
                    let body = json!({ "name": name, "source": { "image": source } });
                    client.post("/api/kernels", Some(&body))?
                }
            };
            let added: KernelRecord = client.document(answer)?;
            print(&reading, &added, out, |added| {
                show::kernels(KernelList { default: None, kernels: vec![added.clone()] })
            })
        }
        KernelCommand::List(reading) => read(&reading, "/api/kernels", out, show::kernels),
        KernelCommand::Default { name, reading } => {
            let client = Client::new(&reading.api);
            let list: KernelList =
                client.document(client.put("/api/default-kernel", &json!({ "name": name }))?)?;
            print(&reading, &list, out, |list| show::kernels(list.clone()))
        }
        KernelCommand::Rm { name, reading } => {
            let client = Client::new(&reading.api);
            client.delete(&format!("/api/kernels/{}", percent(&name, "")))?;
            print(&reading, &json!({ "removed": [name] }), out, |_| format!("removed {name}\n"))
        }
    }
}
