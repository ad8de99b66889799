//! The order of a node's boot, from the kernel's hand-over on.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::reboot::set_cad_enabled;
use nix::unistd::{Pid, sethostname};
use pxe_contract::backoff::Backoff;
use pxe_contract::cmdline;
use pxe_contract::paths::file;
use pxe_contract::report::Reported;
use pxe_contract::settings::{OnExit, Settings, SettingsError, rescue_wanted};

use crate::appliance::Told;
use crate::console;
use crate::engine::{self, EngineError};
use crate::enrol;
use crate::facts::Telling;
use crate::handover::{self, Behind, HandoverError};
use crate::health::{Change, Health};
use crate::image::{Image, ImageError};
use crate::link::{self, LinkError};
use crate::modules::Modules;
use crate::mounts::{self, MountError};
use crate::netconsole;
use crate::output::{self, Terminal};
use crate::power;
use crate::renewal::Renewal;
use crate::report::Reporter;
use crate::rescue;
use crate::say;
use crate::stage2::{self, Came, Stage2Error};
use crate::steps::Steps;
use crate::storage::{self, StorageError};
use crate::supervise::{Ended, Happening, Power, Supervisor};
use crate::ticket::{self, TicketError};
use crate::workload::{self, StartError};

/// Runs the node. The first process never returns.
pub fn run() -> ! {
    std::panic::set_hook(Box::new(|panic| last_words(&panic.to_string())));
    let supervisor = Supervisor::new().unwrap_or_else(|e| panic!("signals can't be taken over: {e}"));
    let error = match boot(&supervisor) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let cause = words(&error);
    say!("this boot failed: {cause}");
    let reporter = REPORTER.get().cloned().unwrap_or_else(|| Reporter::start(None, ""));
    reporter.failed(cause.as_str());
    match TOLD.get() {
        Some(told) => rescue::failed(&supervisor, &reporter, told, &cause),
        None => rescue::shells(&supervisor, &reporter),
    }
}

/// Why a boot ended before its workload ran.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("reading /proc/cmdline: {0}")]
    CommandLine(std::io::Error),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Ticket(#[from] TicketError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Stage2(#[from] Stage2Error),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Handover(#[from] HandoverError),
    #[error("the workload ended {times} times in a row, at last with {last}")]
    Restarts { times: u32, last: Ended },
}

/// For reports of a boot that fails or panics anywhere.
static REPORTER: OnceLock<Reporter> = OnceLock::new();
static TOLD: OnceLock<Told> = OnceLock::new();

