//! The API's routes, each with its least role.

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodFilter, on};

use super::door::{self, By, is_reading};
use super::{ApiState, Failure, Kind};
use super::{
    audit, console, events, facts, failure, files, hold, images, kernels, login, metrics, nodes, page, read,
    rescue, session, tokens, trace,
};
use crate::machines::kept::table::TABLE_MAX;
use crate::operate::access::{Caller, Role};
use crate::operate::audit::{Audit, Did};

/// A builder of routes. No route can be added without a role.
struct Routes {
    router: Router<ApiState>,
    audit: Audit,
    table: Vec<(Method, &'static str, Role)>,
}

/// The data that a route's guard needs.
#[derive(Clone)]
struct Guard {
    role: Role,
    audit: Audit,
}

impl Routes {
    fn new(audit: Audit) -> Self {
        Self { router: Router::new(), audit, table: Vec::new() }
    }

    fn on<T: 'static>(
        mut self,
        role: Role,
        method: Method,
        path: &'static str,
        handler: impl Handler<T, ApiState>,
    ) -> Self {
        let filter = MethodFilter::try_from(method.clone()).expect("a method that routes can have");
        let guard = Guard { role, audit: self.audit.clone() };
        let route = on(filter, handler).route_layer(from_fn_with_state(guard, pass));
        self.router = self.router.route(path, route);
        self.table.push((method, path, role));
        self
    }
}

/// Passes requests of callers whose role is sufficient. Changes that a handler does not record are recorded here.
async fn pass(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let Some(caller) = request.extensions().get::<Caller>().cloned() else {
        return Failure::new(Kind::Unknown, "a token is needed", "see `bridgehead token add`")
            .into_response();
    };
    if caller.role < guard.role {
        let error = format!("this takes the role {}, and {} is {}", guard.role, caller.who, caller.role);
        let hint = "ask who may for it, or for a token that does: docs/api.md has the roles";
        return Failure::new(Kind::Forbidden, error, hint).into_response();
    }
    let by = By::new(caller, guard.audit);
    request.extensions_mut().insert(by.clone());
    let what =
        (!is_reading(request.method())).then(|| format!("{} {}", request.method(), request.uri().path()));
    let response = next.run(request).await;
    if let Some(what) = what.filter(|_| response.status().is_success() && !by.was_told()) {
        by.did(Did::new(&what)).await;
    }
    response
}

fn routes(audit: Audit) -> Routes {
    use Role::{Admin, Operator, Viewer};
    let (get, post, put, delete) = (Method::GET, Method::POST, Method::PUT, Method::DELETE);
    Routes::new(audit)
        .on(Viewer, get.clone(), "/", page::page)
        .on(Viewer, get.clone(), "/metrics", metrics::metrics)
        .on(Viewer, get.clone(), "/api/status", read::status)
        .on(Viewer, get.clone(), "/api/nodes", nodes::list)
        // No name has a dot.
        .on(Viewer, get.clone(), "/api/nodes.csv", nodes::export)
        .on(Viewer, get.clone(), "/api/nodes/{name}", read::node)
        .on(Viewer, get.clone(), "/api/nodes/{name}/facts", facts::facts)
        .on(Viewer, get.clone(), "/api/nodes/{name}/why", read::why)
        .on(Viewer, get.clone(), "/api/why", read::all_why)
        .on(Viewer, get.clone(), "/api/nodes/{name}/console", console::console)
        .on(Viewer, get.clone(), "/api/nodes/{name}/logs", console::logs)
        .on(Viewer, get.clone(), "/api/leases", read::leases)
        .on(Viewer, get.clone(), "/api/files", read::files)
        .on(Viewer, get.clone(), "/api/profiles", read::profiles)
        .on(Viewer, get.clone(), "/api/workloads", read::workloads)
        .on(Viewer, get.clone(), "/api/events", events::events)
        .on(Viewer, get.clone(), "/api/images", images::list)
        .on(Viewer, get.clone(), "/api/kernels", kernels::list)
        .on(Viewer, get.clone(), "/files/{*path}", files::below_root)
        // The handler grants no more than the caller's own role.
        .on(Viewer, post.clone(), "/api/login", login::invite)
        .on(Operator, post.clone(), "/api/nodes/{name}/hold", hold::hold)
        .on(Operator, delete.clone(), "/api/nodes/{name}/hold", hold::release)
        .on(Operator, get.clone(), "/api/nodes/{name}/rescue", rescue::way_in)
        .on(Operator, post.clone(), "/api/nodes/{name}/rekey", session::rekey)
        .on(Operator, get.clone(), "/api/nodes/{name}/trace", trace::trace)
        .on(Admin, post.clone(), "/api/nodes", nodes::add)
        .on(Admin, Method::PATCH, "/api/nodes", nodes::set)
        .on(Admin, delete.clone(), "/api/nodes", nodes::remove)
        .on(Admin, post.clone(), "/api/nodes/{name}/adopt", nodes::adopt)
        .on(
            Admin,
            post.clone(),
            "/api/nodes.csv",
            Handler::<_, ApiState>::layer(nodes::import, DefaultBodyLimit::max(TABLE_MAX)),
        )
        .on(Admin, post.clone(), "/api/images", images::add)
        .on(Admin, post.clone(), "/api/images/gc", images::collect)
        // A reference has slashes in it.
        .on(Admin, delete.clone(), "/api/images/{*reference}", images::remove)
        .on(Admin, post.clone(), "/api/kernels", kernels::add)
        .on(Admin, delete.clone(), "/api/kernels/{name}", kernels::remove)
        .on(Admin, put, "/api/default-kernel", kernels::set_default)
        .on(Admin, post.clone(), "/api/reload", read::reload)
        .on(Admin, get.clone(), "/api/tokens", tokens::list)
        .on(Admin, post, "/api/tokens", tokens::add)
        .on(Admin, delete, "/api/tokens/{name}", tokens::remove)
        .on(Admin, get, "/api/audit", audit::audit)
}

/// The API, behind authentication. The listeners in `people` say how each request arrived.
pub fn api_router(state: ApiState) -> Router {
    let door = state.access.clone();
    routes(state.access.audit.clone())
        .router
        // A client without a role gets one here.
        .route(login::PATH, axum::routing::get(login::enter))
        .fallback(failure::no_such_route)
        .method_not_allowed_fallback(failure::method_not_allowed)
        .layer(from_fn_with_state(door, door::enter))
        .with_state(state)
}

#[cfg(test)]
pub(super) fn table(audit: Audit) -> Vec<(Method, &'static str, Role)> {
    routes(audit).table
}
