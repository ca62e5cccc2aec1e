"""How each result is printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub_merge.cli.output import Output

if TYPE_CHECKING:
    from hub_merge.compat import Compatibility
    from hub_merge.findings import Report
    from hub_merge.hub import Listing
    from hub_merge.methods import Method
    from hub_merge.proof import Proof
    from hub_merge.publish import Published
    from hub_merge.recipe import MergeRecord
    from hub_merge.scores import PairScore, Scores
    from hub_merge.sources import Opened

__all__ = [
    "listing_row",
    "print_compatibility",
    "print_inspection",
    "print_merge",
    "print_method",
    "print_methods",
    "print_proof",
    "print_published",
    "print_scores",
]

UNITS = ("B", "kB", "MB", "GB")
SHARED_START = 5.0
"""From this multiple of chance on, similar rows of A are told as a shared initialisation."""


def _size(number: int | None) -> str | None:
    if number is None:
        return None
    value, unit = float(number), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {UNITS[unit]}"


def listing_row(listing: Listing) -> dict[str, Any]:
    """Return one search result as a row."""
    return {
        "id": listing.repo_id,
        "commit": listing.commit,
        "base_model": listing.base_model,
        "task": listing.task_type,
        "license": listing.license,
        "downloads": listing.downloads,
        "likes": listing.likes,
        "size": _size(listing.size),
        "last_modified": listing.last_modified,
        "gated": listing.gated,
        "found_by": listing.found_by,
    }


def _print_findings(out: Output, report: Report) -> None:
    rows = [
        {"code": found.code, "severity": found.severity, "adapter": found.adapter, "what": found.describe()}
        for found in report.findings
    ]
    if out.human:
        for found in report.findings:
            out.note(f"{'✗' if found.severity == 'problem' else '!'} {found.describe()}")
    else:
        out.table(rows, ["code", "severity", "adapter", "what"])


def print_inspection(out: Output, opened: Opened) -> None:
    """Print what one adapter is."""
    adapter = opened.adapter
    specs = list(adapter.modules.values())
    ranks = sorted({spec.rank for spec in specs})
    scalings = sorted({spec.scaling for spec in specs})
    groups = Counter(f"{spec.name.rpartition('.')[2]} {spec.shape[0]}x{spec.shape[1]}" for spec in specs)
    values = {
        "adapter": adapter.name,
        "repo_id": adapter.origin.repo_id,
        "commit": adapter.origin.commit,
        "base_model": adapter.base_model,
        "task_type": adapter.task_type,
        "license": adapter.origin.license,
        "modules": len(specs),
        "groups": [f"{count} x {group}" for group, count in groups.items()],
        "rank": ranks[0] if len(ranks) == 1 else ranks,
        "scaling": scalings[0] if len(scalings) == 1 else scalings,
        "dtype": sorted({spec.dtype for spec in specs}),
        "parameters": sum(spec.rank * sum(spec.shape) for spec in specs),
        "bytes": opened.bytes_total,
        "bytes_read": opened.bytes_read,
    }
    if out.mode == "json":
        out.document({**values, "findings": [found.to_dict() for found in adapter.findings]})
        return
    out.fields(values)
    if out.human:
        for found in adapter.findings:
            out.note(f"{'✗' if found.severity == 'problem' else '!'} {found.describe()}")


def print_compatibility(out: Output, result: Compatibility) -> None:
    """Print whether adapters fit together, with coverage and findings."""
    if out.mode == "json":
        out.document(result.to_dict())
        return
    if out.human:
        rows = [
            {
                "modules": group.group,
                "shape": f"{group.shape[0]}x{group.shape[1]}",
                **dict(zip(result.adapters, group.counts, strict=True)),
            }
            for group in result.coverage
        ]
        out.table(rows, ["modules", "shape", *result.adapters], title="Modules by adapter")
    _print_findings(out, result.report)
    if not out.human:
        return
    if result.compatible:
        out.note(f"✓ These adapters fit together on {result.base_model or 'an unnamed base'}.")
        out.hint("score them next: hub-merge score ADAPTER...")
    else:
        count = len(result.report.problems)
        out.note(f"✗ They do not fit together: {count} problem{'s' * (count != 1)}.")


def _pair_row(pair: PairScore) -> dict[str, Any]:
    return {
        "pair": f"{pair.first} + {pair.second}",
        "rms cosine": pair.rms_cosine,
        "chance": pair.chance,
        "global": pair.global_cosine,
        "max": pair.max_abs_cosine,
        "left": pair.left,
        "right": pair.right,
        "A rows": pair.a_rows,
        "norm ratio": pair.norm_ratio,
        "sign conflict": pair.sign_conflict,
        "modules": pair.shared_modules,
    }


def print_scores(out: Output, scores: Scores, *, modules: bool) -> None:
    """Print scores of a set of adapters."""
    if out.mode == "json":
        out.document(scores.to_dict(modules=modules))
        return
    rows = [_pair_row(pair) for pair in scores.pairs]
    columns = list(rows[0]) if rows else ["pair", "rms cosine"]
    out.table(rows, columns, title="Orthogonality score (0 is orthogonal; chance is what random deltas give)")
    if not out.human:
        return
    kept = [
        {"adapter": name, "norm": norm, "kept in the sum": share}
        for name, norm, share in zip(scores.adapters, scores.norms, scores.retention, strict=True)
    ]
    out.table(kept, ["adapter", "norm", "kept in the sum"], title="\nAdapters")
    for pair in scores.pairs:
        if pair.a_rows and pair.a_rows_chance and pair.a_rows > SHARED_START * pair.a_rows_chance:
            out.note(
                f"! {pair.first} and {pair.second} started from one lora_A (rows {pair.a_rows:.2f} alike, chance "
                f"{pair.a_rows_chance:.2f}): that alone raises the cosine."
            )
    out.note("The score describes geometry. Whether it predicts quality is contested: measure the composite.")


def print_merge(out: Output, folder: Path, record: MergeRecord) -> None:
    """Print what a merge wrote and proved."""
    values = {
        "output": str(folder),
        "method": record.recipe.merge_method,
        "rank": record.output["rank"],
        "dtype": record.output["dtype"],
        "modules": record.output["modules"],
        "max_error": record.proof["max_error"],
        "distance_to_sum": record.proof["distance_to_sum"],
        "rms_cosine": record.scores["rms_cosine"],
    }
    if out.mode == "json":
        out.document({**values, "proof": record.proof, "findings": list(record.findings)})
        return
    out.fields(values, title="Merged and proved")
    if not out.human:
        return
    for found in record.findings:
        out.note(f"! [{found['code']}] {found['seen']}")
    rows = [
        {"parent": entry["name"], "weight": parent.weight, "kept": entry["measured"]}
        for entry, parent in zip(record.proof["retention"], record.parents, strict=True)
    ]
    out.table(rows, ["parent", "weight", "kept"])
    out.hint(f"hub-merge push {folder} OWNER/NAME --private")


def print_proof(out: Output, subject: str, proof: Proof) -> None:
    """Print what a proof showed."""
    if out.mode == "json":
        out.document(proof.to_dict())
        return
    rows = [{"check": check.name, "passed": check.passed, "detail": check.detail} for check in proof.checks]
    out.table(rows, ["check", "passed", "detail"], title=f"Proof of {subject}")
    out.note("✓ It is the merge that its record tells of." if proof.passed else "✗ It is not what its record tells of.")


def print_published(out: Output, published: Published, *, dry_run: bool) -> None:
    """Print what a push did, or would do."""
    values = {
        "url": published.pr_url or published.url,
        "repo_id": published.repo_id,
        "commit": published.commit,
        "created": published.created,
        "changed": published.changed,
    }
    if out.mode == "json":
        files = [{"name": name, "size": size, "action": action} for name, size, action in published.files]
        out.document({**values, "dry_run": dry_run, "files": files})
        return
    if out.human:
        rows = [{"file": name, "size": _size(size), "action": action} for name, size, action in published.files]
        out.table(rows, ["file", "size", "action"])
    title = "Would publish" if dry_run else "Published" if published.changed else "Nothing to change"
    out.fields(values, title=title)


def _method_row(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "aliases": list(method.aliases),
        "summary": method.summary,
        "formula": method.formula,
        "paper": method.paper or None,
        "default_rank": method.default_rank,
        "presets": list(method.presets),
        "options": [
            {"name": option.name, "takes": option.describe(), "default": option.default} for option in method.options
        ],
    }


def print_methods(out: Output, methods: Sequence[Method]) -> None:
    """Print the registered methods."""
    rows = [_method_row(method) for method in methods]
    out.table(rows, ["name", "summary", "paper"] if out.human else ["name", "summary", "formula", "paper"])


def print_method(out: Output, method: Method) -> None:
    """Explain one method."""
    row = _method_row(method)
    if out.mode != "human":
        out.fields(row) if out.mode == "json" else out.table([row], ["name", "summary", "formula", "paper"])
        return
    out.fields(
        {
            "formula": method.formula,
            "paper": f"https://arxiv.org/abs/{method.paper}" if method.paper else None,
            "aliases": row["aliases"],
            "rank": "sum of the parts' ranks" if method.default_rank == "total" else "largest rank of the parts",
            "presets": row["presets"],
        },
        title=method.name,
    )
    print(f"\n{method.description}\n")
    if method.options:
        out.table(row["options"], ["name", "takes", "default"])
        out.hint(f"--option {method.options[0].name}={method.options[0].default}")
