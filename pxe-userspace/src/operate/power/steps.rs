//! The order of steps that switches a machine's power, the same for all drivers.
//!
//! Each step can be repeated without harm, because the state is read before it: an order whose answer got lost is not
//! given twice to a machine that obeyed.

use tokio::time::Instant;

use super::{Action, BootOnce, Driver, Limits, PowerError, State};

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) state: State,
    pub(super) switched: bool,
    pub(super) boot: Option<BootOnce>,
}

pub(super) async fn perform(
    driver: &mut impl Driver,
    action: Action,
    limits: &Limits,
) -> Result<Done, PowerError> {
    let before = driver.state().await?;
    let wanted = match action {
        Action::Status => return Ok(Done { state: before, switched: false, boot: None }),
        Action::Off => State::Off,
        Action::On { .. } | Action::Cycle { .. } => State::On,
    };
    let restarts = matches!(action, Action::Cycle { .. }) && before != State::Off;
    if before == wanted && !restarts {
        return Ok(Done { state: before, switched: false, boot: None });
    }
    // Before its power goes: a BMC that does not take it leaves the machine as it was.
    let boot = match action.boot() {
        Some(boot) => driver.boot_once(boot).await?,
        None => None,
    };
    if restarts {
        reach(driver, State::Off, limits).await?;
    }
    let state = reach(driver, wanted, limits).await?;
    Ok(Done { state, switched: true, boot })
}

/// Switches, and waits until the machine is so.
async fn reach(driver: &mut impl Driver, wanted: State, limits: &Limits) -> Result<State, PowerError> {
    driver.switch(wanted == State::On).await?;
    let begun = Instant::now();
    loop {
        let says = driver.state().await?;
        if says == wanted {
            return Ok(says);
        }
        let waited = begun.elapsed();
        if waited >= limits.done {
            return Err(PowerError::NotDone { bmc: driver.place(), wanted, says, waited });
        }
        tokio::time::sleep(limits.look_every).await;
    }
}
