"""Patterns of module names in a config, matched by PEFT's rule and never at a cost that a stranger can choose."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Any

__all__ = ["Patterns", "is_tame", "matches", "suffixes"]

MAX_LENGTH = 512
MAX_WILD = 20_000
"""Characters of all regular expressions of a field together; compiling takes about a second for a million."""
MAX_QUANTIFIERS = 3
MAX_TRIALS = 300_000
"""Most comparisons of a pattern with a module."""
MAX_STEPS = 1e8
"""Most steps that matching may take at worst; the re module takes about a thousand million in a second."""

PLAIN = re.compile(r"[\w.]+")
LITERAL = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]", re.DOTALL)
"""What has no quantifier, group or alternative inside: an escape or a set of characters."""


def suffixes(name: str) -> Iterator[str]:
    """Yield a dotted name and each part of it that follows a dot, longest first."""
    yield name
    for place, character in enumerate(name):
        if character == ".":
            yield name[place + 1 :]


def is_tame(pattern: str) -> bool:
    """Whether a regular expression of a config compiles and has nothing of what exponential time is made of.

    A repeated group, a back reference, a look-around or many quantifiers are; no config seen in the wild has them.
    """
    if len(pattern) > MAX_LENGTH:
        return False
    if PLAIN.fullmatch(pattern):
        return True
    if re.search(r"\)[*+{?]|\\\d|\(\?[^:]", pattern) or _quantifiers(pattern) > MAX_QUANTIFIERS:
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _quantifiers(pattern: str) -> int:
    bare = LITERAL.sub("", pattern).replace("(?:", "(")
    return len(re.findall(r"[*+?{]", bare))


def _alternatives(pattern: str) -> int:
    """Return in how many ways the groups of a pattern can be read, at most."""
    return math.prod(part.count("|") + 1 for part in LITERAL.sub("", pattern).split("("))


def _steps(pattern: str, length: int, dots: int) -> float:
    """Return how many steps matching one name of ``length`` characters takes at worst, PEFT's prefix included."""
    quantifiers = _quantifiers(pattern)
    return _alternatives(pattern) * (dots + 1) * float(length) ** quantifiers / math.factorial(quantifiers)


class Patterns:
    """Values by pattern, in the order of the config.

    PEFT's rule (``peft.utils.other.get_pattern_key``): ``(.*\\.)?(pattern)$``, the pattern is the whole name or its
    end after a dot, and the first that matches counts. A pattern of word characters and dots alone ends in a literal,
    by which it is found without trying the others.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = list(values.items())
        self._wild = [number for number, (pattern, _) in enumerate(self._values) if not PLAIN.fullmatch(pattern)]
        self._by_end: dict[str, list[int]] = {}
        for number in sorted(set(range(len(self._values))).difference(self._wild)):
            self._by_end.setdefault(self._values[number][0].rpartition(".")[2], []).append(number)

    def matching(self, module: str) -> Iterator[tuple[str, Any]]:
        """Yield the patterns that match ``module``, with their values."""
        for number in sorted(self._candidates(module)):
            pattern, value = self._values[number]
            if matches(pattern, module):
                yield pattern, value

    def _candidates(self, module: str) -> list[int]:
        last = module.rpartition(".")[2]
        ends = (last[start:] for start in range(len(last) + 1))
        return [*self._wild, *(number for end in ends for number in self._by_end.get(end, ()))]

    def wild_length(self) -> int:
        """Return how many characters the regular expressions have together."""
        return sum(len(self._values[number][0]) for number in self._wild)

    def is_cheap(self, modules: Collection[str]) -> bool:
        """Whether matching every one of ``modules`` stays within the limits of this file."""
        trials = accumulate(len(self._candidates(module)) for module in modules)
        if any(count > MAX_TRIALS for count in trials):
            return False
        length, dots = max(map(len, modules), default=0), max((name.count(".") for name in modules), default=0)
        steps = sum(_steps(self._values[number][0], length, dots) for number in self._wild)
        return steps * len(modules) <= MAX_STEPS

    def unused(self, modules: Iterable[str]) -> list[str]:
        """Return the patterns that match none of ``modules``."""
        used = {pattern for module in modules for pattern, _ in self.matching(module)}
        return [pattern for pattern, _ in self._values if pattern not in used]


def matches(pattern: str, module: str) -> bool:
    """Whether ``pattern`` matches ``module`` by PEFT's rule; see ``Patterns``."""
    if not PLAIN.fullmatch(pattern):
        return _compiled(pattern).match(module) is not None
    start = len(module) - len(pattern)
    if start < 0 or (start and module[start - 1] != "."):
        return False
    tail = module[start:]
    return tail == pattern or all(wanted in (".", found) for wanted, found in zip(pattern, tail, strict=True))


@lru_cache(maxsize=8192)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")
