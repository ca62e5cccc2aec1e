"""Who the caller is, and the calls every client makes on the side."""

from __future__ import annotations

from starlette.responses import Response

from . import access
from .http import Call, Routes, answer

routes = Routes()


@routes("GET", r"/api/whoami-v2")
def whoami(call: Call) -> Response:
    user = access.logged_in(call)
    return answer(
        {
            "type": "user",
            "id": user.name,
            "name": user.name,
            "fullname": user.name.title(),
            "email": f"{user.name}@example.org",
            "isPro": False,
            "canPay": False,
            "avatarUrl": f"{call.state.endpoint}/avatars/{user.name}.svg",
            "orgs": [{"type": "org", "name": name, "roleInOrg": role} for name, role in user.organisations.items()],
            "auth": {
                "type": "access_token",
                "accessToken": {"displayName": f"{user.name}'s token", "role": user.role},
            },
        }
    )


@routes("GET", r"/api/agent-harnesses")
def agent_harnesses(call: Call) -> Response:
    return answer({"standardEnvVars": ["AI_AGENT", "AGENT"], "harnesses": {}})


@routes("GET", r"/api/telemetry/{path}")
def telemetry(call: Call) -> Response:
    return answer({})
