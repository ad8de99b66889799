//! A short soak: `cargo xtask soak` is the long one.

use anyhow::{Result, ensure};
use lab::needs::Needs;
use lab::soak::{self, Plan};
use lab::world;

#[test]
fn nothing_is_lost_or_given_twice_while_the_daemon_is_killed() {
    world::test(Needs::of(&["ip"]).processors(1), |world| {
        let plan = Plan { exchanges: 200_000, kills: 4, seed: seed()? };
        println!("seed {}", plan.seed);
        let tally = soak::run(world, &plan, |_| {})?;
        println!("{tally}");
        ensure!(tally.exchanges() >= plan.exchanges && tally.kills == plan.kills, "it ended early");
        ensure!(tally.faults() == 0, "{} faults with seed {}:\n{tally}", tally.faults(), plan.seed);
        Ok(())
    });
}

fn seed() -> Result<u64> {
    std::env::var("BRIDGEHEAD_SEED").map_or(Ok(1), |text| Ok(text.parse()?))
}
