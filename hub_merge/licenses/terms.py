"""The table of terms: what each licence of the Hub's list asks of a composite, clause by clause, with its source.

Data to be read and corrected. A clause names where the text says it; the text counts, not our words for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["CLASHES", "TERMS", "Clause", "Duty", "Terms", "terms_named"]


class Duty(StrEnum):
    """What a clause is about."""

    NOTICE = "notice"
    ATTRIBUTION = "attribution"
    STATE_CHANGES = "state changes"
    COPY = "copy of the terms"
    DISPLAY = "display"
    NAMING = "naming"
    USER_LIMIT = "user limit"
    USE_RESTRICTIONS = "use restrictions"
    SHARE_ALIKE = "share alike"
    NON_COMMERCIAL = "non-commercial"
    NO_DERIVATIVES = "no derivatives"
    OWN_TERMS = "own terms"
    OWN_MODELS_ONLY = "own models only"


LIGHT = frozenset({Duty.NOTICE, Duty.ATTRIBUTION, Duty.STATE_CHANGES, Duty.COPY})
"""Duties that the holder of any stricter licence can fulfil beside it."""


@dataclass(frozen=True, slots=True)
class Clause:
    """One thing that a licence asks for.

    Attributes:
        duty: What it is about.
        where: Section of the text.
        says: What it asks for, in our words.
    """

    duty: Duty
    where: str
    says: str


@dataclass(frozen=True, slots=True)
class Terms:
    """One licence.

    Attributes:
        id: Identifier on the Hub.
        title: Name of the text.
        url: Where the text is.
        clauses: What it asks for.
        family: Owner of terms of its own (``llama``, ``gemma``, …), empty for the others.
        into: Licences under which an adaptation may be shared instead, beyond itself.
        prefix: How the name of a derived model has to begin.
        display: What has to be shown prominently.
        notice: Line that a NOTICE file has to hold, word for word.
        is_read: Whether we know its clauses; what a licence that is not asks for is for the user to find out.
    """

    id: str
    title: str
    url: str
    clauses: tuple[Clause, ...] = ()
    family: str = ""
    into: tuple[str, ...] = ()
    prefix: str = ""
    display: str = ""
    notice: str = ""
    is_read: bool = True

    @property
    def duties(self) -> frozenset[Duty]:
        """What its clauses are about."""
        return frozenset(clause.duty for clause in self.clauses)

    @property
    def strictness(self) -> int:
        """0 for nothing asked, 1 for a notice, 2 for more that goes with any licence, 3 for what binds the whole."""
        if not self.duties <= LIGHT:
            return 3
        return 2 if self.duties - {Duty.NOTICE} else 1 if self.duties else 0

    def clause(self, duty: Duty) -> Clause | None:
        """Return the first clause about ``duty``."""
        return next((clause for clause in self.clauses if clause.duty == duty), None)


SPDX = "https://spdx.org/licenses"
CC = "https://creativecommons.org/licenses"

# --- permissive -------------------------------------------------------------------------------------------------------

KEPT = Clause(Duty.NOTICE, "its conditions", "keep the copyright notice and the text of the licence")
CREDITED = Clause(Duty.ATTRIBUTION, "its conditions", "credit the authors and keep their notices")

DEDICATED_IDS = ("pddl PDDL-1.0", "unlicense Unlicense", "wtfpl WTFPL")
NOTICE_IDS = (
    *("bsd BSD-3-Clause", "bsd-2-clause BSD-2-Clause", "bsd-3-clause BSD-3-Clause", "bsl-1.0 BSL-1.0", "isc ISC"),
    *("cdla-permissive-2.0 CDLA-Permissive-2.0", "mit MIT", "ncsa NCSA", "postgresql PostgreSQL", "zlib Zlib"),
)
ATTRIBUTION_IDS = (
    *("afl-3.0 AFL-3.0", "artistic-2.0 Artistic-2.0", "bsd-3-clause-clear BSD-3-Clause-Clear", "ecl-2.0 ECL-2.0"),
    *("cdla-permissive-1.0 CDLA-Permissive-1.0", "etalab-2.0 etalab-2.0", "lppl-1.3c LPPL-1.3c", "ms-pl MS-PL"),
    *("odc-by ODC-By-1.0", "ofl-1.1 OFL-1.1"),
)
APACHE = (
    Clause(Duty.COPY, "s. 4(a)", "give recipients a copy of the licence"),
    Clause(Duty.STATE_CHANGES, "s. 4(b)", "say prominently which files were changed"),
    Clause(Duty.NOTICE, "s. 4(c), 4(d)", "keep its notices and the content of its NOTICE file"),
)


def _permissive() -> Iterator[Terms]:
    for names, clauses in ((DEDICATED_IDS, ()), (NOTICE_IDS, (KEPT,)), (ATTRIBUTION_IDS, (CREDITED,))):
        for identifier, spdx in map(str.split, names):
            yield Terms(identifier, spdx, f"{SPDX}/{spdx}.html", clauses)
    yield Terms("apache-2.0", "Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0", APACHE)
    yield Terms("cc0-1.0", "CC0 1.0 Universal", "https://creativecommons.org/publicdomain/zero/1.0/legalcode")
    yield Terms("openmdw-1.0", "OpenMDW License Agreement 1.0", "https://openmdw.ai/license", (KEPT, CREDITED))


# --- Creative Commons -------------------------------------------------------------------------------------------------

CC_IDS = (
    *("by-2.0", "by-2.5", "by-3.0", "by-4.0", "by-nc-2.0", "by-nc-3.0", "by-nc-4.0", "by-nc-nd-3.0", "by-nc-nd-4.0"),
    *("by-nc-sa-2.0", "by-nc-sa-3.0", "by-nc-sa-4.0", "by-nd-4.0", "by-sa-3.0", "by-sa-4.0"),
)
CC_WORDS = {"by": "Attribution", "nc": "NonCommercial", "nd": "NoDerivatives", "sa": "ShareAlike"}
CC_WHERE = {
    "4.0": {"by": "s. 3(a)", "nc": "s. 2(a)(1)", "nd": "s. 2(a)(1)(B)", "sa": "s. 3(b)"},
    "3.0": {"by": "s. 4", "nc": "s. 4(b)", "nd": "s. 3", "sa": "s. 4(b)"},
    "2.5": {"by": "s. 4"},
    "2.0": {"by": "s. 4", "nc": "s. 4", "sa": "s. 4(b)"},
}
CC_CLAUSES = {
    "by": (Duty.ATTRIBUTION, "name the authors, link the licence, say what was changed"),
    "nc": (Duty.NON_COMMERCIAL, "share for non-commercial purposes only"),
    "nd": (Duty.NO_DERIVATIVES, "adapted material may be made, but not shared"),
    "sa": (Duty.SHARE_ALIKE, "share adaptations under this licence, without further restrictions"),
}
CC_INTO = {
    "by-nc-2.0": ("by-nc-3.0", "by-nc-4.0", "by-nc-sa-2.0", "by-nc-sa-3.0", "by-nc-sa-4.0"),
    "by-nc-3.0": ("by-nc-4.0", "by-nc-sa-3.0", "by-nc-sa-4.0"),
    "by-nc-4.0": ("by-nc-sa-4.0",),
    "by-nc-sa-2.0": ("by-nc-sa-3.0", "by-nc-sa-4.0"),
    "by-nc-sa-3.0": ("by-nc-sa-4.0",),
    "by-sa-3.0": ("by-sa-4.0",),
}
"""Later versions are let in by s. 4(b) of the share-alike texts; the rest follows Creative Commons' chart of adapters'
licences, https://creativecommons.org/faq/#if-i-derive-or-adapt-material-offered-under-a-creative-commons-license-which-cc-licenses-can-i-use .
"""  # noqa: E501
CC_TO_GPL = ("gpl-3.0", "agpl-3.0")
"""BY-SA 4.0 goes one way into GPL 3.0: https://creativecommons.org/share-your-work/licensing-considerations/compatible-licenses/ ."""  # noqa: E501


