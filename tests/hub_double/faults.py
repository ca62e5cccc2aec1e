"""Make chosen requests fail, stall or lose their connection."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Cut = Literal["request", "response", "body", "reset"]


@dataclass
class Fault:
    """What happens to requests whose ``METHOD /path?query`` matches ``pattern``.

    With ``status`` the double answers at once and does nothing else. ``cut`` drops the connection: before the
    ``request`` is carried out, after it but before the ``response``, or in the middle of the ``body``, which a
    ``reset`` does without a farewell. ``length`` shortens or pads the body, ``garbled`` changes its last byte, ``drip``
    sends it byte by byte with so many seconds between two, ``loop`` redirects to the same address again, ``headers``
    are added; all also to an otherwise normal answer.
    """

    pattern: str
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    times: int | None = 1
    delay: float = 0.0
    cut: Cut | None = None
    length: int | None = None
    garbled: bool = False
    drip: float = 0.0
    loop: bool = False

    def applies(self, line: str) -> bool:
        return self.times != 0 and re.search(self.pattern, line) is not None


class Faults(list[Fault]):
    def add(self, pattern: str, **what: Any) -> Fault:
        """Add a ``Fault`` of these attributes."""
        fault = Fault(pattern, **what)
        self.append(fault)
        return fault

    def take(self, line: str) -> Fault | None:
        """The first fault that applies to a request; it is used up once more."""
        fault = next((fault for fault in self if fault.applies(line)), None)
        if fault and fault.times is not None:
            fault.times -= 1
        return fault
