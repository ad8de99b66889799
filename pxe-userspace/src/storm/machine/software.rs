//! The software that a machine runs: GRUB after the ROM, or iPXE's script, then Linux.

use pxe_contract::paths;
use pxe_contract::stage::Stage;

use super::super::contents::Sink;
use super::super::dhcp::Identity;
use super::super::firmware::{Firmware, grub, ipxe, node};
use super::super::link::MS;
use super::{Files, Grub, Machine, Software, Task, World};

impl Machine {
    pub(super) fn start_grub(&mut self, world: &mut World<'_>) {
        self.reach(Stage::Loader, world.now);
        self.software = Software::Grub(Grub::Looks);
        self.port = grub::FIRST_PORT;
        self.resolve(grub::ARP, world);
    }

    pub(super) fn grub_lists(&mut self, n: usize, world: &mut World<'_>) {
        let next = if n < grub::lists("").len() { Grub::Lists(n) } else { Grub::Reads };
        self.software = Software::Grub(next);
        self.grub_step(world);
    }

    pub(super) fn grub_step(&mut self, world: &mut World<'_>) {
        let Software::Grub(grub) = &self.software else { return };
        let (path, sink) = match grub {
            Grub::Looks | Grub::Reads => (grub::config_path(self.identity.mac), Sink::keep()),
            Grub::Lists(n) => (grub::lists(self.rom.platform)[*n].clone(), Sink::keep()),
            Grub::Loads(files) => {
                let Some(path) = files.names.get(files.next) else { return };
                (path.clone(), world.contents.sink(path))
            }
        };
        let looks = matches!(grub, Grub::Looks);
        self.load(&grub::TFTP, &path, sink, world);
        if looks && let Task::Tftp(download) = std::mem::replace(&mut self.task, Task::Off) {
            self.task = Task::Tftp(Box::new(download.peek()));
        }
    }

    pub(super) fn configured(&mut self, text: &str, world: &mut World<'_>) {
        self.reach(Stage::Config, world.now);
        match grub::config(text) {
            grub::Config::Boot { files, cmdline } => {
                let appliance = node::appliance(cmdline.iter().map(String::as_str));
                let files = Files { names: files, next: 0, appliance };
                self.software = Software::Grub(Grub::Loads(files));
                self.grub_step(world);
            }
            grub::Config::Refused { cause, pause } => self.pause(pause, cause, world),
        }
    }

    pub(super) fn scripted(&mut self, text: &str, world: &mut World<'_>) {
        // Script and loader are one.
        self.reach(Stage::Loader, world.now);
        self.reach(Stage::Config, world.now);
        match ipxe::script(text) {
            ipxe::Script::Boot { files, cmdline } => {
                let appliance = node::appliance(cmdline.split(' '));
                self.software = Software::Script(Files { names: files, next: 0, appliance });
                self.next_url(world);
            }
            ipxe::Script::Refused { cause, pause } => self.pause(pause, cause, world),
        }
    }

    fn next_url(&mut self, world: &mut World<'_>) {
        let Software::Script(files) = &self.software else { return };
        let Some(url) = files.names.get(files.next).cloned() else { return };
        let sink = world.contents.sink(node::server(&url).map_or(&url, |(_, path)| path));
        self.get(&url, sink, world);
    }

    /// A kernel or initrd is complete.
    pub(super) fn loaded(&mut self, world: &mut World<'_>) {
        let (Software::Grub(Grub::Loads(files)) | Software::Script(files)) = &mut self.software else {
            return;
        };
        files.next += 1;
        let (done, all, appliance) = (files.next, files.names.len(), files.appliance);
        if done == 1 {
            self.reach(Stage::Kernel, world.now);
        }
        if done < all {
            match self.software {
                Software::Script(_) => self.next_url(world),
                _ => self.grub_step(world),
            }
            return;
        }
        self.reach(Stage::Initrd, world.now);
        match appliance {
            Some(appliance) => {
                self.software = Software::Linux(appliance, 0);
                self.port = 32_768 + self.port % 28_000;
                self.resolve(&[1000, 1000, 1000], world);
            }
            // A kernel by hand reports nothing.
            None => self.task = Task::Booted,
        }
    }

    pub(super) fn report(&mut self, world: &mut World<'_>) {
        let Software::Linux(to, sent) = self.software else { return };
        let Some(stage) = node::REPORTS.get(sent) else {
            self.task = Task::Booted;
            return;
        };
        let uptime = world.now.saturating_sub(self.powered_on) as f64 / 1e9;
        let request = node::report(to, self.identity.mac, *stage, uptime);
        self.exchange(to, paths::node::REPORT, request, Sink::keep(), world);
    }

    pub(super) fn tell(&mut self, world: &mut World<'_>) {
        let Software::Tells(to) = self.software else { return };
        let Identity { mac, uuid } = self.identity;
        let request = node::facts(to, mac, uuid, self.firmware == Firmware::Uefi);
        self.exchange(to, paths::node::FACTS, request, Sink::keep(), world);
    }

    /// The loader shows why it can't go on, and starts over from its configuration after a while.
    pub(super) fn pause(&mut self, seconds: u64, why: String, world: &mut World<'_>) {
        self.link.tally.restarts += 1;
        self.refusal = Some(why);
        self.task = Task::Pause(world.now + seconds * 1000 * MS);
    }

    pub(super) fn begin_again(&mut self, world: &mut World<'_>) {
        match self.software {
            Software::Grub(Grub::Looks | Grub::Lists(_)) => self.grub_step(world),
            Software::Grub(_) => {
                self.software = Software::Grub(Grub::Reads);
                self.grub_step(world);
            }
            Software::Rom | Software::Script(_) => {
                self.software = Software::Rom;
                self.resolved(world);
            }
            Software::Linux(..) => self.report(world),
            Software::Tells(_) => self.tell(world),
        }
    }
}
