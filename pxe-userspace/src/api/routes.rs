//! The API's routes, each with its least role.

use axum::Router;
use axum::extract::{DefaultBodyLimit, Extension, Request, State};
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodFilter, on};

use super::door::{self, By, is_reading};
use super::openapi::{self, Described, Openapi};
use super::{ApiState, Failure, Kind};
use super::{
    audit, console, events, failure, files, hold, images, kernels, login, metrics, nodes, page, read, rescue,
    session, tokens, trace,
};
use crate::machines::kept::table::TABLE_MAX;
use crate::operate::access::{Caller, Role};
use crate::operate::audit::{Audit, Did};

/// A builder of routes. No route can be added without a role and a description.
struct Routes {
    router: Router<ApiState>,
    audit: Audit,
    table: Vec<(Method, &'static str, Role)>,
    openapi: Openapi,
    /// Bytes of the next route's bodies, where the usual 2 MiB are too few.
    large: Option<usize>,
}

/// The data that a route's guard needs.
#[derive(Clone)]
struct Guard {
    role: Role,
    audit: Audit,
}

impl Routes {
    fn new(audit: Audit) -> Self {
        Self { router: Router::new(), audit, table: Vec::new(), openapi: Openapi::new(), large: None }
    }

    /// The next route takes bodies of so many bytes.
    fn large(self, bytes: usize) -> Self {
        Self { large: Some(bytes), ..self }
    }

