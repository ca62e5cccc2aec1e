"""Which licence a composite may state, what it owes to whom, and what stands in the way of sharing it.

A composite is derived from its base model and from every parent, so what each of them asks for holds together. Licences
that ask little flow into one that asks more; several that bind the whole and do not contradict each other hold side by
side under ``other``; where two contradict, nothing may be shared. Help, not legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any

from hub_merge.frontmatter import LicenseDetails
from hub_merge.layout import LICENSES_FILE
from hub_merge.licenses.expressions import OTHER, alternatives
from hub_merge.licenses.rules import ASK, clashes, covering
from hub_merge.licenses.terms import TERMS, Duty, Terms
from hub_merge.recipe import MergeRecord

__all__ = ["Blocker", "LicenseVerdict", "Licensed", "Obligation", "SourceTerms", "united", "verdict_of"]

MOST_CHOICES = 256
COMPOSITE_NAME = "composite"
UNKNOWN = "license_unknown"
ACCEPT_UNKNOWN = "--accept-unknown-license"


@dataclass(frozen=True, slots=True)
class Licensed:
    """One source of a composite and what it states.

    Attributes:
        who: Hub id or name.
        license: Identifier or SPDX expression it states, ``None`` if it states none.
        details: Where it states it, and its licence files.
    """

    who: str
    license: str | None
    details: LicenseDetails = field(default_factory=LicenseDetails)


@dataclass(frozen=True, slots=True)
class SourceTerms:
    """One source as the verdict takes it.

    Attributes:
        who: Hub id or name.
        stated: What it states, ``None`` if nothing.
        found_in: Where: ``card``, ``tag`` or a file's name.
        licenses: Identifiers taken to hold, sorted; ``other`` for one that is not in the table.
        link: Where it says its licence is.
    """

    who: str
    stated: str | None
    found_in: str | None
    licenses: tuple[str, ...]
    link: str | None = None


@dataclass(frozen=True, slots=True)
class Obligation:
    """One clause that the composite has to keep, and the licence it comes from."""

    license: str
    duty: str
    where: str
    says: str
    url: str


@dataclass(frozen=True, slots=True)
class Blocker:
    """Why a composite may not be shared as it is.

    Attributes:
        code: ``no_derivatives``, ``terms_clash``, ``license_unknown``, ``license_unread`` or ``name_prefix``.
        problem: Who states what, and the clause.
        remedy: The way out.
        overrule: Flag that accepts it knowingly, if one may.
    """

    code: str
    problem: str
    remedy: str
    overrule: str | None = None


@dataclass(frozen=True, slots=True)
class LicenseVerdict:
    """What a composite may state, owes, and lacks.

    Attributes:
        identifier: For the card's ``license``; ``None`` where a source states none, so nothing may be claimed.
        name: For ``license_name``, with ``other``.
        link: For ``license_link``, with ``other``.
        sources: Base model first, then the parents.
        obligations: Every clause of every licence that holds, once.
        corrections: What a source states that cannot be all, and what is taken instead.
        blockers: What stands in the way of sharing; nothing of it concerns local use.
        notes: Plain sentences that explain the identifier.
        prefixes: How the name of the repository has to begin, the longest first.
        displays: What the card has to show prominently.
        notices: Lines that the NOTICE file has to hold, by licence.
    """

    identifier: str | None
    name: str | None
    link: str | None
    sources: tuple[SourceTerms, ...]
    obligations: tuple[Obligation, ...]
    corrections: tuple[str, ...]
    blockers: tuple[Blocker, ...]
    notes: tuple[str, ...]
    prefixes: tuple[str, ...]
    displays: tuple[str, ...]
    notices: tuple[tuple[str, str], ...]

    def blockers_for(self, repo_id: str, *, accept_unknown: bool = False) -> tuple[Blocker, ...]:
        """Return what stands in the way of sharing as ``repo_id``; unknown licences do not where they are accepted."""
        left = [found for found in self.blockers if not (accept_unknown and found.overrule)]
        return (*left, *_wrong_name(repo_id, self))

    def lacks_only(self, who: str | None) -> bool:
        """Whether nothing is in the way but that the licence of ``who`` is not known."""
        return self._silent == [who] and {found.code for found in self.blockers} == {UNKNOWN}

    @property
    def _silent(self) -> list[str]:
        return [source.who for source in self.sources if not source.licenses]

    def line(self) -> str:
        """Return the verdict as one line."""
        silent = self._silent
        stated = self.identifier or f"none as long as that of {_listed(silent)} is not known"
        name = f", named “{self.prefixes[0]}…”" if self.prefixes else ""
        told = dict.fromkeys(blocker.code for blocker in self.blockers if blocker.code != UNKNOWN)
        return f"{stated}{name}" + (f"; not to be shared as it is ({', '.join(told)})" if told else "")


def verdict_of(record: MergeRecord) -> LicenseVerdict:
    """Return the verdict on the composite that ``record`` tells of."""
    base = Licensed(record.base_model or "the base model", record.base_license, record.base_license_details)
    parents = [
        Licensed(parent.repo_id or parent.name, parent.license, parent.license_details) for parent in record.parents
    ]
    return united(base, parents)


def united(base: Licensed, parents: Sequence[Licensed]) -> LicenseVerdict:
    """Return what a composite of ``parents`` on ``base`` may state.

    Where a source leaves a choice (``apache-2.0 OR gpl-2.0``), the one is taken that leaves least in the way.
    """
    listed = (base, *parents)
    choices = [_choices(source) for source in listed]
    taken = min(islice(product(*choices), MOST_CHOICES), key=_weighed)
    sources = tuple(_source(source, licenses) for source, licenses in zip(listed, taken, strict=True))
    found = frozenset[str]().union(*taken)
    known = [TERMS[identifier] for identifier in sorted(found & TERMS.keys())]
    identifier = None if not all(taken) else covering(found)
    return LicenseVerdict(
        identifier=identifier,
        name=COMPOSITE_NAME if identifier == OTHER else None,
        link=LICENSES_FILE if identifier == OTHER else None,
        sources=sources,
        obligations=tuple(_obligations(known)),
        corrections=tuple(_corrections(listed, sources)),
        blockers=tuple(_blockers(sources, known)),
        notes=tuple(_notes(identifier, sources)),
        prefixes=tuple(sorted({terms.prefix for terms in known if terms.prefix}, key=len, reverse=True)),
        displays=tuple(dict.fromkeys(terms.display for terms in known if terms.display)),
        notices=tuple((terms.id, terms.notice) for terms in known if terms.notice),
    )


# --- what each source says --------------------------------------------------------------------------------------------


def _choices(source: Licensed) -> tuple[frozenset[str], ...]:
    """Return the sets of licences that may be taken; that of a text in the repository holds in each of them."""
    texts = frozenset(known for _, known in source.details.texts if known)
    stated = alternatives(source.license, source.details.name)
    if not stated or stated == (frozenset({OTHER}),):
        return (texts or _all(stated),)
    if texts <= _all(stated):  # a file for each licence to choose from
        return stated
    return tuple(choice | texts for choice in stated)


def _all(stated: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset[str]().union(*stated)


def _source(source: Licensed, licenses: frozenset[str]) -> SourceTerms:
    details = source.details
    stated = None if (source.license or "").strip().lower() in ("", "unknown") else source.license
    named = f"{stated} ({details.name})" if stated and details.name else stated
    file = next((name for name, known in details.texts if known), None)
    found_in = (details.found_in or "record") if stated else file
    return SourceTerms(source.who, named, found_in, tuple(sorted(licenses)), details.link)


def _weighed(taken: Sequence[frozenset[str]]) -> tuple[Any, ...]:
    """Return what makes one choice better than another, smallest first."""
    found = _all(taken)
    known = [TERMS[identifier] for identifier in found & TERMS.keys()]
    barred = sum(Duty.NO_DERIVATIVES in terms.duties for terms in known) + len(list(clashes(known)))
    unknown = len(found - TERMS.keys()) + sum(not terms.is_read for terms in known)
    return barred, unknown, covering(found) == OTHER, sum(terms.strictness for terms in known), sorted(found)


# --- what stands in the way -------------------------------------------------------------------------------------------


def _blockers(sources: Sequence[SourceTerms], known: Sequence[Terms]) -> Iterator[Blocker]:
    yield from _barred(sources, known)
    for clash in clashes(known):
        first, second = (f"{terms.id} ({_holders(terms.id, sources)})" for terms in (clash.first, clash.second))
        yield Blocker("terms_clash", f"No licence satisfies both {first} and {second}: {clash.why}.", clash.remedy)
    if silent := [source.who for source in sources if not source.licenses]:
        yield Blocker(
            UNKNOWN,
            f"No licence is known for {_listed(silent)}, and without one there is no permission to share.",
            "Ask the author; where it is yours, state it in its README.md (`license: …`) and merge again. "
            f"{ACCEPT_UNKNOWN} (accept_unknown_license=True) publishes without knowing it, at your own risk.",
            ACCEPT_UNKNOWN,
        )
    for source in sources:
        if unread := [name for name in source.licenses if name not in TERMS or not TERMS[name].is_read]:
            yield Blocker(
                "license_unread",
                f"{source.who} states {source.stated or _listed(unread)}, whose terms are not in our table.",
                f"Read them{f' ({source.link})' if source.link else ''}; if they allow to share what is derived, "
                f"pass {ACCEPT_UNKNOWN} (accept_unknown_license=True).",
                ACCEPT_UNKNOWN,
            )


def _barred(sources: Sequence[SourceTerms], known: Sequence[Terms]) -> Iterator[Blocker]:
    for terms in known:
        if clause := terms.clause(Duty.NO_DERIVATIVES):
            who = _holders(terms.id, sources)
            without = f"Merge without {who}" if terms.id not in sources[0].licenses else "Take another base model"
            yield Blocker(
                "no_derivatives",
                f"{terms.id} holds for {who}, and a composite is adapted material: {clause.says} ({clause.where}).",
                f"{without}, {ASK}",
            )


def _wrong_name(repo_id: str, verdict: LicenseVerdict) -> Iterator[Blocker]:
    owner, _, name = repo_id.rpartition("/")
    for prefix in verdict.prefixes[:1]:
        if _letters(name).startswith(_letters(prefix)):
            continue
        holding = next(terms for terms in TERMS.values() if terms.prefix == prefix and _is_owed(terms, verdict))
        clause = holding.clause(Duty.NAMING)
        better = f"{prefix.replace(' ', '-')}-{name}"
        yield Blocker(
            "name_prefix",
            f"The name {name!r} does not begin with “{prefix}”, as {holding.id} {clause.where if clause else ''} "
            "asks of every model that is derived.",
            f"Publish as {f'{owner}/' if owner else ''}{better}.",
        )


def _is_owed(terms: Terms, verdict: LicenseVerdict) -> bool:
    return any(terms.id in source.licenses for source in verdict.sources)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


# --- in words ---------------------------------------------------------------------------------------------------------


def _obligations(known: Sequence[Terms]) -> Iterator[Obligation]:
    for terms in known:
        for clause in terms.clauses:
            yield Obligation(terms.id, clause.duty.value, clause.where, clause.says, terms.url)


def _corrections(listed: Sequence[Licensed], sources: Sequence[SourceTerms]) -> Iterator[str]:
    base, *parents = sources
    binding = [name for name in base.licenses if name in TERMS and TERMS[name].strictness == 3]
    for source in parents:
        own = [TERMS[name] for name in source.licenses if name in TERMS]
        if binding and own and all(terms.strictness < 3 for terms in own):
            yield (
                f"{source.who} states {source.stated or _listed(source.licenses)}, but it is derived from {base.who}, "
                f"so that {_listed(binding)} holds for it too."
            )
    for statement, source in zip(listed, sources, strict=True):
        stated = _all(alternatives(statement.license, statement.details.name)) - {OTHER}
        for file, known in statement.details.texts:
            if stated and known and known not in stated:
                yield f"{source.who} states {source.stated}, but its {file} is the text of {known}: both are kept."


def _notes(identifier: str | None, sources: Sequence[SourceTerms]) -> Iterator[str]:
    if identifier is None:
        silent = _listed([source.who for source in sources if not source.licenses])
        yield f"No licence is known for {silent}. Without one there is no permission to share; ask the authors."
        return
    licenses = dict.fromkeys(name for source in sources for name in source.licenses)
    if identifier == OTHER:
        yield "No single licence of the Hub's list covers all sources."
    for name in licenses:
        if identifier == OTHER:
            yield f"{_shown(name, sources)} keeps holding for {_holders(name, sources)}."
        elif name != identifier:
            yield f"{name} ({_holders(name, sources)}) flows into {identifier}; its notices still have to be kept."


def _shown(name: str, sources: Sequence[SourceTerms]) -> str:
    if name != OTHER:
        return name
    return _listed(dict.fromkeys(source.stated or OTHER for source in sources if OTHER in source.licenses))


def _holders(identifier: str, sources: Sequence[SourceTerms]) -> str:
    return _listed([source.who for source in sources if identifier in source.licenses])


def _listed(names: Iterable[str]) -> str:
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last
