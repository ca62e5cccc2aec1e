"""When two base-model names are the same model.

Adapters state their base as a Hub id, an old id without an owner, a path of the machine that trained them, a path into
the Hub cache, or not at all. This module reads such a name without asking the network; ``Hub.canonical`` follows
renames, ``Hub.original`` what the cards of quantised copies say, and ``lineage`` compares the bases of adapters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

__all__ = ["HUB_ID", "Base", "former_name", "read_base", "same_name", "without_quantisation"]

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

QUANTISED = re.compile(
    r"""
    (?: [-_.] (?: unsloth | dynamic | quantized | marlin | mlx | \d+g ) )*
    [-_.] (?: bnb | gptq | awq | gguf | ggml | exl[23] | hqq | aqlm | nf4 | fp[48] | int[2348] | [2-8]bits?
            | [2-8](?:\.\d+)?bpw | w[48]a(?:8|16) | q[2-8](?:_[0-9kmsl]+)* | q\df\d+(?:_\d)? )
    (?: [-_.] (?: [2-8]bits? | int[2348] | dynamic | marlin | \d+g | [2-8](?:\.\d+)?bpw | mlc | bnb
            | w[48]a(?:8|16) | g\d+ ) )*
    $""",
    re.VERBOSE | re.IGNORECASE,
)
"""How names of quantised copies end: ``-bnb-4bit``, ``-unsloth-bnb-4bit``, ``-GPTQ-Int4``, ``-AWQ``, ``-GGUF``, ..."""


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


def former_name(model_id: str) -> str | None:
    """Return the name without an owner that a model had before it moved, ``None`` if it had none."""
    owner, _, name = model_id.partition("/")
    return name if name and read_base(name).model_id == f"{owner}/{name}" else None


def without_quantisation(model_id: str) -> str | None:
    """Return ``model_id`` without the ending that names a way to quantise, ``None`` if its name has none."""
    shorter = QUANTISED.sub("", model_id)
    return shorter if shorter != model_id and not shorter.endswith("/") else None


def same_name(model_id: str, other: str) -> bool:
    """Whether two ids have one name but for their owners, upper case and the ending of a quantised copy."""
    names = [(without_quantisation(name) or name).rpartition("/")[2].casefold() for name in (model_id, other)]
    return names[0] == names[1]
