"""How it is printed whether something can be made again from its record."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from hub_merge.cli.output import Output

if TYPE_CHECKING:
    from hub_merge.verification import Verification

__all__ = ["print_verification"]


def print_verification(out: Output, subject: str, given: Sequence[str], result: Verification[Any]) -> None:
    """Print the verdict, what was looked at, and what is not as recorded; ``given`` are the parents that were named."""
    if out.mode == "json":
        out.document(result.to_dict())
    elif out.mode == "quiet":
        out.fields({"verdict": result.verdict})
    else:
        _print_found(out, subject, result)
    if absent := [f"PATH/TO/{PurePosixPath(missing.model).name}" for missing in result.missing if missing.local]:
        out.hint(f"hub-merge verify {shlex.join([subject, *given, *absent])}")


def _print_found(out: Output, subject: str, result: Verification[Any]) -> None:
    if result.proof is not None:
        rows = [{"check": check.name, "passed": check.passed, "detail": check.detail} for check in result.proof.checks]
        out.table(rows, ["check", "passed", "detail"], title=f"Proof of {subject}")
    for difference in result.differences:
        out.line(f"✗ {difference.describe()}")
    for missing in result.missing:
        out.line(f"✗ {missing.detail} {missing.remedy or ''}".rstrip())
    out.fields({"verdict": result.verdict, "compared": _compared(result)})
    if result.passed:
        out.line("✓ It is what its record tells of.")


def _compared(result: Verification[Any]) -> str | None:
    if result.exact is None:
        return None
    return "bit by bit" if result.exact else "to the tolerance of the proof"
