"""What a statement of a licence means: one licence, several that hold together, or a choice."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeAlias

from hub_merge.licenses.terms import terms_named

__all__ = ["OTHER", "Alternatives", "alternatives"]

Alternatives: TypeAlias = tuple[frozenset[str], ...]
"""Sets of identifiers: one of them may be chosen, and what is in a set holds together. Empty if nothing is stated."""

OTHER = "other"
"""Stands for a licence that the table of terms does not know."""

OPERATOR = re.compile(r"[()]|\s(?:and|or|with)\s", re.IGNORECASE)
LATER = re.compile(r"(?i:-or-later|\+)$")
LATER_VERSIONS = {"gpl-2.0": ("gpl-2.0", "gpl-3.0"), "lgpl-2.1": ("lgpl-2.1", "lgpl-3.0")}
LONGEST = 500
MOST_ALTERNATIVES = 64


def alternatives(stated: str | None, name: str | None = None) -> Alternatives:
    """Return what ``stated`` allows to choose from.

    An SPDX expression (``apache-2.0 OR mit``) is read with the library ``license-expression``; a single identifier, as
    nearly all cards have, without it. What cannot be read is one unknown licence.

    Args:
        stated: The card's ``license``, or identifiers joined with operators.
        name: The card's ``license_name``, which may tell what ``other`` stands for.
    """
    text = (stated or "").strip()
    if text.casefold() in ("", "unknown"):
        return ()
    if text.casefold() == OTHER and name:
        text = name.strip()
    if len(text) > LONGEST or not OPERATOR.search(text):
        return _single(text)
    return _from_expression(text)


def _single(name: str) -> Alternatives:
    plain = LATER.sub("", name) if terms_named(name) is None else name
    terms = terms_named(plain)
    if terms is None:
        return (frozenset({OTHER}),)
    later = LATER_VERSIONS.get(terms.id, (terms.id,)) if LATER.search(name) else (terms.id,)
    return tuple(frozenset({version}) for version in later)


def _from_expression(text: str) -> Alternatives:
    from license_expression import ExpressionError, Licensing

    try:
        return _read(Licensing().parse(text))
    except (ExpressionError, LookupError, ValueError, TypeError, AttributeError, RecursionError):
        return (frozenset({OTHER}),)  # the library does not promise one error for every text


def _read(expression: Any) -> Alternatives:
    """Return the choices of a parsed expression; an exception (``WITH``) only adds permissions and is passed over."""
    if hasattr(expression, "license_symbol"):
        return _single(expression.license_symbol.key)
    if not hasattr(expression, "operator"):
        return _single(expression.key)
    parts = [_read(part) for part in expression.args]
    if expression.operator.strip() == "OR":
        return _bounded(choice for part in parts for choice in part)
    read: Alternatives = (frozenset(),)
    for part in parts:
        read = _bounded(before | more for before in read for more in part)
    return read


def _bounded(choices: Iterable[frozenset[str]]) -> Alternatives:
    """Return the different choices; where there are too many to weigh, all of them as holding together."""
    different = tuple(dict.fromkeys(choices))
    return different if len(different) <= MOST_ALTERNATIVES else (frozenset().union(*different),)
