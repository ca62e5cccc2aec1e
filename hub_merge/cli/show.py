"""How each result is printed."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub_merge.bases import read_base
from hub_merge.cli.output import Output

if TYPE_CHECKING:
    from hub_merge.advise import Advice
    from hub_merge.bulk import Verdict
    from hub_merge.compat import Compatibility
    from hub_merge.extraction import Extraction
    from hub_merge.findings import Finding, Report
    from hub_merge.fusion import FusionRecord
    from hub_merge.hub import Listing
    from hub_merge.lineage import Standing
    from hub_merge.methods import Method
    from hub_merge.proof import Proof
    from hub_merge.publish import Published
    from hub_merge.recipe import MergeRecord
    from hub_merge.scores import PairScore, Scores
    from hub_merge.sources import Opened

__all__ = [
    "print_advice",
    "print_compatibility",
    "print_compression",
    "print_conversion",
    "print_extraction",
    "print_fusion",
    "print_inspection",
    "print_listings",
    "print_merge",
    "print_method",
    "print_methods",
    "print_proof",
    "print_published",
    "print_scores",
    "print_verdicts",
]

LEAST_KEPT = 5
UNITS = ("B", "kB", "MB", "GB")
PAIR_TABLES = {
    "RMS cosine of each pair: 0 is orthogonal, chance is what random deltas give": (
        *("pair", "rms_cosine", "chance", "times_chance", "global_cosine", "a_rows"),
    ),
    "Where and how they overlap: left and right are the shares of common output and input directions": (
        *("pair", "max_abs_cosine", "max_module", "left", "right", "norm_ratio", "sign_conflict"),
        *("exact_sign_conflict", "shared_modules"),
    ),
}
"""What people see of a pair's score, by title; the other modes have all in one table."""


# --- find and look ----------------------------------------------------------------------------------------------------


def print_listings(out: Output, found: Sequence[Listing]) -> None:
    """Print what a search found."""
    out.table(
        [_listing_row(listing) for listing in found],
        ["id", "base_model", "task", "license", "downloads", "likes", "size", "last_modified"],
        formats={"size": _size, "last_modified": lambda time: time[:10]},
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
    out.fields(values, formats={"parameters": "{:,}".format, "bytes": _size, "bytes_read": _size})
    _print_findings(out, findings)


def _inspection(opened: Opened, base: Standing) -> dict[str, Any]:
    adapter, specs = opened.adapter, list(opened.adapter.modules.values())
    groups = Counter(f"{spec.name.rpartition('.')[2]} {spec.shape[0]}x{spec.shape[1]}" for spec in specs)
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
            f"{judged} of {listed} listed adapters judged: {shares}. Read {_size(size)} of {_size(total)}, "
            f"{requests()} requests."
        )


# --- scores -----------------------------------------------------------------------------------------------------------


def print_scores(out: Output, scores: Scores, *, modules: bool) -> None:
    """Print scores of a set of adapters."""
    if out.mode == "json":
        out.document(scores.to_dict(modules=modules))
        return
    rows = [_pair_row(pair) for pair in scores.pairs]
    if not out.human:
        out.table(rows, tuple(rows[0]) if rows else ("pair", "rms_cosine"), main="rms_cosine")
    else:
        for title, columns in PAIR_TABLES.items() if rows else ():
            counted = any(row["exact_sign_conflict"] is not None for row in rows)
            out.table(rows, [name for name in columns if counted or name != "exact_sign_conflict"], title=title)
        _print_retention(out, scores)
        if scores.spectra is not None and scores.spectra.sti is not None:
            out.line(f"Singular task interference (STI), mean over modules: {scores.spectra.sti:.4g}")
        _print_shared_starts(out, scores)
        out.line("The score describes geometry. Whether it predicts quality is contested: measure the composite.")


def _pair_row(pair: PairScore) -> dict[str, Any]:
    return {
        "pair": f"{pair.first} + {pair.second}",
        "rms_cosine": pair.rms_cosine,
        "chance": pair.chance,
        "times_chance": pair.times_chance,
        "global_cosine": pair.global_cosine,
        "mean_abs_cosine": pair.mean_abs_cosine,
        "max_abs_cosine": pair.max_abs_cosine,
        "max_module": pair.max_module,
        "left": pair.left,
        "right": pair.right,
        "a_rows": pair.a_rows,
        "a_rows_chance": pair.a_rows_chance,
        "norm_ratio": pair.norm_ratio,
        "sign_conflict": pair.sign_conflict,
        "exact_sign_conflict": pair.exact_sign_conflict,
        "shared_modules": pair.shared_modules,
    }