fn boot(supervisor: &Supervisor) -> Result<std::convert::Infallible, BootError> {
    let mut steps = Steps::begin();
    mounts::mount_all()?;
    mounts::use_console();
    // Ctrl-Alt-Delete sends us a signal, instead of resetting the machine at once.
    let _ = set_cad_enabled(false);
    let cmdline = fs::read_to_string("/proc/cmdline").map_err(BootError::CommandLine)?;
    let ticket = ticket::take();
    let cmdline =
        ticket.as_ref().map_or(cmdline.clone(), |ticket| cmdline::append(&cmdline, &ticket.settings));
    let settings = Settings::parse(&cmdline);
    if rescue_wanted(&cmdline) {
        // Bring up the network as far as possible: it is often the reason for a rescue.
        if let Err(error) = settings.map_err(BootError::from).and_then(|settings| {
            let sender = network(&settings, &mut steps)?;
            let Told { settings, appliance } = Told::new(settings);
            console::ship(appliance, &settings.mac, sender);
            Ok(())
        }) {
            say!("no network: {}", words(&error));
        }
        rescue::shells(supervisor, &Reporter::start(None, ""));
    }
    steps.done("mounts");
    let mut told = Told::new(settings?);

    // Disks are probed while the network comes up.
    let prepared = told.settings.boot.stage2.as_ref().map(|_| stage2::prepare());
    load_wanted(&told.settings.boot.modules);
    let sender = match network(&told.settings, &mut steps) {
        Ok(sender) => sender,
        Err(error) => {
            TOLD.get_or_init(|| told);
            return Err(error.into());
        }
    };
    let session = ticket.and_then(|ticket| ticket::trade(ticket, &told.settings.mac));
    steps.done("session");
    // Without a session the node can still report why there is none.
    told.appliance = session.as_ref().ok().map(|(_, appliance)| appliance.clone()).or(told.appliance);
    let told = TOLD.get_or_init(|| told);
    let Told { settings, appliance } = told;
    console::ship(appliance.clone(), &settings.mac, sender);
    let reporter = REPORTER.get_or_init(|| Reporter::start(appliance.clone(), &settings.mac));
    let (session, _) = session?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let detail = format!("Linux {}, {}", release.trim(), steps.take());
    reporter.reached_after(Reported::Stage1, detail, steps.all());
    let telling = Telling::start(appliance.clone(), &settings.mac);

    if settings.boot.hold {
        rescue::hold(supervisor, reporter, told);
        steps.done("hold");
    }

    if settings.boot.enrol {
        enrol::enrol(supervisor, reporter, told, &telling);
    }
    Image::check_unpacked()?;
    let came = match (&settings.boot.stage2, prepared) {
        (Some(stage2), Some(prepared)) => {
            Some(stage2::mount(stage2, appliance.as_ref(), prepared, &mut steps)?)
        }
        _ => None,
    };
    steps.done("mount");
    let description = if came.is_some() { stage2::DESCRIPTION } else { file::IMAGE_DESCRIPTION };
    let mut image =
        Image::open(Path::new(stage2::ROOT), Path::new(description), settings.boot.digest.as_deref())?;
    image.prepare(settings)?;
    steps.done("root");
    let digest = &image.description.digest;
    match came {
        None => reporter.reached(Reported::Image, digest),
        Some(Came { how, bytes, took }) => reporter.fetched(format!("{digest}, {how}"), bytes, took),
    }
    if let Some(mounted) = storage::bring_up(&image, told)? {
        say!("{mounted}");
        reporter.reached(Reported::Image, mounted);
        steps.done("storage");
    }

    if settings.boot.engine {
        engine::enroll(&image, told)?;
    }
    let address = settings.address.to_string();
    if handover::is_init(&image.description) {
        let behind = Behind { cmdline, session, facts: telling.told(handover::FACTS_WITHIN) };
        return Ok(handover::hand_over(&image, &extra(settings, &address, digest), reporter, &behind)?);
    }
    let renewal = Renewal::new(settings);
    Node { supervisor, reporter, told, address, image: &image, renewal, steps: Some(steps) }.keep_running()
}

/// The modules that the profile names, before those of the devices. A boot goes on without them.
fn load_wanted(wanted: &[String]) {
    if wanted.is_empty() {
        return;
    }
    match Modules::open(Path::new("/")) {
        Ok(mut modules) => {
            for name in wanted {
                match modules.load_by_alias(name) {
                    Ok(()) => say!("module {name} is loaded"),
                    Err(error) => say!("the profile's module {name}: {error}"),
                }
            }
        }
        Err(error) => {
            say!("none of the profile's modules is loaded: stage 1 has none for this kernel ({error})")
        }
    }
}

/// The interface that the node booted from, up and with its address.
fn network(settings: &Settings, steps: &mut Steps) -> Result<netconsole::Sender, LinkError> {
    let name = &settings.name;
    if let Err(e) = sethostname(name) {
        say!("the host name {name:?} is refused: {e}");
    }
    let mut modules = Modules::open(Path::new("/"))
        .inspect_err(|e| say!("stage 1 has no modules for this kernel ({e}); it needs its drivers built in"))
        .ok();
    // The kernel requests modules itself, too (a PHY's driver): we are its modprobe.
    let _ = fs::write("/proc/sys/kernel/modprobe", "/init");
    let link = link::find(&settings.mac, modules.as_mut())?;
    steps.done("drivers");
    link::bring_up(&link, settings)?;
    steps.done("link");
    say!("{} is {name}, {}/{} on {}", settings.mac, settings.address, settings.prefix, link.name);
    Ok(netconsole::Sender { link: link.name, address: settings.address })
}

