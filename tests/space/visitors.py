"""Somebody at the page: what they click, and what their browser asked for."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from tests.space.serving import Space

WAIT = 30_000
SAMPLES = ("examples/zoo/math", "examples/zoo/medicine", "examples/zoo/finance")


class Visitor:
    """One visitor with a browser context of their own, maybe signed in."""

    def __init__(self, space: Space, browser: Any, *, as_user: str | None = None, width: int = 1180, **settings: Any):
        self.space = space
        self.foreign: list[str] = []
        self.complaints: list[str] = []
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, accept_downloads=True, reduced_motion="reduce", **settings
        )
        if as_user:
            self.context.add_cookies([session_cookie(space, as_user)])
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.page.on("request", self._requested)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _requested(self, request: Any) -> None:
        if not request.url.startswith((f"{self.space.url}/", "data:", "blob:")):
            self.foreign.append(request.url)

    def open(self, path: str = "/") -> None:
        self.page.goto(f"{self.space.url}{path}")
        self.page.wait_for_selector("#results .hm-row, #results .hm-empty")

    def leave(self) -> None:
        self.context.close()

    def find(self, text: str) -> None:
        self.page.fill("#find textarea", text)
        self.page.click("#search")
        self.page.get_by_text(f"Found for {text}").wait_for()

    def add(self, *references: str) -> None:
        for reference in references:
            self.page.click(f'#results [data-action="add"][data-reference="{reference}"]')
            self.page.wait_for_selector(f'#tray [data-reference="{reference}"]')

    def fits(self) -> None:
        """Wait for the verdict on what was added."""
        self.page.wait_for_selector("#fit .hm-verdict.hm-good")
        self.page.wait_for_selector("#measure:not([disabled])")

    def measure(self) -> None:
        self.page.click("#measure")
        self.page.wait_for_selector("#heat .hm-heat")
        self.page.wait_for_selector("#kept .hm-bars")

    def merge(self) -> None:
        self.page.click("#merge")
        self.page.wait_for_selector("#proof .hm-verdict.hm-good")
        self.page.wait_for_selector("#download")

    def kept(self) -> list[float]:
        return [float(text) for text in self.page.locator("#kept .hm-bar-value").all_inner_texts()]

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def alert(self) -> str:
        """Return the failure that is shown."""
        found = self.page.locator('[role="alert"]').first
        found.wait_for()
        return str(found.inner_text())

    def shoot(self, path: Path) -> None:
        self.page.wait_for_timeout(400)
        self.page.screenshot(path=path, full_page=True)


def session_cookie(space: Space, user: str) -> dict[str, Any]:
    """Return the cookie that a visitor has after signing in, signed as the page signs it outside a Space."""
    from itsdangerous import TimestampSigner

    token = space.hub.token(user)
    userinfo = {
        "name": user.title(),
        "preferred_username": user,
        "profile": f"{space.hub.endpoint}/{user}",
        "picture": "",
    }
    session = {
        "oauth_info": {
            "access_token": token,
            "scope": "openid profile contribute-repos",
            "expires_at": int(time.time()) + 3600,
            "userinfo": userinfo,
        }
    }
    secret = hashlib.sha256(b"-v4").hexdigest()
    value = TimestampSigner(secret).sign(base64.b64encode(json.dumps(session).encode())).decode()
    return {"name": "session", "value": value, "url": space.url, "secure": False, "httpOnly": True}
