"""What verifying something made here against its own record shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar

from hub_merge.adapter import FileDigest
from hub_merge.formats.tensors import SafetensorsStore
from hub_merge.proof import Check

__all__ = ["Difference", "Missing", "Verification", "changed_files", "differing_tensors", "failed_checks"]

Verdict: TypeAlias = Literal["reproduced", "differs", "parents gone"]


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not what the record tells of.

    Attributes:
        source: The parent or base that it belongs to; empty for the result itself.
        file: The file, where one can be named.
        tensors: The tensors of it, where they can be named.
        detail: What was seen.
    """

    source: str
    file: str
    tensors: tuple[str, ...]
    detail: str

    def describe(self) -> str:
        """Return it as one sentence."""
        named = f" ({', '.join(self.tensors[:3])}{', …' if len(self.tensors) > 3 else ''})" if self.tensors else ""
        place = ": ".join(filter(None, [self.source and f"parent {self.source}", self.file]))
        return f"{place}: {self.detail}{named}" if place else f"{self.detail}{named}"


@dataclass(frozen=True, slots=True)
class Missing:
    """A parent or base that cannot be had any more.

    Attributes:
        source: Its name.
        model: The reference that the record has of it.
        detail: Why not.
        remedy: What can be done.
        local: Whether it was local, so that naming where it is now is enough.
    """

    source: str
    model: str
    detail: str
    remedy: str | None
    local: bool = False


class AnyProof(Protocol):
    """A proof of a composite or of a fused model."""

    @property
    def checks(self) -> tuple[Check, ...]: ...

    def to_dict(self) -> dict[str, Any]: ...


Kind = TypeVar("Kind", bound=AnyProof)


@dataclass(frozen=True, slots=True)
class Verification(Generic[Kind]):
    """Whether something can be made again from its record.

    Attributes:
        exact: Whether every byte of the weights has to come out again; elsewhere the proof's tolerance counts.
            ``None`` where nothing could be made again.
        differences: What is not as recorded.
        missing: Parents that cannot be had.
        proof: What comparing it with what its sources give now shows; ``None`` where that was not possible.
    """

    exact: bool | None
    differences: tuple[Difference, ...]
    missing: tuple[Missing, ...]
    proof: Kind | None

    @property
    def verdict(self) -> Verdict:
        """The answer in a word; what is known to differ counts more than what cannot be known."""
        if self.differences:
            return "differs"
        return "parents gone" if self.missing else "reproduced"

    @property
    def passed(self) -> bool:
        """Whether it was reproduced."""
        return self.verdict == "reproduced"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "verdict": self.verdict,
            "passed": self.passed,
            "exact": self.exact,
            "differences": [asdict(difference) for difference in self.differences],
            "missing": [asdict(missing) for missing in self.missing],
            "proof": None if self.proof is None else self.proof.to_dict(),
        }


def changed_files(
    present: Iterable[FileDigest], recorded: Iterable[Mapping[str, Any]], source: str = ""
) -> list[Difference]:
    """Return which of the recorded files of ``source`` are absent or others now."""
    now = {digest.name: digest.sha256 for digest in present}
    return [
        Difference(source, entry["name"], (), _told(now.get(entry["name"]), entry["sha256"]))
        for entry in recorded
        if now.get(entry["name"]) != entry["sha256"]
    ]


def _told(now: str | None, recorded: str) -> str:
    if now is None:
        return "the recorded file is not there"
    return f"not the file that was recorded: sha256 {now[:12]}…, recorded {recorded[:12]}…"


def failed_checks(proof: AnyProof, file: str = "") -> list[Difference]:
    """Return one difference for each check of a proof that failed."""
    return [Difference("", file, (), f"{check.name}: {check.detail}") for check in proof.checks if not check.passed]


def differing_tensors(one: Path, two: Path) -> tuple[str, ...]:
    """Return the tensors of two safetensors files that are not the same bit by bit, or in one of them only."""
    first, second = SafetensorsStore(one), SafetensorsStore(two)
    return tuple(
        name for name in sorted({*first.infos, *second.infos}) if _content(first, name) != _content(second, name)
    )


def _content(store: SafetensorsStore, name: str) -> tuple[str, tuple[int, ...], bytes] | None:
    info = store.infos.get(name)
    if info is None:
        return None
    return info.dtype, info.shape, store.read_bytes(name, 0, info.end - info.begin).tobytes()
