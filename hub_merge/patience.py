"""How long hf_xet, through which large files go, repeats a request by itself when its store does not answer.

By default that takes minutes, in which nothing can be told. A process of ours, the command line or the page, is about
as patient with it as with the Hub; whoever uses the package from Python sets these variables, or not.
"""

from __future__ import annotations

import os

__all__ = ["BOUNDS", "bound_transfers"]

BOUNDS = {
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "4",
    "HF_XET_CLIENT_RETRY_MAX_DURATION": "20s",
    "HF_XET_CLIENT_CONNECT_TIMEOUT": "10s",
}
"""Settings of hf_xet: its pauses are random, up to 3, 9, 20 and 20 seconds with these, 52 in all."""


def bound_transfers() -> None:
    """Bound what hf_xet does in this process and those that it starts, where the user has not said otherwise."""
    for name, value in BOUNDS.items():
        os.environ.setdefault(name, value)
