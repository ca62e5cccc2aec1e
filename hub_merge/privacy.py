"""Text from elsewhere, made fit to be shown: no token, no local path, nothing that steers a terminal or hides."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["one_line", "scrub"]

UNSEEN = {"Cf", "Co", "Cs"}
SPACING = {"Cc", "Zl", "Zp", "Zs"}

TOKEN = re.compile(r"(?:hf|api_org)_\w{20,}[\w.-]*")
PATH = re.compile(
    r"""
    (?: file:/+                                   # an address of a file
      | [A-Za-z]:\\ | (?<![A-Za-z0-9])[A-Za-z]:/  # a drive
      | \\\\(?=\w)                                # a Windows share
      | (?<![\w~])~(?:[A-Za-z_][\w.-]*)?[\\/]     # a home
      | (?<![\w.~:/)\]<])//+(?=[\w.])             # a root written twice
      | (?<![\w.~/)\]<])/(?=[\w.~-])              # a root
      | /(?:home|root|Users)/                     # a home after anything
    )
    (?:[^'"`<>|\n]*\\)?                           # up to the last backslash, spaces included
    [^\s'"`<>|,;()\[\]{}]*
    (?:[ ][^\s'"`<>|,;()\[\]{}]*[\\/][^\s'"`<>|,;()\[\]{}]*)?
    """,
    re.VERBOSE,
)


def scrub(text: str) -> str:
    """Return ``text`` without Hub tokens and without absolute paths (POSIX, Windows, home)."""
    return TOKEN.sub("(token removed)", PATH.sub("(path removed)", text))


def one_line(text: str) -> str:
    """Return ``text`` as one line of visible characters, scrubbed."""
    kinds = ((character, unicodedata.category(character)) for character in text)
    seen = "".join(" " if kind in SPACING else character for character, kind in kinds if kind not in UNSEEN)
    return scrub(" ".join(seen.split()))