/// A node whose image is mounted.
struct Node<'a> {
    supervisor: &'a Supervisor,
    reporter: &'a Reporter,
    told: &'a Told,
    address: String,
    image: &'a Image,
    renewal: Renewal,
    /// How the time until the workload's first start was spent; `None` afterwards.
    steps: Option<Steps>,
}

/// After a run of this length a restart is quick again.
const SETTLED: Duration = Duration::from_secs(60);
const PAUSES: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// Docker gives a container this long between the stop signal and SIGKILL.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

impl Node<'_> {
    /// Runs the workload, and then follows the `on-exit` policy.
    fn keep_running(mut self) -> Result<std::convert::Infallible, BootError> {
        let Told { settings, .. } = self.told;
        let mut pauses = PAUSES;
        let mut times = 0;
        loop {
            let started = Instant::now();
            let consoles = mounts::terminals();
            let logged = self.terminal(&consoles);
            let terminal = logged.as_ref().map(Terminal::path).or(consoles.first().map(PathBuf::as_path));
            let pid = self.start(terminal.unwrap_or(Path::new("/dev/console")))?;
            let ended = self.wait_for(pid);
            // The console is ours again, and all output is queued.
            drop(logged);
            let ended = ended.unwrap_or_else(|power| power::end(power, self.supervisor, self.reporter));
            say!("the workload ended: {ended}");
            self.reporter.exited(ended.code(), ended.to_string());
            match settings.boot.on_exit {
                OnExit::PowerOff => power::end(Power::Off, self.supervisor, self.reporter),
                OnExit::Reboot => power::end(Power::Reboot, self.supervisor, self.reporter),
                OnExit::Stay => rescue::shells(self.supervisor, self.reporter),
                OnExit::Restart => {
                    if started.elapsed() >= SETTLED {
                        pauses.reset();
                        times = 0;
                    }
                    times += 1;
                    if settings.boot.restarts.is_some_and(|most| times > most) {
                        return Err(BootError::Restarts { times, last: ended });
                    }
                    let pause = pauses.pause();
                    say!("starting it again in {} s", pause.as_secs());
                    self.wait_until(Instant::now() + pause);
                }
            }
        }
    }

    /// A terminal that shows on all consoles, and whose lines the appliance gets. None where the workload can have the
    /// console itself.
    fn terminal(&self, consoles: &[PathBuf]) -> Option<Terminal> {
        let Told { settings, appliance } = self.told;
        let opened = match appliance.clone().filter(|_| settings.boot.logs) {
            Some(appliance) => output::terminal(consoles, appliance, &settings.mac),
            None if consoles.len() > 1 => Terminal::open(consoles, drop),
            None => return None,
        };
        opened.inspect_err(|e| say!("what the workload says goes to one console only: {e}")).ok()
    }

    fn start(&mut self, terminal: &Path) -> Result<Pid, StartError> {
        let description = &self.image.description;
        let pid = workload::start(self.image, &self.environment(), terminal)?;
        say!("{} runs: {}", description.reference, in_short(&description.argv));
        // If it is a Docker engine, the appliance knows when the workloads in it run.
        let (stage, what) = match self.told.settings.boot.engine {
            true => (Reported::Image, "its Docker engine starts"),
            false => (Reported::Workload, description.reference.as_str()),
        };
        match self.steps.take() {
            Some(mut steps) => {
                steps.done("start");
                self.reporter.reached_after(stage, format!("{what}, {}", steps.take()), steps.all());
            }
            None => self.reporter.reached(stage, what),
        }
        Ok(pid)
    }

    /// The node's variables in the workload's environment.
    fn environment(&self) -> [(&str, &str); 4] {
        extra(&self.told.settings, &self.address, &self.image.description.digest)
    }

    fn tell(&self, health: Option<Change>) {
        match health {
            None => {}
            Some(Change::Healthy) => {
                say!("the workload is healthy");
                self.reporter.reached(Reported::Workload, "healthy");
            }
            Some(Change::Unhealthy(why)) => {
                say!("the workload is unhealthy: {why}");
                self.reporter.unhealthy(why);
            }
        }
    }

    /// Waits for the workload's first process to end, and handles everything else meanwhile. An error if the machine is to
    /// shut down.
    fn wait_for(&mut self, workload: Pid) -> Result<Ended, Power> {
        let mut health = Health::new(self.image, workload, Instant::now());
        loop {
            let due = self.renewal.due().into_iter().chain(health.as_ref().map(Health::due)).min();
            match self.supervisor.next(due) {
                Happening::Ended(pid, ended) if pid == workload => {
                    health.iter_mut().for_each(Health::stop);
                    return ended.asks().map_or(Ok(ended), Err);
                }
                Happening::Ended(pid, ended) => {
                    self.renewal.ended(pid);
                    self.tell(health.as_mut().and_then(|health| health.ended(pid, ended)));
                }
                Happening::Asked(power) => {
                    self.supervisor.stop(workload, workload::stop_signal(self.image), STOP_PATIENCE);
                    return Err(power);
                }
                Happening::Timeout => {
                    self.renewal.start();
                    let extra = self.environment();
                    self.tell(health.as_mut().and_then(|health| health.act(&extra)));
                }
            }
        }
    }

    fn wait_until(&mut self, deadline: Instant) {
        while Instant::now() < deadline {
            let next = self.renewal.due().map_or(deadline, |due| due.min(deadline));
            match self.supervisor.next(Some(next)) {
                Happening::Ended(pid, _) => self.renewal.ended(pid),
                Happening::Asked(power) => power::end(power, self.supervisor, self.reporter),
                Happening::Timeout => self.renewal.start(),
            }
        }
    }
}