def _creative_commons() -> Iterator[Terms]:
    for short in CC_IDS:
        kind, _, version = short.rpartition("-")
        parts = kind.split("-")
        clauses = tuple(Clause(CC_CLAUSES[part][0], CC_WHERE[version][part], CC_CLAUSES[part][1]) for part in parts)
        title = f"Creative Commons {'-'.join(CC_WORDS[part] for part in parts)} {version}"
        into = tuple(f"cc-{name}" for name in CC_INTO.get(short, ())) + (CC_TO_GPL if short == "by-sa-4.0" else ())
        yield Terms(f"cc-{short}", title, f"{CC}/{kind}/{version}/legalcode", clauses, into=into)


# --- copyleft ---------------------------------------------------------------------------------------------------------

COPYLEFT: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("agpl-3.0", "AGPL-3.0-only", "s. 5(c)", ()),
    ("gpl", "", "s. 5(c)", ("gpl-2.0", "gpl-3.0", "agpl-3.0")),
    ("gpl-2.0", "GPL-2.0-only", "s. 2(b)", ()),
    ("gpl-3.0", "GPL-3.0-only", "s. 5(c)", ("agpl-3.0",)),
    ("lgpl", "", "s. 2", ("lgpl-2.1", "lgpl-3.0", "gpl-2.0", "gpl-3.0", "agpl-3.0")),
    ("lgpl-2.1", "LGPL-2.1-only", "s. 2", ("gpl-2.0", "gpl-3.0", "agpl-3.0")),
    ("lgpl-3.0", "LGPL-3.0-only", "s. 2", ("gpl-3.0", "agpl-3.0")),
    ("mpl-2.0", "MPL-2.0", "s. 3.1, 3.3", ("lgpl-2.1", "lgpl-3.0", "gpl-2.0", "gpl-3.0", "agpl-3.0")),
    ("eupl-1.1", "EUPL-1.1", "s. 5", ("gpl-2.0", "osl-3.0", "epl-1.0")),
    (
        *("eupl-1.2", "EUPL-1.2", "s. 5"),
        ("gpl-2.0", "gpl-3.0", "agpl-3.0", "osl-3.0", "epl-1.0", "mpl-2.0", "lgpl-2.1", "lgpl-3.0"),
    ),
    ("epl-1.0", "EPL-1.0", "s. 3", ()),
    ("epl-2.0", "EPL-2.0", "s. 3", ()),
    ("osl-3.0", "OSL-3.0", "s. 1(c)", ()),
    ("odbl", "ODbL-1.0", "s. 4.4", ()),
    ("gfdl", "GFDL-1.3-only", "s. 4", ()),
    ("cdla-sharing-1.0", "CDLA-Sharing-1.0", "s. 3", ()),
)
"""Identifier, SPDX identifier, clause, and the licences into which the text itself lets an adaptation pass (GPL 3.0
s. 13, LGPL 2.1 s. 3, MPL 2.0 s. 3.3, the appendices of the EUPL). Merged weights are one file, so what is share-alike
by the file binds the whole of them too. ``gpl-2.0`` is read as that version only, ``gpl`` as any."""
SHARED = "share what is made from it under this licence, without further restrictions"


