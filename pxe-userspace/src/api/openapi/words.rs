//! What each route is for, in a sentence.

#[rustfmt::skip]
pub(super) const WORDS: &[(&str, &str)] = &[
    ("GET /api/openapi.json", "This document."),
    ("GET /metrics", "What is measured, in Prometheus' text format or OpenMetrics."),
    ("GET /api/status", "How the appliance is: version, bridge, pool, ports, boots, alerts, counters."),
    ("GET /api/nodes", "Every machine that was seen or declared, or some of them."),
    ("GET /api/nodes.csv", "The machines that are kept, as a table."),
    ("GET /api/nodes/{name}", "One machine."),
    ("GET /api/nodes/{name}/why", "The state of its last boot, and why."),
    ("GET /api/why", "The same of every machine whose boot is in progress, failed, or had problems."),
    ("GET /api/nodes/{name}/console", "The lines of a boot's console."),
    ("GET /api/nodes/{name}/logs", "What its workload wrote."),
    ("GET /api/leases", "The leases."),
    ("GET /api/files", "The files below the files root."),
    ("GET /api/profiles", "The profiles, and whether a machine could boot them."),
    ("GET /api/workloads", "The workloads, and how they are."),
    ("GET /api/events", "The timeline."),
    ("GET /api/images", "The images."),
    ("GET /api/kernels", "The kernels, and which is the default."),
    ("GET /files/{*path}", "A file below the files root."),
    ("POST /api/login", "Links to the page that log one browser in, once."),
    ("DELETE /api/login", "Ends the browser's session."),
    ("POST /api/nodes/{name}/hold", "Holds its boots in stage 1."),
    ("DELETE /api/nodes/{name}/hold", "Releases it, also from a boot that failed."),
    ("GET /api/nodes/{name}/rescue", "How to log in to a boot that failed or is held."),
    ("POST /api/nodes/{name}/rekey", "Says that it is the machine that boots."),
    ("GET /api/nodes/{name}/trace", "Its packets, until its boot ends."),
    ("GET /api/power", "Whether machines are on, one a line as they answer."),
    ("POST /api/power", "Switches machines on or off, one a line as they are done."),
    ("POST /api/nodes/{name}/trust", "Trusts the certificate that its BMC shows now."),
    ("GET /api/power/credentials", "The credentials for BMCs, without their passwords."),
    ("PUT /api/power/credentials/{name}", "Keeps credentials for BMCs."),
    ("DELETE /api/power/credentials/{name}", "Forgets them."),
    ("POST /api/nodes", "Declares a machine."),
    ("PATCH /api/nodes", "Changes machines that are kept."),
    ("DELETE /api/nodes", "Forgets machines that are kept, and names that rules gave."),
    ("POST /api/nodes/{name}/adopt", "Declares a machine that was seen."),
    ("POST /api/nodes.csv", "Declares the machines of a table: all of them or none."),
    ("POST /api/images", "Imports an image."),
    ("POST /api/images/gc", "Deletes blobs that nothing refers to."),
    ("DELETE /api/images/{*reference}", "Removes an image."),
    ("POST /api/kernels", "Adds a kernel."),
    ("DELETE /api/kernels/{name}", "Removes a kernel."),
    ("PUT /api/default-kernel", "Sets the kernel for images without their own."),
    ("POST /api/reload", "Applies a changed configuration file."),
    ("GET /api/tokens", "The tokens, without their secrets."),
    ("POST /api/tokens", "Makes a token. Only this answer has its secret."),
    ("DELETE /api/tokens/{name}", "Removes a token, and ends the logins that it made."),
    ("GET /api/audit", "What was changed, when and by whom."),
    ("GET /login", "Trades the code of a login link for a cookie. No role is needed."),
];

/// The sentence on a route; a test holds that there is one.
pub(super) fn of(method: &str, path: &str) -> &'static str {
    let words = WORDS.iter().find(|(route, _)| route.split_once(' ') == Some((method, path)));
    words.map_or("", |(_, words)| words)
}
