"""How merges and proofs are printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub_merge.cli.output import Output
from hub_merge.cli.show.publication import hint_push
from hub_merge.cli.show.words import human_size, percent

if TYPE_CHECKING:
    from hub_merge.recipe import MergeRecord

__all__ = ["print_compression", "print_conversion", "print_merge"]


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
        if record.tuning:
            title = "Mean answer perplexity on the rows that it was tuned on"
            candidates = [{"candidate": entry["name"], "mean": entry["mean"]} for entry in record.tuning["candidates"]]
            out.table(candidates, ["candidate", "mean"], title=title)
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
            formats=dict.fromkeys(("lost", "of_all_lost"), percent),
        )


def _print_aftermath(out: Output, folder: Path, record: MergeRecord) -> None:
    """Print on stderr what the check found, and what could be done next."""
    from hub_merge.licenses import verdict_of

    _print_findings(out, record)
    out.line(
        "This is no safety audit: a composition can undo a refusal that each adapter alone keeps. Test the composite."
    )
    unasked = record.base_model if record.base_commit is None else None
    hint_push(out, folder, verdict_of(record), unasked_base=unasked)


def _print_findings(out: Output, record: MergeRecord) -> None:
    """Print what the check found, but for the rank of the exact sum where every server takes what was written."""
    from hub_merge.compat import SERVED_RANKS
    from hub_merge.findings import Finding

    for found in record.findings:
        if found["code"] != "serving_rank" or record.output["rank"] > min(SERVED_RANKS):
            out.warning(Finding(**found).describe())


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
    _print_findings(out, record)


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
        **({"tuning": record.tuning} if record.tuning else {}),
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
            "size": f"{human_size(before)} → {human_size(after)}",
            "energy_kept": values["energy_kept"],
            **{name: values[name] for name in ("distance", "dtype", "modules", "max_error")},
        }
        out.fields(shown, title="✓ Compressed and proved", formats={"energy_kept": percent})
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