    /// Adds a route, and says in a sentence what it is for. The rest of its description is in the handler's types.
    fn on<T: 'static, P, H: Handler<T, ApiState> + Described<P>>(
        mut self,
        role: Role,
        method: Method,
        path: &'static str,
        handler: H,
        summary: &'static str,
    ) -> Self {
        self.openapi.add(Some(role), &method, path, &handler, summary);
        let filter = MethodFilter::try_from(method.clone()).expect("a method that routes can have");
        let guard = Guard { role, audit: self.audit.clone() };
        let mut route = on(filter, handler).route_layer(from_fn_with_state(guard, pass));
        if let Some(bytes) = self.large.take() {
            route = route.layer(DefaultBodyLimit::max(bytes));
        }
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
        .on(Viewer, get.clone(), "/", page::page, "The page for people.")
        .on(Viewer, get.clone(), "/api/openapi.json", openapi::document, "This document.")
        .on(
            Viewer,
            get.clone(),
            "/metrics",
            metrics::metrics,
            "What is measured, in Prometheus' text format or OpenMetrics.",
        )
        .on(
            Viewer,
            get.clone(),
            "/api/status",
            read::status,
            "How the appliance is: version, bridge, pool, ports, boots, alerts, counters.",
        )
        .on(
            Viewer,
            get.clone(),
            "/api/nodes",
            nodes::list,
            "Every machine that was seen or declared, or some of them.",
        )
        // No name has a dot.
        .on(Viewer, get.clone(), "/api/nodes.csv", nodes::export, "The machines that are kept, as a table.")
        .on(Viewer, get.clone(), "/api/nodes/{name}", read::node, "One machine.")
        .on(Viewer, get.clone(), "/api/nodes/{name}/why", read::why, "The state of its last boot, and why.")
        .on(
            Viewer,
            get.clone(),
            "/api/why",
            read::all_why,
            "The same of every machine whose boot is in progress, failed, or had problems.",
        )
        .on(
            Viewer,
            get.clone(),
            "/api/nodes/{name}/console",
            console::console,
            "The lines of a boot's console.",
        )
        .on(Viewer, get.clone(), "/api/nodes/{name}/logs", console::logs, "What its workload wrote.")
        .on(Viewer, get.clone(), "/api/leases", read::leases, "The leases.")
        .on(Viewer, get.clone(), "/api/files", read::files, "The files below the files root.")
        .on(
            Viewer,
            get.clone(),
            "/api/profiles",
            read::profiles,
            "The profiles, and whether a machine could boot them.",
        )
        .on(Viewer, get.clone(), "/api/workloads", read::workloads, "The workloads, and how they are.")
        .on(Viewer, get.clone(), "/api/events", events::events, "The timeline.")
        .on(Viewer, get.clone(), "/api/images", images::list, "The images.")
        .on(Viewer, get.clone(), "/api/kernels", kernels::list, "The kernels, and which is the default.")
        .on(Viewer, get.clone(), "/files/{*path}", files::below_root, "A file below the files root.")
        // The handler grants no more than the caller's own role.
        .on(
            Viewer,
            post.clone(),
            "/api/login",
            login::invite,
            "Links to the page that log one browser in, once.",
        )
        .on(Operator, post.clone(), "/api/nodes/{name}/hold", hold::hold, "Holds its boots in stage 1.")
        .on(
            Operator,
            delete.clone(),
            "/api/nodes/{name}/hold",
            hold::release,
            "Releases it, also from a boot that failed.",
        )
        .on(
            Operator,
            get.clone(),
            "/api/nodes/{name}/rescue",
            rescue::way_in,
            "How to log in to a boot that failed or is held.",
        )
        .on(
            Operator,
            post.clone(),
            "/api/nodes/{name}/rekey",
            session::rekey,
            "Says that it is the machine that boots.",
        )
        .on(
            Operator,
            get.clone(),
            "/api/nodes/{name}/trace",
            trace::trace,
            "Its packets, until its boot ends.",
        )
        .on(Admin, post.clone(), "/api/nodes", nodes::add, "Declares a machine.")
        .on(Admin, Method::PATCH, "/api/nodes", nodes::set, "Changes machines that are kept.")
        .on(
            Admin,
            delete.clone(),
            "/api/nodes",
            nodes::remove,
            "Forgets machines that are kept, and names that rules gave.",
        )
        .on(Admin, post.clone(), "/api/nodes/{name}/adopt", nodes::adopt, "Declares a machine that was seen.")
        .large(TABLE_MAX)
        .on(
            Admin,
            post.clone(),
            "/api/nodes.csv",
            nodes::import,
            "Declares the machines of a table: all of them or none.",
        )
        .on(Admin, post.clone(), "/api/images", images::add, "Imports an image.")
        .on(Admin, post.clone(), "/api/images/gc", images::collect, "Deletes blobs that nothing refers to.")
        // A reference has slashes in it.
        .on(Admin, delete.clone(), "/api/images/{*reference}", images::remove, "Removes an image.")
        .on(Admin, post.clone(), "/api/kernels", kernels::add, "Adds a kernel.")
        .on(Admin, delete.clone(), "/api/kernels/{name}", kernels::remove, "Removes a kernel.")
        .on(
            Admin,
            put,
            "/api/default-kernel",
            kernels::set_default,
            "Sets the kernel for images without their own.",
        )
        .on(Admin, post.clone(), "/api/reload", read::reload, "Applies a changed configuration file.")
        .on(Admin, get.clone(), "/api/tokens", tokens::list, "The tokens, without their secrets.")
        .on(Admin, post, "/api/tokens", tokens::add, "Makes a token. Only this answer has its secret.")
        .on(
            Admin,
            delete,
            "/api/tokens/{name}",
            tokens::remove,
            "Removes a token, and ends the logins that it made.",
        )
        .on(Admin, get, "/api/audit", audit::audit, "What was changed, when and by whom.")
}

/// The API, behind authentication. The listeners in `people` say how each request arrived.
pub fn api_router(state: ApiState) -> Router {
    let door = state.access.clone();
    let Routes { router, mut openapi, .. } = routes(state.access.audit.clone());
    let words = "Trades the code of a login link for a cookie. No role is needed.";
    openapi.add(None, &Method::GET, login::PATH, &login::enter, words);
    router
        // A client without a role gets one here.
        .route(login::PATH, axum::routing::get(login::enter))
        .fallback(failure::no_such_route)
        .method_not_allowed_fallback(failure::method_not_allowed)
        .layer(Extension(openapi.document()))
        .layer(from_fn_with_state(door, door::enter))
        .with_state(state)
}

#[cfg(test)]
pub(super) fn table(audit: Audit) -> Vec<(Method, &'static str, Role)> {
    routes(audit).table
}