def _print_retention(out: Output, scores: Scores) -> None:
    rows = [
        {"adapter": name, "norm": norm, "kept_in_the_sum": share}
        for name, norm, share in zip(scores.adapters, scores.norms, scores.retention, strict=True)
    ]
    if scores.spectra is not None:
        for row, spectrum in zip(rows, scores.spectra.adapters, strict=True):
            row |= {"effective_rank": spectrum.effective_rank, "sar": spectrum.sar}
    out.table(rows, list(rows[0]), title="Each adapter: SAR is its share in the main output directions of the sum")


def _print_shared_starts(out: Output, scores: Scores) -> None:
    for pair in scores.pairs:
        if pair.one_start:
            out.line(
                f"! {pair.first} and {pair.second} started from one lora_A (rows {pair.a_rows:.2f} alike, chance "
                f"{pair.a_rows_chance:.2f}): that alone raises the cosine."
            )


def print_advice(
    out: Output, advice: Advice, references: Sequence[str], *, base: str | None, allow: Sequence[str]
) -> None:
    """Print a recommendation, and the command that follows it."""
    command = _merge_command(advice, references, base, allow)
    if not out.human:
        shown = advice.to_dict()
        if out.mode == "agent":
            shown["energy_at_rank"] = [f"{rank}:{share:.4g}" for rank, share in advice.energy_at_rank]
        out.fields({**shown, "command": command})
    else:
        weights = advice.weights if set(advice.weights) != {1.0} else None
        rows = [{"rank": rank, "energy_kept": f"{share:.2%}"} for rank, share in advice.energy_at_rank]
        values = {"method": advice.method, "rank": advice.rank, "weights": weights}
        out.fields({**values, "alternatives": advice.alternatives or None}, title="Suggested by geometry")
        out.table(rows, ["rank", "energy_kept"], title="Energy of the merge at a rank")
        for reason in advice.reasons:
            out.line(f"- {reason}")
        for caveat in advice.caveats:
            out.line(f"! {caveat}")
    out.hint(command)


def _merge_command(advice: Advice, references: Sequence[str], base: str | None, allow: Sequence[str]) -> str:
    words = ["hub-merge", "merge", *references, "--method", advice.method]
    if set(advice.weights) != {1.0}:
        words += ["--weights", ",".join(f"{weight:g}" for weight in advice.weights)]
    if advice.rank is not None:
        words += ["--rank", str(advice.rank)]
    if base is not None:
        words += ["--base", base]
    for code in allow:
        words += ["--allow", code]
    return shlex.join([*words, "-o", "composite"])


# --- merge and prove --------------------------------------------------------------------------------------------------


def print_merge(out: Output, folder: Path, record: MergeRecord) -> None:
    """Print what a merge wrote and proved."""
    values = _merge_values(folder, record)
    if out.mode == "json":
        out.document({**values, **_record_values(record)})
    else:
        out.fields(values, title="✓ Merged and proved")
    if out.human:
        rows = [
            {"parent": entry["name"], "weight": _weight(parent.weight), "kept": entry["measured"]}
            for entry, parent in zip(record.proof["retention"], record.parents, strict=True)
        ]
        out.table(rows, ["parent", "weight", "kept"])
    _print_losses(out, record)
    _print_aftermath(out, folder, record)


def _print_losses(out: Output, record: MergeRecord) -> None:
    """Print, for people, which modules of a truncated composite lost most."""
    losses = record.proof["losses"]
    if out.human and losses and record.recipe.rank is not None:
        rows = [
            {"module": loss["module"], "rank": loss["rank"], "lost": loss["lost"], "of_all_lost": loss["share"]}
            for loss in losses
        ]
        columns = ["module", "rank", "lost", "of_all_lost"]
        out.table(
            rows,
            columns,
            title="Farthest from the exact combination of the deltas",
            formats=dict.fromkeys(("lost", "of_all_lost"), _percent),
        )


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _print_aftermath(out: Output, folder: Path, record: MergeRecord) -> None:
    """Print on stderr what the check found, and what could be done next."""
    for found in record.findings:
        subject = f"{found['adapter']}: " if found["adapter"] else ""
        out.warning(f"[{found['code']}] {subject}{found['seen']}")
    out.line(
        "This is no safety audit: a composition can undo a refusal that each adapter alone keeps. Test the composite."
    )
    out.hint(f"hub-merge push {shlex.quote(str(folder))} OWNER/NAME --private")


def print_conversion(out: Output, folder: Path, record: MergeRecord) -> None:
    """Print what a conversion wrote, and how far it is from what was read."""
    values = {
        "output": str(folder),
        "format": record.output["format"],
        "files": [entry["name"] for entry in record.output["files"]],
        "modules": record.output["modules"],
        "rank": record.output["rank"],
        "dtype": record.output["dtype"],
        "error": record.proof["distance_to_sum"],
    }
    if out.mode == "json":
        out.document({**values, "proof": record.proof, "findings": record.findings})
    else:
        out.fields(values, title="✓ Converted and proved")
    for found in record.findings:
        out.warning(f"[{found['code']}] {found['seen']}")


