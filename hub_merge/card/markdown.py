"""Text from elsewhere as Markdown and YAML that show it and do nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from hub_merge.bases import HUB_ID
from hub_merge.privacy import one_line, scrub

__all__ = ["BLANK", "Markdown", "clean", "cleaned", "code_span", "escape", "fenced", "hub_id", "link", "to_yaml"]

HUB = "https://huggingface.co"
BLANK = "–"
LONGEST_TEXT = 400
AS_ENTITY = re.compile(r"[\\<>&|$]")
MARKUP = re.compile(r"[`*~\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
BLOCK_OPENING = re.compile(r"^(\d*)([#+=-]|(?<=\d)[.)](?=\s|$))")
LINK_INSIDE = re.compile(r":(?=//)|\bwww(?=\.)|@", re.IGNORECASE)


class Markdown(str):
    """Text that a helper of this module has made fit for printing as Markdown."""

    __slots__ = ()


def clean(value: object) -> str:
    """Return ``value`` as one short line of visible characters, scrubbed."""
    text = one_line(str(value))
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def escape(value: object) -> Markdown:
    """Return ``value`` as Markdown that shows it literally: no markup, link, HTML, formula or table column."""
    text = AS_ENTITY.sub(lambda found: f"&#{ord(found[0])};", clean(value))
    text = MARKUP.sub(r"\\\g<0>", text)
    text = BLOCK_OPENING.sub(r"\1\\\2", text)
    return Markdown(LINK_INSIDE.sub("\\g<0>&#8288;", text))


def code_span(value: object) -> Markdown:
    """Return ``value`` as a code span that is safe in a table too; a backtick and a pipe become their look-alikes."""
    text = clean(value).replace("`", "ˋ").replace("|", "¦")
    return Markdown(f"`{text}`" if text else BLANK)


def fenced(text: str, language: str) -> Markdown:
    """Return ``text`` as a code block that it cannot close."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return Markdown(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def cleaned(value: Any) -> Any:
    """Return plain data with every text in it cleaned."""
    if isinstance(value, Mapping):
        return {clean(key): cleaned(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [cleaned(entry) for entry in value]
    return clean(value) if isinstance(value, str) else value


def to_yaml(content: Mapping[str, Any]) -> str:
    """Return a mapping as YAML, in its order and with a line a value."""
    import yaml

    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=math.inf)


def hub_id(text: str | None) -> Markdown | None:
    """Return ``text`` if it can be an id on the Hub; such a text needs no escaping."""
    return Markdown(text) if text and HUB_ID.fullmatch(text) and text == scrub(text) else None


def link(repo_id: str, commit: str | None = None, subfolder: str = "") -> Markdown:
    """Return a link to a repository of the Hub, at a commit if one is given."""
    folder = f"/{quote(clean(subfolder))}" if subfolder else ""
    tree = f"/tree/{commit}{folder}" if commit else ""
    return Markdown(f"[{code_span(repo_id + folder)}]({HUB}/{repo_id}{tree})")
