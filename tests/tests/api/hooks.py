"""What schemathesis has to know of Bridgehead, and a check of our own: what a role forbids is refused.

The token comes in the environment, because others can see a program's arguments.
"""

import os

import schemathesis

ROLES = ["viewer", "operator", "admin"]
ROLE = os.environ["BRIDGEHEAD_ROLE"]
TOKEN = os.environ["BRIDGEHEAD_TOKEN"]
# Machines that there are, so that not every request is of one that there is none of.
MACHINES = ["n1", "n2", "52:54:00:77:00:01"]


@schemathesis.hook
def before_call(context, case, kwargs):
    """Every request has this role's token, whatever else was made up for it."""
    case.headers = dict(case.headers or {})
    for name in [name for name in case.headers if name.lower() in ("authorization", "cookie")]:
        del case.headers[name]
    case.headers["Authorization"] = f"Bearer {TOKEN}"
    case.cookies = {}
    # A stream that is followed does not end.
    if isinstance(case.query, dict):
        case.query.pop("follow", None)
    name = (case.path_parameters or {}).get("name")
    # Names from earlier answers are tried, too: whoever removed the token that it asks with would be asked no more.
    if case.path == "/api/tokens/{name}" and isinstance(name, str) and name.endswith("-of-this-test"):
        case.path_parameters["name"] = "one that there is not"
    if case.path.startswith("/api/nodes/") and isinstance(name, str) and len(name) % 4 != 0:
        case.path_parameters["name"] = MACHINES[len(name) % len(MACHINES)]


@schemathesis.check
def role_is_enforced(ctx, response, case):
    """403 exactly where the operation asks for more than the role has."""
    least = case.operation.definition.raw.get("x-least-role")
    assert response.status_code != 401, "the token is valid"
    if case.method.upper() != case.operation.method.upper():
        # Made up: no route of this path has this method.
        assert response.status_code == 405, f"{case.method} got {response.status_code}"
        return
    if least is not None and ROLES.index(ROLE) < ROLES.index(least):
        assert response.status_code == 403, f"{ROLE} got {response.status_code} where {least} is the least role"
        assert f"this takes the role {least}" in response.text, response.text
    else:
        assert "this takes the role" not in response.text, response.text
