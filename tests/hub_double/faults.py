"""Make chosen requests fail, stall or lose their connection."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass
class Fault:
    """What happens to requests whose ``METHOD /path?query`` matches ``pattern``.

    With ``status`` the double answers at once and does nothing else. ``cut`` drops the connection: before the
    ``request`` is carried out, after it but before the ``response``, or in the middle of the ``body``. ``length``
    shortens or pads the body, ``headers`` are added; both also to an otherwise normal answer.
    """

    pattern: str
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    times: int | None = 1
    delay: float = 0.0
    cut: Literal["request", "response", "body"] | None = None
    length: int | None = None

    def applies(self, line: str) -> bool:
        return self.times != 0 and re.search(self.pattern, line) is not None


class Faults(list[Fault]):
    def add(
        self,
        pattern: str,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        times: int | None = 1,
        delay: float = 0.0,
        cut: Literal["request", "response", "body"] | None = None,
        length: int | None = None,
    ) -> Fault:
        fault = Fault(pattern, status, headers or {}, body, times, delay, cut, length)
        self.append(fault)
        return fault

    def take(self, line: str) -> Fault | None:
        """The first fault that applies to a request; it is used up once more."""
        fault = next((fault for fault in self if fault.applies(line)), None)
        if fault and fault.times is not None:
            fault.times -= 1
        return fault
