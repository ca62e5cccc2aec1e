"""Who may sign in here, and as whom."""

from __future__ import annotations

import os

__all__ = ["address", "own_token", "signs_in"]

LOCAL_STAND_IN = "mock-oauth-token-for-local-dev"
"""What Gradio hands out in place of a token where it runs outside a Space."""


def in_space() -> bool:
    """Tell whether this process serves a Space."""
    return os.environ.get("SYSTEM") == "spaces"


def address() -> str | None:
    """Return where to listen: outside a Space, where the page has this machine's login, for this machine alone."""
    return None if in_space() else "127.0.0.1"


def signs_in() -> bool:
    """Tell whether visitors can sign in: in a Space always, on one's own machine if a login is stored there."""
    from huggingface_hub import get_token

    return in_space() or get_token() is not None


def own_token(token: str) -> str | None:
    """Return the token to use for a visitor's ``token``.

    On one's own machine, where nobody else reaches the page, signing in means to use one's stored login.
    """
    from huggingface_hub import get_token

    return get_token() if token == LOCAL_STAND_IN and not in_space() else token