/// The variables that the image's program gets besides the image's own.
fn extra<'a>(settings: &'a Settings, address: &'a str, digest: &'a str) -> [(&'a str, &'a str); 4] {
    let name = settings.name.as_str();
    [
        ("HOSTNAME", name),
        ("BRIDGEHEAD_NODE", name),
        ("BRIDGEHEAD_ADDRESS", address),
        ("BRIDGEHEAD_DIGEST", digest),
    ]
}

/// An error with all its sources, as text.
fn words(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        // Most of our errors contain their source's text already.
        let inner_words = inner.to_string();
        if !words.contains(&inner_words) {
            words = format!("{words}: {inner_words}");
        }
        source = inner.source();
    }
    words
}

/// After a panic: prints and reports it, and keeps the process alive. If the first process ended, the
/// kernel would panic and scroll the explanation off the screen.
fn last_words(panic: &str) {
    say!("pxe-init panicked, which is a bug: {panic}");
    if let Some(reporter) = REPORTER.get() {
        reporter.failed(format!("pxe-init panicked, which is a bug: {panic}"));
    }
    if std::thread::current().name() == Some("main") {
        rescue::shells_after_panic();
    }
    loop {
        std::thread::park();
    }
}

/// Characters of a command that are shown: it may be a whole script.
const COMMAND_SHOWN: usize = 60;

/// The beginning of a command, in one line.
fn in_short(argv: &[String]) -> String {
    let command = argv.join(" ");
    let mut shown: String =
        command.chars().map(|c| if c.is_control() { ' ' } else { c }).take(COMMAND_SHOWN).collect();
    if command.chars().nth(COMMAND_SHOWN).is_some() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_shown_in_short() {
        let argv = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(in_short(&argv(&["/bin/sh", "-c", "a\nb"])), "/bin/sh -c a b");
        let long = in_short(&argv(&["x".repeat(60).as_str()]));
        assert_eq!(long, "x".repeat(60));
        assert_eq!(in_short(&argv(&["x".repeat(61).as_str()])), "x".repeat(60) + "...");
    }
}
