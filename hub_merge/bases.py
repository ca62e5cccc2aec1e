"""When two base-model names are the same model.

Adapters state their base as a Hub id, an old id without an owner, a path of the machine that trained them, a path into
the Hub cache, or not at all. This module reads such a name without asking the network; ``Hub.canonical`` follows
renames.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

__all__ = ["HUB_ID", "Base", "read_base"]

CACHE_PATH = re.compile(
    r"(?:^|[/\\])models--(?:(?P<owner>[^/\\]+?)--)?(?P<name>[^/\\]+)(?:[/\\]snapshots[/\\](?P<commit>[0-9a-f]{40}))?"
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""``owner/name``."""

OWNERS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), owner)
    for pattern, owner in (
        (r"gpt2(-medium|-large|-xl)?|openai-gpt", "openai-community"),
        (r"distil(gpt2|bert-.+|roberta-base)", "distilbert"),
        (r"bert-(base|large)-.+", "google-bert"),
        (r"(xlm-)?roberta-(base|large)(-openai-detector|-mnli)?", "FacebookAI"),
        (r"t5-(small|base|large|3b|11b)", "google-t5"),
        (r"albert-(base|large|xlarge|xxlarge)-v[12]", "albert"),
        (r"xlnet-(base|large)-cased", "xlnet"),
    )
)
"""Models that were on the Hub without an owner and moved; the old names redirect there."""


@dataclass(frozen=True, slots=True)
class Base:
    """What a stated base name amounts to.

    Attributes:
        model_id: The Hub id it stands for, ``None`` if it is no Hub id.
        label: What may be shown of it: the id, or the last part of a path.
        revision: Commit that a cache path pins.
    """

    model_id: str | None
    label: str
    revision: str | None = None


def read_base(stated: str | None) -> Base:
    """Return what ``stated`` amounts to; a path keeps its last part only, for the rest tells of somebody's machine."""
    if not stated or not stated.strip():
        return Base(None, "not stated")
    stated = stated.strip()
    if cached := CACHE_PATH.search(stated):
        model_id = f"{cached['owner']}/{cached['name']}" if cached["owner"] else cached["name"]
        return replace(read_base(model_id), revision=cached["commit"])
    if HUB_ID.fullmatch(stated):
        return Base(stated, stated)
    if owner := next((owner for pattern, owner in OWNERS if pattern.fullmatch(stated)), None):
        return Base(f"{owner}/{stated}", f"{owner}/{stated}")
    return Base(None, re.split(r"[/\\]+", stated.rstrip("/\\"))[-1] or "not stated")
