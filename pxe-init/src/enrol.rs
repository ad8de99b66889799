//! A boot of a machine that is nobody yet: it tells its facts, and then waits for what it becomes, or powers off.

use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use pxe_contract::paths::node;
use pxe_contract::report::Reported;
use pxe_contract::rescue::Standing;
use pxe_contract::settings::OnExit;

use crate::appliance::{Appliance, Told};
use crate::facts::Telling;
use crate::power;
use crate::renewal::Renewal;
use crate::report::Reporter;
use crate::rescue::{ASK_EVERY, is_released};
use crate::say;
use crate::supervise::{Happening, Power, Supervisor};

/// How often it is looked whether there is an answer.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Reboots once the machine has become something. Where it is not to wait, it powers off when all is told and nobody has
/// adopted it by then.
pub(crate) fn enrol(supervisor: &Supervisor, reporter: &Reporter, told: &Told, telling: &Telling) -> ! {
    let Told { settings, appliance } = told;
    let waits = settings.boot.on_exit == OnExit::Stay;
    let then = if waits { "it waits to be adopted" } else { "it powers off unless it is adopted" };
    let answers = appliance.clone().and_then(|appliance| ask(appliance, &settings.mac, telling));
    let mut renewal = Renewal::new(settings);
    let mut reported = false;
    loop {
        if !reported && telling.told(Duration::ZERO).is_some() {
            say!("this machine's facts are known now: {then}");
            reporter.reached(Reported::Workload, format!("its facts are known: {then}"));
            reported = true;
        }
        for answer in answers.iter().flat_map(Receiver::try_iter) {
            if answer.released {
                say!("this machine has become something, and boots again");
                power::end(Power::Reboot, supervisor, reporter);
            }
            if answer.all_was_told && !waits {
                reporter.exited(0, "nobody has adopted it");
                power::end(Power::Off, supervisor, reporter);
            }
        }
        match supervisor.next(Some(Instant::now() + LOOK_EVERY)) {
            Happening::Ended(pid, _) => renewal.ended(pid),
            Happening::Timeout => renewal.start(),
            Happening::Asked(power) => power::end(power, supervisor, reporter),
        }
    }
}

/// What the appliance said, and whether it knew everything when it was asked.
struct Answer {
    released: bool,
    all_was_told: bool,
}

/// Asks the appliance again and again, on a thread, whether the machine has become something.
fn ask(appliance: Appliance, mac: &str, telling: &Telling) -> Option<Receiver<Answer>> {
    let (answers, received) = mpsc::channel();
    let (mac, telling) = (mac.to_owned(), telling.clone());
    let asking = move || {
        loop {
            let all_was_told = telling.is_over();
            let standing = Standing { host_key: None, logged_in: None, mac: &mac };
            let released = is_released(&appliance, node::ENROLLED, standing);
            if answers.send(Answer { released, all_was_told }).is_err() {
                return;
            }
            std::thread::sleep(ASK_EVERY);
        }
    };
    let started = std::thread::Builder::new().name("enrol".into()).spawn(asking);
    started.inspect_err(|e| say!("the appliance is not asked what this machine becomes: {e}")).ok()?;
    Some(received)
}