def _copyleft() -> Iterator[Terms]:
    for identifier, spdx, where, into in COPYLEFT:
        clauses = (KEPT, Clause(Duty.SHARE_ALIKE, where, SHARED))
        page = f"{SPDX}/{spdx}.html" if spdx else "https://www.gnu.org/licenses/licenses.html"
        yield Terms(identifier, spdx or f"{identifier.upper()}, any version", page, clauses, into=into)


PATENTS = (
    "GPL 2.0 s. 6 allows no further restrictions, and the patent terms of Apache 2.0 s. 3 are one",
    "If the GPL source lets you choose a later version, its card can state gpl-3.0, which takes Apache 2.0 in.",
)
CLASHES = {frozenset({"apache-2.0", "gpl-2.0"}): PATENTS, frozenset({"apache-2.0", "gpl"}): PATENTS}
"""Pairs of which the looser does not flow into the stricter: why, and the way out.
https://www.gnu.org/licenses/license-list.html#apache2 """

# --- RAIL -------------------------------------------------------------------------------------------------------------

PASSED_ON = "pass the use restrictions on as an enforceable provision, and tell recipients of them"
RAIL = (
    Clause(Duty.USE_RESTRICTIONS, "s. 4(a) and 5, Attachment A", PASSED_ON),
    Clause(Duty.COPY, "s. 4(b)", "give recipients a copy of the licence"),
    Clause(Duty.STATE_CHANGES, "s. 4(c)", "say prominently which files were changed"),
    Clause(Duty.NOTICE, "s. 4(d)", "keep its notices"),
)
RAIL_TEXTS = (
    ("openrail", "OpenRAIL", "https://www.licenses.ai/ai-licenses"),
    ("openrail++", "CreativeML Open RAIL++-M", "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0"),
    (
        "creativeml-openrail-m",
        "CreativeML Open RAIL-M",
        "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
    ),
    ("bigscience-openrail-m", "BigScience OpenRAIL-M", "https://bigscience.huggingface.co/blog/bigscience-openrail-m"),
    ("bigscience-bloom-rail-1.0", "BigScience RAIL 1.0", "https://huggingface.co/spaces/bigscience/license"),
    ("bigcode-openrail-m", "BigCode OpenRAIL-M", "https://www.bigcode-project.org/docs/pages/bigcode-openrail/"),
)

