//! What launches ask of their surroundings.

use futures_util::future::BoxFuture;
use pxe_common::Mac;

use super::engine::Places;
use super::healthy::HealthUrl;

/// Why something could not be done, for people. It contains no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SiteError(pub String);

/// The machines' power, and the other parts of the appliance.
pub trait Site: Send + Sync + 'static {
    /// Whether the machine is on; `None` where nobody says. It ends within some time, whatever the BMC does.
    fn is_on(&self, mac: Mac) -> BoxFuture<'_, Result<Option<bool>, SiteError>>;
    /// Switches the machine on, to boot from the network, or off at once. Both are without effect where it is so already.
    fn switch(&self, mac: Mac, on: bool) -> BoxFuture<'_, Result<(), SiteError>>;
    /// Tells a machine that waits in stage 1 since its boot failed to boot again. Nothing happens to others.
    fn boot_again(&self, mac: Mac);
    /// How many boots the links carry, and how many are under way.
    fn places(&self) -> Places;
    /// What machines boot has changed: has everybody go by it.
    fn pinned(&self) -> BoxFuture<'_, ()>;
    /// Asks the machine's URL. An error is what was wrong with the answer.
    fn check(&self, mac: Mac, url: HealthUrl) -> BoxFuture<'_, Result<(), SiteError>>;
}