def _merge_values(folder: Path, record: MergeRecord) -> dict[str, Any]:
    from hub_merge.licenses import verdict_of

    return {
        "output": str(folder),
        "method": record.recipe.merge_method,
        "rank": record.output["rank"],
        "ranks": _ranks(record),
        "dtype": record.output["dtype"],
        "modules": record.output["modules"],
        **({"extras": _extras(record.output["extras"])} if "extras" in record.output else {}),
        "max_error": record.proof["max_error"],
        "distance_to_sum": record.proof["distance_to_sum"],
        "energy_kept": record.proof["energy_kept"],
        "rms_cosine": record.scores["rms_cosine"],
        "license": verdict_of(record).line(),
    }


def _extras(extras: Any) -> str:
    dropped = sum(len(entry["names"]) for entry in extras["dropped"])
    return f"{extras['policy']}: {len(extras['written'])} written, {dropped} left out"


def _ranks(record: MergeRecord) -> list[str] | None:
    """Return how many modules have which rank, where they differ in it."""
    counts = record.output.get("ranks")
    return None if counts is None else [f"{count} x {rank}" for rank, count in counts.items()]


def _record_values(record: MergeRecord) -> dict[str, Any]:
    parents = [{"name": parent.name, "model": parent.model, "weight": parent.weight} for parent in record.parents]
    files = record.output["files"]
    return {
        "ranks": record.output.get("ranks"),
        "parents": parents,
        "files": files,
        "proof": record.proof,
        "findings": record.findings,
    }


def print_compression(out: Output, folder: Path, record: MergeRecord) -> None:
    """Print what a compression wrote, and what it cost."""
    (parent,) = record.parents
    before, after = (
        sum(file["size"] for file in files if file["name"].endswith(".safetensors"))
        for files in (parent.files, record.output["files"])
    )
    values = {
        "output": str(folder),
        "rank_before": parent.rank,
        "rank": record.output["rank"],
        "ranks": _ranks(record),
        "bytes_before": before,
        "bytes": after,
        "dtype": record.output["dtype"],
        "modules": record.output["modules"],
        "max_error": record.proof["max_error"],
        "distance": record.proof["distance_to_sum"],
        "energy_kept": record.proof["energy_kept"],
    }
    if out.mode == "json":
        out.document({**values, **_record_values(record)})
    elif out.human:
        shown = {
            "output": values["output"],
            "rank": f"{parent.rank} → {_rank_told(record)}",
            "size": f"{_size(before)} → {_size(after)}",
            "energy_kept": values["energy_kept"],
            **{name: values[name] for name in ("distance", "dtype", "modules", "max_error")},
        }
        out.fields(shown, title="✓ Compressed and proved", formats={"energy_kept": _percent})
    else:
        out.fields(values)
    _print_losses(out, record)
    if after >= before:
        out.hint("the file is no smaller: ask for less --energy, for --rank N, or for --profile peft")
    _print_aftermath(out, folder, record)


def _rank_told(record: MergeRecord) -> str:
    ranks = [int(rank) for rank in record.output.get("ranks", [record.output["rank"]])]
    return str(ranks[0]) if len(ranks) == 1 else f"{min(ranks)} to {max(ranks)}, by module"


def _weight(weight: Any) -> Any:
    return weight if isinstance(weight, float) else "by module"


def print_proof(out: Output, subject: str, proof: Proof) -> None:
    """Print what a proof showed."""
    if out.mode == "json":
        out.document(proof.to_dict())
        return
    if out.mode == "quiet":
        out.fields({"verdict": "passed" if proof.passed else "failed"})
        return
    rows = [{"check": check.name, "passed": check.passed, "detail": check.detail} for check in proof.checks]
    out.table(rows, ["check", "passed", "detail"], title=f"Proof of {subject}")
    out.line("✓ It is the merge that its record tells of." if proof.passed else "✗ It is not what its record tells of.")


# --- full models ------------------------------------------------------------------------------------------------------


def print_fusion(out: Output, folder: Path, record: FusionRecord) -> None:
    """Print what was fused and proved."""
    values = {
        "output": str(folder),
        "base": record.base.model,
        "adapter": record.adapter.model,
        "dtypes": record.output["dtypes"],
        "changed": record.proof["changed"],
        "copied": record.proof["copied"],
        "change": record.proof["change"],
        "rounding": record.proof["rounding"],
        "bytes": sum(file["size"] for file in record.output["files"]),
    }
    if out.mode == "json":
        out.document({**values, **record.to_dict()})
    else:
        out.fields(values, title="✓ Fused and proved", formats={"bytes": _size})
    for caution in record.cautions:
        out.warning(caution)
    out.hint(f"hub-merge push {shlex.quote(str(folder))} OWNER/NAME --private")


