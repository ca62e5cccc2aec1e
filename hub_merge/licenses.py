"""Which licence a composite may state, given what its base and its parents state. Help, not legal advice.

A composite is derived from its base model and from every parent, so what each of them asks for holds together. Licences
fall into four classes by how much they ask; looser ones flow into one stricter licence. Where no single identifier
covers the whole, the composite states ``other`` and each source's licence keeps holding for its part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["Freedom", "LicenseVerdict", "united"]


class Freedom(IntEnum):
    """How much a licence asks of derived work, from nothing to terms of its own."""

    DEDICATED = 0
    NOTICE = 1
    ATTRIBUTION = 2
    RESTRICTED = 3


BY_FREEDOM = {
    Freedom.DEDICATED: "cc0-1.0 pddl unlicense wtfpl",
    Freedom.NOTICE: "bsd bsd-2-clause bsd-3-clause bsl-1.0 cdla-permissive-2.0 isc mit ncsa postgresql zlib",
    Freedom.ATTRIBUTION: """
        afl-3.0 apache-2.0 artistic-2.0 bsd-3-clause-clear cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cdla-permissive-1.0
        ecl-2.0 etalab-2.0 lppl-1.3c ms-pl odc-by ofl-1.1 openmdw-1.0
    """,
    Freedom.RESTRICTED: """
        agpl-3.0 apple-amlr apple-ascl bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m c-uda cc
        cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
        cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cdla-sharing-1.0 creativeml-openrail-m
        deepfloyd-if-license epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl
        gpl-2.0 gpl-3.0 grok2-community h-research intel-research lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1
        llama3.2 llama3.3 llama4 mpl-2.0 odbl openrail openrail++ osl-3.0
    """,
}
"""The Hub's identifiers, but for ``other`` and ``unknown``, which do not say what holds."""

FREEDOM = {identifier: freedom for freedom, names in BY_FREEDOM.items() for identifier in names.split()}

CLASHES = (frozenset({"apache-2.0", "gpl-2.0"}), frozenset({"apache-2.0", "gpl"}))
"""Pairs of which the looser does not flow into the stricter."""


@dataclass(frozen=True, slots=True)
class LicenseVerdict:
    """What a composite may state.

    Attributes:
        identifier: For the card's ``license``; ``None`` where a source states none, so nothing may be claimed.
        name: For ``license_name``, with ``other``.
        link: For ``license_link``, with ``other``.
        stated: Each source and the licence it states.
        notes: Plain sentences that explain the verdict.
    """

    identifier: str | None
    name: str | None
    link: str | None
    stated: tuple[tuple[str, str | None], ...]
    notes: tuple[str, ...]


def united(base: str | None, parents: Sequence[str | None], *, names: Sequence[str] | None = None) -> LicenseVerdict:
    """Return the licence that covers a composite of ``parents`` on ``base``.

    Args:
        base: Licence that the base model states, ``None`` if unknown.
        parents: Licence that each parent states.
        names: Names of the parents for the notes; "parent 1", … by default.
    """
    names = [f"parent {number}" for number in range(1, len(parents) + 1)] if names is None else names
    sources = [("the base model", base), *zip(names, parents, strict=True)]
    stated = tuple((who, _normalised(license)) for who, license in sources)
    if silent := [who for who, license in stated if license is None]:
        return LicenseVerdict(None, None, None, stated, (_about_silence(silent),))
    holders = _holders(stated)
    covering = _covering(set(holders))
    if covering is None:
        return LicenseVerdict("other", "composite", None, stated, _about_mixture(holders))
    return LicenseVerdict(covering, None, None, stated, tuple(_about_cover(covering, holders)))


def _normalised(license: str | None) -> str | None:
    text = (license or "").strip().lower()
    return None if text in ("", "unknown") else text


def _covering(found: set[str]) -> str | None:
    """Return the one licence of ``found`` into which all others flow, if there is one."""
    if not found <= FREEDOM.keys() or any(clash <= found for clash in CLASHES):
        return None
    strictest = max(FREEDOM[identifier] for identifier in found)
    top = [identifier for identifier in found if FREEDOM[identifier] == strictest]
    return top[0] if len(top) == 1 else None


def _holders(stated: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Return who states each licence, joined to one text."""
    holders: dict[str, list[str]] = {}
    for who, license in stated:
        if license is not None:
            holders.setdefault(license, []).append(who)
    return {license: ", ".join(sources) for license, sources in holders.items()}


def _about_silence(silent: Iterable[str]) -> str:
    return f"No licence is known for {', '.join(silent)}. Without one there is no permission to share; ask the authors."


def _about_mixture(holders: Mapping[str, str]) -> tuple[str, ...]:
    each = tuple(f"{license} keeps holding for {sources}." for license, sources in holders.items())
    return ("No single licence of the Hub's list covers all sources.", *each)


def _about_cover(covering: str, holders: Mapping[str, str]) -> Iterator[str]:
    for license, sources in holders.items():
        if license != covering:
            yield f"{license} ({sources}) flows into {covering}; its notices still have to be kept."
    if "-nd" in covering:
        yield f"{covering} does not permit sharing adapted material, which a composite is."
