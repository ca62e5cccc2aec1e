"""How adapters, and whether they fit together, are printed."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hub_merge.bases import read_base
from hub_merge.cli.output import Output
from hub_merge.cli.show.words import human_size

if TYPE_CHECKING:
    from hub_merge.bulk import Verdict
    from hub_merge.compat import Compatibility
    from hub_merge.findings import Finding, Report
    from hub_merge.hub import Listing
    from hub_merge.lineage import Standing
    from hub_merge.sources import Opened

__all__ = ["print_compatibility", "print_inspection", "print_listings", "print_verdicts"]


def print_listings(out: Output, found: Sequence[Listing]) -> None:
    """Print what a search found."""
    out.table(
        [_listing_row(listing) for listing in found],
        ["id", "base_model", "task", "license", "downloads", "likes", "size", "last_modified"],
        formats={"size": human_size, "last_modified": lambda time: time[:10]},
    )
    if len(found) > 1:
        out.hint(f"hub-merge check {found[0].repo_id} {found[1].repo_id}")
    elif not found:
        out.hint("nothing fits: search with fewer words or filters, or for the base model's full id")


def _listing_row(listing: Listing) -> dict[str, Any]:
    return {
        "id": listing.repo_id,
        "commit": listing.commit,
        "base_model": listing.base_model and read_base(listing.base_model).label,
        "task": listing.task_type,
        "license": listing.license,
        "downloads": listing.downloads,
        "likes": listing.likes,
        "size": listing.size,
        "last_modified": listing.last_modified,
        "gated": listing.gated,
        "found_by": listing.found_by,
    }


def print_inspection(out: Output, opened: Opened, base: Standing) -> None:
    """Print what one adapter is."""
    values, findings = _inspection(opened, base), opened.adapter.findings
    if out.mode == "json":
        out.document({**values, "findings": [found.to_dict() for found in findings]})
        return
    out.fields(values, formats={"parameters": "{:,}".format, "bytes": human_size, "bytes_read": human_size})
    _print_findings(out, findings)


def _inspection(opened: Opened, base: Standing) -> dict[str, Any]:
    adapter, specs = opened.adapter, list(opened.adapter.modules.values())
    groups = Counter(f"{_layer(spec.name)} {spec.shape[0]}x{spec.shape[1]}" for spec in specs)
    return {
        "adapter": adapter.name,
        "format": adapter.format,
        "repo_id": adapter.origin.repo_id,
        "commit": adapter.origin.commit,
        "base_model": base.stands_for,
        "trained_on": base.trained_on,
        "base_known_by": base.how,
        "task_type": adapter.task_type,
        "license": adapter.origin.license,
        "license_found_in": adapter.origin.license_details.found_in,
        "modules": len(specs),
        **({"extras": list(adapter.extras)} if adapter.extras else {}),
        "groups": [f"{count} x {group}" for group, count in groups.items()],
        "rank": _one_or_all(spec.rank for spec in specs),
        "scaling": _one_or_all(spec.scaling for spec in specs),
        "dtype": _one_or_all(spec.dtype for spec in specs),
        "parameters": sum(spec.rank * sum(spec.shape) for spec in specs),
        "bytes": opened.bytes_total,
        "bytes_read": opened.bytes_read,
    }


def _layer(module: str) -> str:
    """Return the last part of a module's name that says something: ``to_out`` of ``attn.to_out.0``."""
    parts = module.split(".")
    return next((part for part in reversed(parts) if not part.isdigit()), module)


def _one_or_all(values: Iterable[Any]) -> Any:
    different = sorted(set(values))
    return different[0] if len(different) == 1 else different


def _print_findings(out: Output, findings: Sequence[Finding]) -> None:
    """Print findings as lines for people; programs that do not take JSON get a table where there are any."""
    for found in findings:
        out.line(f"{'✗' if found.severity == 'problem' else '!'} {found.describe()}")
    if findings and out.mode == "agent":
        out.table([_finding_row(found) for found in findings], ["code", "severity", "adapter", "what"])


def _finding_row(found: Finding) -> dict[str, Any]:
    return {"code": found.code, "severity": found.severity, "adapter": found.adapter, "what": found.describe()}


def print_compatibility(out: Output, result: Compatibility, references: Sequence[str]) -> None:
    """Print whether adapters fit together, with coverage and findings."""
    if out.mode == "json":
        out.document(result.to_dict())
    elif out.human:
        _print_bases(out, result)
        _print_coverage(out, result)
        _print_findings(out, result.report.findings)
        _print_verdict(out, result.report, result.base_model)
    else:
        rows = [_finding_row(found) for found in result.report.findings]
        out.table(rows, ["code", "severity", "adapter", "what"])
    if result.compatible and len(references) > 1:
        out.hint(f"hub-merge score {shlex.join(references)}")


def _print_bases(out: Output, result: Compatibility) -> None:
    rows = [
        {"adapter": base.adapter, "trained_on": base.trained_on, "stands_for": base.stands_for, "known_by": base.how}
        for base in result.bases
    ]
    out.table(rows, ["adapter", "trained_on", "stands_for", "known_by"], title="Base models")


def _print_coverage(out: Output, result: Compatibility) -> None:
    rows = [
        {
            "modules": group.group,
            "shape": f"{group.shape[0]}x{group.shape[1]}",
            **{f"in {name}": count for name, count in zip(result.adapters, group.counts, strict=True)},
        }
        for group in result.coverage
    ]
    out.table(rows, ["modules", "shape", *(f"in {name}" for name in result.adapters)], title="Modules by adapter")


def _print_verdict(out: Output, report: Report, base_model: str | None) -> None:
    count = len(report.problems)
    if count:
        out.line(f"✗ No merge as it is: {count} problem{'s' * (count != 1)}.")
    else:
        out.line(f"✓ Nothing blocks a merge on {base_model or 'a base that is not named'}.")


MARKS = {"fits": "✓", "caution": "!", "blocked": "✗", "unreadable": "✗", "unavailable": "?"}


def print_verdicts(out: Output, verdicts: Iterable[Verdict], *, listed: int, requests: Callable[[], int]) -> None:
    """Print each verdict as it comes, and at the end what all of them cost."""
    show = out.stream(["repo_id", "verdict", "reason", "rank", "modules", "bytes_read"])
    counts: Counter[str] = Counter()
    size = total = 0
    for verdict in verdicts:
        counts[verdict.verdict] += 1
        size, total = size + verdict.bytes_read, total + (verdict.bytes_total or 0)
        if out.mode != "quiet" or verdict.verdict in ("fits", "caution"):
            show(verdict.to_dict(), f"{MARKS[verdict.verdict]} {verdict.repo_id}: {verdict.reason}")
    judged = sum(counts.values())
    summary = {"listed": listed, "judged": judged, **counts, "bytes_read": size, "requests": requests()}
    if out.mode == "json":
        out.document({"summary": {**summary, "bytes_total": total}})
    else:
        shares = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "nothing new"
        out.note(
            f"{judged} of {listed} listed adapters judged: {shares}. Read {human_size(size)} of {human_size(total)}, "
            f"{requests()} requests."
        )
