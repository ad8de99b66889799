//! How to log in to a machine whose boot stopped. This answer is the only place that has the password.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderName, header};

use super::documents::WayIn;
use super::door::By;
use super::{ApiState, Failure, Kind, read};
use crate::operate::audit::Did;

pub(super) async fn way_in(
    State(state): State<ApiState>,
    by: By,
    Path(name): Path<String>,
) -> Result<([(HeaderName, &'static str); 1], Json<WayIn>), Failure> {
    let machine = read::find(&state.boot.machines, &name)?;
    let label = machine.label();
    let Some(rescue) = state.boot.rescues.way_in(machine.mac) else {
        let error = format!("no SSH server of {label} was heard of");
        let hint = "a boot that failed or is held has one where the profile or node says rescue = \"ssh\"; \
                    this daemon knows those since it started";
        return Err(Failure::new(Kind::NotFound, error, hint));
    };
    let document = WayIn {
        node: label.clone(),
        mac: machine.mac,
        address: machine.address,
        user: "root".to_owned(),
        password: rescue.password.map(|password| password.to_string()),
        host_key: rescue.stands.host_key,
        heard: rescue.stands.heard,
    };
    by.did(Did::new("node.rescue").on(label)).await;
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(document)))
}
