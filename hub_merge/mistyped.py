"""A reference that the Hub does not know may be the path of a folder, mistyped: what is there instead is told."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from hub_merge.errors import HubMergeError, RecipeError

__all__ = ["may_be_path", "not_here_either"]

Error = TypeVar("Error", bound=HubMergeError)

MOST_NAMED = 8


def may_be_path(text: str) -> bool:
    """Whether ``text``, which names nothing here, is in a folder that is here."""
    return _is_bare(text) and "/" in text and Path(text).parent.is_dir()


def not_here_either(text: str, error: Error) -> Error:
    """Return what the Hub's ``error`` says of the reference ``text``, and that nothing on this machine has the name.

    Where the path leads into a folder that is here, that is what was meant, and comes first.
    """
    if not _is_bare(text):
        return error
    path = Path(text)
    if may_be_path(text):
        as_id = "" if isinstance(error, RecipeError) else f" Taken for a repository of the Hub: {error.problem}"
        problem = f"There is no folder or file {text} here.{as_id}"
        return type(error)(problem, remedy=_instead(path) or "Check the path; a Hub adapter is owner/name.")
    close = "" if "/" in text else _instead(path, closest=True)
    return type(error)(
        f"{error.problem} Nor is there a folder or file of that name here.",
        remedy=" ".join(filter(None, [close, error.remedy])) or None,
    )


def _is_bare(text: str) -> bool:
    """Whether ``text`` is neither an address nor says anything of a revision or a place in a repository."""
    return not set(text) & set(":@\0")


def _instead(path: Path, *, closest: bool = False) -> str:
    """Return a question or a list of what is in the folder of ``path``; only what is ``closest`` if so wanted."""
    try:
        here = sorted(other.name for other in path.parent.iterdir() if other.is_dir() and other.name[0] != ".")
    except OSError:  # a folder that may not be read
        return ""
    place = "./" if path.parent == Path() else f"{path.parent}/"
    names = {name.casefold(): name for name in here}
    if close := get_close_matches(path.name.casefold(), names, n=1):
        return f"Did you mean {place}{names[close[0]]}?"
    if closest or not here:
        return ""
    more = ", …" if len(here) > MOST_NAMED else ""
    return f"Name a folder that is in {place} ({', '.join(here[:MOST_NAMED])}{more})."
