//! The API's page for browsers.

use std::fmt::Write as _;

use axum::extract::State;
use axum::response::Html;

use super::ApiState;
use crate::base::text::word;

pub(super) async fn page(State(state): State<ApiState>) -> Html<String> {
    let mut rows = String::new();
    for machine in state.boot.machines.all() {
        let stage = machine.stage.map_or_else(|| "not seen".to_owned(), word);
        let address = machine.address.map_or_else(String::new, |a| a.to_string());
        // Writing to a String can't fail.
        let _ = write!(
            rows,
            "<tr><td>{}<td>{}<td>{address}<td>{}<td>{stage}",
            escape(machine.name.as_deref().unwrap_or("-")),
            machine.mac,
            escape(machine.profile.as_deref().unwrap_or("-")),
        );
    }
    Html(format!(
        "<!doctype html><meta charset=utf-8><title>Bridgehead</title><h1>Bridgehead</h1>\
         <table><tr><th>Node<th>MAC<th>Address<th>Profile<th>Stage{rows}</table>\
         <p><a href=/api/status>status</a> <a href=/api/events>events</a> <a href=/metrics>metrics</a>"
    ))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