# --- terms of their own -----------------------------------------------------------------------------------------------


def _llama(version: str, page: str, *, brand: str = "Llama", prefix: str = "Llama", own_models: bool = False) -> Terms:
    """Return the agreement of one Llama version; in section 1.b they differ in names, and in 1.b.v."""
    name = f"{brand} {version}"
    clauses = [
        Clause(Duty.OWN_TERMS, "s. 1.b.i", "what is derived is distributed under this agreement"),
        Clause(Duty.COPY, "s. 1.b.i", "give recipients a copy of the agreement"),
        Clause(Duty.NOTICE, "s. 1.b.iii", "keep the attribution line in a NOTICE file"),
        Clause(Duty.USE_RESTRICTIONS, "s. 1.b.iv", "keep to the Acceptable Use Policy"),
        Clause(Duty.USER_LIMIT, "s. 2", "more than 700 million monthly active users need a licence from Meta"),
    ]
    shown = f"Built with {brand if brand == 'Llama' else name}" if prefix else ""
    if prefix:
        clauses.insert(1, Clause(Duty.NAMING, "s. 1.b.i", f"begin the name of the model with “{prefix}”"))
        clauses.insert(2, Clause(Duty.DISPLAY, "s. 1.b.i", f"show “{shown}” prominently"))
    if own_models:
        clauses.append(Clause(Duty.OWN_MODELS_ONLY, "s. 1.b.v", f"do not improve language models other than {name}"))
    return Terms(
        id=f"llama{version}",
        title=f"{name} Community License Agreement",
        url=page,
        clauses=tuple(clauses),
        family="llama",
        prefix=prefix,
        display=shown,
        notice=LLAMA_2_NOTICE if version == "2" else LLAMA_NOTICE.format(name=name),
    )


