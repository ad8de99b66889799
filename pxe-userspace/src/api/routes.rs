//! The API's routes, each with its least role.

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodFilter, on};
use axum::{Extension, Router};

use super::door::{self, By, is_reading};
use super::launches;
use super::openapi::{self, Described, Openapi};
use super::page::OwnApi;
use super::{ApiState, Failure, Kind};
use super::{
    audit, console, events, facts, failure, files, hold, images, kernels, login, metrics, nodes, page, power,
    read, rescue, session, tokens, trace,
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

    /// Adds a route. Its description is in the handler's types, and a sentence on it in `openapi::words`.
    fn on<T: 'static, P, H: Handler<T, ApiState> + Described<P>>(
        mut self,
        role: Role,
        method: Method,
        path: &'static str,
        handler: H,
    ) -> Self {
        self.openapi.add(Some(role), &method, path, &handler);
        self.add(role, method, path, handler)
    }

    /// Adds a page, which is for people and in no description.
    fn page<T: 'static>(self, role: Role, path: &'static str, handler: impl Handler<T, ApiState>) -> Self {
        self.add(role, Method::GET, path, handler)
    }

    fn add<T: 'static>(
        mut self,
        role: Role,
        method: Method,
        path: &'static str,
        handler: impl Handler<T, ApiState>,
    ) -> Self {
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
        .on(Viewer, get.clone(), "/api/openapi.json", openapi::document)
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
        .on(Viewer, delete.clone(), "/api/login", login::leave)
        .on(Viewer, get.clone(), "/api/launches", launches::list)
        .on(Viewer, get.clone(), "/api/launches/{id}", launches::show)
        .on(Viewer, get.clone(), "/api/launch-events", launches::events)
        .on(Operator, post.clone(), "/api/launches", launches::launch)
        .on(Operator, post.clone(), "/api/launches/{id}/cancel", launches::cancel)
        .on(Operator, post.clone(), "/api/launches/{id}/undo", launches::undo)
        .on(Operator, post.clone(), "/api/nodes/{name}/hold", hold::hold)
        .on(Operator, delete.clone(), "/api/nodes/{name}/hold", hold::release)
        .on(Operator, get.clone(), "/api/nodes/{name}/rescue", rescue::way_in)
        .on(Operator, post.clone(), "/api/nodes/{name}/rekey", session::rekey)
        .on(Operator, get.clone(), "/api/nodes/{name}/trace", trace::trace)
        // BMCs have few sessions and little time: not for everybody who looks.
        .on(Operator, get.clone(), "/api/power", power::status)
        .on(Operator, post.clone(), "/api/power", power::order)
        .on(Admin, post.clone(), "/api/nodes/{name}/trust", power::trust)
        .on(Admin, get.clone(), "/api/power/credentials", power::credentials)
        .on(Admin, put.clone(), "/api/power/credentials/{name}", power::add_credentials)
        .on(Admin, delete.clone(), "/api/power/credentials/{name}", power::remove_credentials)
        .on(Admin, post.clone(), "/api/nodes", nodes::add)
        .on(Admin, Method::PATCH, "/api/nodes", nodes::set)
        .on(Admin, delete.clone(), "/api/nodes", nodes::remove)
        .on(Admin, post.clone(), "/api/nodes/{name}/adopt", nodes::adopt)
        .large(TABLE_MAX)
        .on(Admin, post.clone(), "/api/nodes.csv", nodes::import)
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

/// The pages, for browsers.
fn pages(audit: Audit) -> Routes {
    use Role::{Admin, Viewer};
    Routes::new(audit)
        .page(Viewer, "/", page::overview::overview)
        .page(Viewer, "/machines", page::machines::machines)
        .page(Viewer, "/machines/{name}", page::machine::machine)
        .page(Viewer, "/launches", page::launches::launches)
        .page(Viewer, "/launches/{id}", page::launches::launch)
        .page(Viewer, "/images", page::images::images)
        .page(Viewer, "/live", page::stream::stream)
        .page(Admin, "/audit", page::people::audit)
        .page(Admin, "/tokens", page::people::tokens)
}

/// The API, behind authentication. The listeners in `people` say how each request arrived.
pub fn api_router(state: ApiState) -> Router {
    let door = state.access.clone();
    let audit = state.access.audit.clone();
    let Routes { router: api, mut openapi, .. } = routes(audit.clone());
    openapi.add(None, &Method::GET, login::PATH, &login::enter);
    // A page asks the API past the door, which its own request has passed.
    let inside = api
        .clone()
        .fallback(failure::no_such_route)
        .layer(map_response(failure::as_document))
        .with_state(state.clone());
    api.merge(pages(audit).router.layer(Extension(OwnApi(inside))))
        // A client without a role gets one here.
        .route(login::PATH, axum::routing::get(login::enter))
        .route(page::ASSET, axum::routing::get(page::asset))
        .fallback(failure::no_such_route)
        .method_not_allowed_fallback(failure::method_not_allowed)
        .layer(Extension(openapi.document()))
        .layer(from_fn_with_state(door, door::enter))
        .with_state(state)
}

#[cfg(test)]
pub(super) fn table(audit: Audit) -> Vec<(Method, &'static str, Role)> {
    [pages(audit.clone()).table, routes(audit).table].concat()
}

/// Without the pages.
#[cfg(test)]
pub(super) fn described_table(audit: Audit) -> Vec<(Method, &'static str, Role)> {
    routes(audit).table
}