def print_extraction(out: Output, folder: Path, result: Extraction) -> None:
    """Print what was extracted and what it keeps."""
    values = {"output": str(folder), **result.to_dict()}
    if out.mode == "json":
        out.document(values)
        return
    counts = {"modules": len(result.modules), "not_carried": len(result.not_carried)}
    out.fields({**values, **counts}, title="✓ Extracted and proved")
    if out.human:
        rows = [asdict(module) for module in sorted(result.modules, key=lambda module: module.energy)[:LEAST_KEPT]]
        out.table(rows, ["name", "change", "energy"], title="Least is kept in")
    if result.not_carried:
        named = ", ".join(result.not_carried[:LEAST_KEPT])
        out.warning(f"{len(result.not_carried)} tensors differ that the adapter cannot hold: {named}")
    out.hint(f"hub-merge inspect {shlex.quote(str(folder))}")


# --- publish ----------------------------------------------------------------------------------------------------------


def print_published(out: Output, published: Published, *, dry_run: bool, fused: bool = False) -> None:
    """Print what a push of a composite, or of a fused model, did or would do."""
    files = [{"file": name, "size": size, "action": action} for name, size, action in published.files]
    values = {
        "url": published.pr_url or published.url,
        "repo_id": published.repo_id,
        "commit": published.commit,
        "created": published.created,
        "changed": published.changed,
        "branch": published.branch,
        "tag": published.tag,
        "collection": published.collection,
    }
    if out.mode == "json":
        out.document({**values, "pr_url": published.pr_url, "dry_run": dry_run, "files": files})
    else:
        if out.human:
            out.table(files, ["file", "size", "action"], formats={"size": _size})
        out.fields(values, title=_publishing(published, dry_run))
    if dry_run:
        out.hint("nothing was sent; leave out --dry-run to publish")
    elif not (published.pr_url or fused):
        out.hint(f"hub-merge verify {published.repo_id}")


def _publishing(published: Published, dry_run: bool) -> str:
    if not published.changed:
        return "✓ Nothing to change: the repository holds these files already"
    return "Would publish" if dry_run else "✓ Opened a pull request" if published.pr_url else "✓ Published"


def _size(number: int) -> str:
    value, unit = float(number), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {UNITS[unit]}"


# --- methods ----------------------------------------------------------------------------------------------------------


def print_methods(out: Output, methods: Sequence[Method]) -> None:
    """Print the registered methods."""
    rows = [_method_row(method) for method in methods]
    out.table(rows, ["name", "summary", "paper"] if out.human else ["name", "summary", "formula", "paper"])
    out.hint("hub-merge methods NAME explains one")


def print_method(out: Output, method: Method) -> None:
    """Explain one method."""
    from hub_merge.methods.registry import PROMISES

    row = _method_row(method)
    if not out.human:
        out.fields(row if out.mode == "json" else {**row, "options": [option.name for option in method.options]})
        return
    shown = {name: row[name] for name in ("formula", "paper", "aliases", "presets", "most_adapters") if row[name]}
    out.fields({**shown, "rank": _default_rank(method)}, title=method.name, formats={"paper": _paper_address})
    out.line(f"\n{method.description}\n")
    out.line("Promises, each tested:")
    for promise in method.promises:
        out.line(f"- {promise}")
    for name in sorted(method.breaks):
        out.line(f"! broken by its nature: {PROMISES[name]}")
    out.line("")
    if method.options:
        out.table(row["options"], ["name", "takes", "default"], title="Options")
        first = method.options[0]
        out.hint(f"hub-merge merge ADAPTER... --method {method.name} --option {first.name}={first.default} -o FOLDER")


def _method_row(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "aliases": list(method.aliases),
        "summary": method.summary.removeprefix("Return "),
        "formula": method.formula,
        "paper": method.paper or None,
        "default_rank": method.default_rank,
        "presets": list(method.presets),
        "most_adapters": method.most_adapters,
        "promises": list(method.promises),
        "breaks": sorted(method.breaks),
        "options": [
            {"name": option.name, "takes": option.describe(), "default": option.default} for option in method.options
        ],
    }


def _paper_address(paper: str) -> str:
    return f"https://arxiv.org/abs/{paper}"


def _default_rank(method: Method) -> str:
    return "sum of the adapters' ranks" if method.default_rank == "total" else "largest of the adapters' ranks"