LLAMA_NOTICE = (
    "{name} is licensed under the {name} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
)
LLAMA_2_NOTICE = (
    "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights Reserved."
)
META = "https://github.com/meta-llama"
LLAMA = (
    _llama("2", f"{META}/llama/blob/main/LICENSE", prefix="", own_models=True),
    _llama("3", f"{META}/llama3/blob/main/LICENSE", brand="Meta Llama", prefix="Llama 3", own_models=True),
    _llama("3.1", f"{META}/llama-models/blob/main/models/llama3_1/LICENSE"),
    _llama("3.2", f"{META}/llama-models/blob/main/models/llama3_2/LICENSE"),
    _llama("3.3", f"{META}/llama-models/blob/main/models/llama3_3/LICENSE"),
    _llama("4", f"{META}/llama-models/blob/main/models/llama4/LICENSE"),
)

GEMMA = Terms(
    "gemma",
    "Gemma Terms of Use",
    "https://ai.google.dev/gemma/terms",
    (
        Clause(Duty.OWN_TERMS, "s. 3.1", "terms that are added may not conflict with these"),
        Clause(Duty.USE_RESTRICTIONS, "s. 3.1, 3.2", PASSED_ON),
        Clause(Duty.COPY, "s. 3.1", "give recipients a copy of the terms"),
        Clause(Duty.STATE_CHANGES, "s. 3.1", "say prominently which files were changed"),
        Clause(Duty.NOTICE, "s. 3.1", "keep the prescribed line in a NOTICE file"),
    ),
    "gemma",
    notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
)

UNREAD = (
    ("apple-amlr", "Apple ML Research Model License", (Duty.NON_COMMERCIAL,)),
    ("apple-ascl", "Apple Sample Code License", ()),
    ("c-uda", "Computational Use of Data Agreement", ()),
    ("cc", "Creative Commons, unspecified", ()),
    ("deepfloyd-if-license", "DeepFloyd IF License", (Duty.NON_COMMERCIAL,)),
    ("fair-noncommercial-research-license", "FAIR Noncommercial Research License", (Duty.NON_COMMERCIAL,)),
    ("grok2-community", "Grok 2 Community License", ()),
    ("h-research", "H Research License", ()),
    ("intel-research", "Intel Research License", ()),
    ("lgpl-lr", "Lesser General Public License For Linguistic Resources", ()),
)
"""Licences of the Hub's list whose texts were not read for this table; what is known of them is in their names."""


def _unread() -> Iterator[Terms]:
    for identifier, title, duties in UNREAD:
        clauses = [Clause(Duty.OWN_TERMS, "its text", "terms of its own, which this table does not hold")]
        clauses += [Clause(duty, "its name", "for non-commercial purposes only") for duty in duties]
        page = "https://huggingface.co/docs/hub/repositories-licenses"
        yield Terms(identifier, title, page, tuple(clauses), identifier, is_read=False)


# --- the table --------------------------------------------------------------------------------------------------------

TERMS = {
    terms.id: terms
    for terms in (
        *_permissive(),
        *_creative_commons(),
        *_copyleft(),
        *(Terms(identifier, title, page, RAIL) for identifier, title, page in RAIL_TEXTS),
        *LLAMA,
        GEMMA,
        *_unread(),
    )
}
"""Every identifier of the Hub's list but ``other`` and ``unknown``, which do not say what holds."""

SUFFIX = re.compile(r"(?:community)?(?:license)?(?:agreement)?$")


def _bare(name: str) -> str:
    """Return a name without case, punctuation and the words that most names of licences end with."""
    return SUFFIX.sub("", re.sub(r"[^a-z0-9+]", "", name.casefold()))


BY_NAME = {_bare(name): terms.id for terms in TERMS.values() for name in (terms.title, terms.id)}
BY_NAME |= {"gemmatermsofuse": "gemma", "metallama31": "llama3.1", "metallama2": "llama2"}


def terms_named(name: str) -> Terms | None:
    """Return the licence that ``name`` names, written as an identifier, an SPDX identifier or a title."""
    lowered = name.strip().casefold()
    return TERMS.get(lowered) or TERMS.get(BY_NAME.get(_bare(name), ""))
