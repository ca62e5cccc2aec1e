"""Which licence a file is the text of, told from phrases that no other text has.

Light on purpose: a text is recognised when it begins with one licence, holds every phrase of it, and is not much longer
where that licence is short. What is changed, quoted in part or only mentioned is not recognised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from hub_merge.errors import AdapterFormatError
from hub_merge.formats.peft import contained
from hub_merge.layout import TERMS_FILES

__all__ = ["prescribed_notice", "recognise", "terms_files"]

MOST_BYTES = 256_000
MOST_FILES = 8

ANY_LENGTH = 100_000
GNU = "everyone is permitted to copy and distribute verbatim copies of this license document"
RAILS = "use based restrictions as referenced in paragraph 5 must be included as an enforceable provision"
BSD = "redistribution and use in source and binary forms with or without modification are permitted provided that"
LLAMA = "you must retain in all copies of the llama materials that you distribute the following attribution notice"

PHRASES: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    (
        "apache-2.0",
        ANY_LENGTH,
        ("apache license version 2.0", "terms and conditions for use reproduction and distribution"),
    ),
    (
        *("mit", 230),
        (
            "permission is hereby granted free of charge to any person obtaining a copy",
            "the above copyright notice and this permission notice shall be included in all copies",
        ),
    ),
    ("bsd-3-clause", 300, (BSD, "neither the name of", "to endorse or promote products derived from")),
    ("bsd-2-clause", 230, (BSD, "redistributions in binary form must reproduce the above copyright notice")),
    (
        "isc",
        180,
        ("permission to use copy modify and or distribute this software for any purpose with or without fee",),
    ),
    ("unlicense", 320, ("this is free and unencumbered software released into the public domain",)),
    ("cc0-1.0", ANY_LENGTH, ("cc0 1.0 universal", "statement of purpose", "public license fallback")),
    *(
        (
            *(f"cc-{kind}-4.0", ANY_LENGTH),
            (f"creative commons {words} 4.0 international public license", "by exercising the licensed rights"),
        )
        for kind, words in (
            ("by", "attribution"),
            ("by-nc", "attribution noncommercial"),
            ("by-nc-nd", "attribution noncommercial noderivatives"),
            ("by-nc-sa", "attribution noncommercial sharealike"),
            ("by-nd", "attribution noderivatives"),
            ("by-sa", "attribution sharealike"),
        )
    ),
    ("gpl-2.0", ANY_LENGTH, ("gnu general public license version 2 june 1991", GNU)),
    ("gpl-3.0", ANY_LENGTH, ("gnu general public license version 3 29 june 2007", GNU)),
    ("agpl-3.0", ANY_LENGTH, ("gnu affero general public license version 3 19 november 2007", GNU)),
    ("lgpl-2.1", ANY_LENGTH, ("gnu lesser general public license version 2.1 february 1999", GNU)),
    ("lgpl-3.0", ANY_LENGTH, ("gnu lesser general public license version 3 29 june 2007", GNU)),
    ("mpl-2.0", ANY_LENGTH, ("mozilla public license version 2.0", "covered software is provided under this license")),
    ("creativeml-openrail-m", ANY_LENGTH, ("creativeml open rail m", RAILS)),
    ("openrail++", ANY_LENGTH, ("creativeml open rail++ m", RAILS)),
    ("llama2", ANY_LENGTH, ("llama 2 community license agreement", LLAMA)),
    ("llama3", ANY_LENGTH, ("meta llama 3 community license agreement", LLAMA)),
    ("llama3.1", ANY_LENGTH, ("llama 3.1 community license agreement", LLAMA)),
    ("llama3.2", ANY_LENGTH, ("llama 3.2 community license agreement", LLAMA)),
    ("llama3.3", ANY_LENGTH, ("llama 3.3 community license agreement", LLAMA)),
    ("llama4", ANY_LENGTH, ("llama 4 community license agreement", LLAMA)),
    ("gemma", ANY_LENGTH, ("gemma terms of use", "must include the use restrictions referenced in section 3.2")),
)
"""Identifier, most words, and the phrases, as ``_plain`` writes them; the first stands near the beginning."""
OPENING = 120
"""Words among which the first phrase has to be."""

NOTICE_LINE = re.compile(
    r"following\s+(?:attribution\s+)?notice(?:\s+within\s+a\s+\W?Notice\W?\s+text\s+file[^:]{0,80})?:\s*[“\"](?P<line>[^”\"]{20,300})[”\"]",
    re.IGNORECASE,
)


def recognise(text: str) -> str | None:
    """Return the identifier of the licence whose text this is, ``None`` if it is none or several that we know."""
    plain = _plain(text)
    words = plain.split()
    opening = " ".join(words[:OPENING])
    found = [
        name
        for name, most, phrases in PHRASES
        if len(words) <= most and phrases[0] in opening and all(phrase in plain for phrase in phrases)
    ]
    if found[:2] == ["bsd-3-clause", "bsd-2-clause"]:
        found = found[:1]
    return found[0] if len(found) == 1 else None


def _plain(text: str) -> str:
    """Return the words of ``text`` in lower case, one space apart, without punctuation but for points in numbers."""
    lowered = text.casefold().replace("\\", "")
    return " ".join(re.sub(r"(?<!\d)\.|\.(?!\d)|[^a-z0-9.+]", " ", lowered).split())


def terms_files(folder: Path) -> dict[str, str]:
    """Return the texts of the licence, notice and policy files in ``folder`` by name.

    What is no text, or a link that leads out of the folder, is left out.
    """
    return dict(islice(_read_terms(folder), MOST_FILES))


def _read_terms(folder: Path) -> Iterator[tuple[str, str]]:
    named = (path for path in sorted(folder.iterdir()) if any(fnmatchcase(path.name, name) for name in TERMS_FILES))
    for path in named:
        try:
            if not contained(folder, path.name).is_file() or path.stat().st_size > MOST_BYTES:
                continue
            text = path.read_text(encoding="utf-8")
        except (AdapterFormatError, OSError, UnicodeDecodeError):
            continue
        yield path.name, text


def prescribed_notice(text: str) -> str | None:
    """Return the line that a licence's own text prescribes for a NOTICE file, if it does."""
    found = NOTICE_LINE.search(text)
    return " ".join(found["line"].split()) if found else None
