"""How what an index holds and answers is printed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hub_merge.bases import read_base
from hub_merge.cli.output import Output
from hub_merge.cli.show.words import human_size

if TYPE_CHECKING:
    from hub_merge.compat import Compatibility
    from hub_merge.scores import Scores
    from hub_merge.zoo.building import Built
    from hub_merge.zoo.composing import Proposal
    from hub_merge.zoo.discovery import Fit
    from hub_merge.zoo.entries import Entry
    from hub_merge.zoo.families import Families
    from hub_merge.zoo.job import Submitted
    from hub_merge.zoo.queries import Match
    from hub_merge.zoo.statistics import Statistics

__all__ = [
    "merge_command",
    "print_built",
    "print_families",
    "print_fits",
    "print_job",
    "print_matches",
    "print_proposal",
    "print_stats",
]

MOST_REASONS = 5


def print_fits(out: Output, found: Sequence[Fit]) -> None:
    """Print what a search found that fits; in JSON also what does not, with the reason."""
    rows = [_fit_row(fit) for fit in found]
    if out.mode == "json":
        out.document(rows)
        return
    fitting = [row for row in rows if row["fits"]]
    out.table(fitting, ["id", "rank", "task", "license", "downloads", "reason"])
    if len(fitting) < len(rows):
        out.note(f"{len(rows) - len(fitting)} of {len(rows)} do not fit; --json tells why.")


def _fit_row(fit: Fit) -> dict[str, Any]:
    listing = fit.listing
    return {
        "id": listing.repo_id,
        "commit": listing.commit,
        "base_model": listing.base_model and read_base(listing.base_model).label,
        "rank": fit.rank,
        "task": listing.task_type,
        "license": listing.license,
        "downloads": listing.downloads,
        "fits": fit.fits,
        "reason": fit.reason,
    }


def print_built(out: Output, built: Built, folder: Path) -> None:
    """Print what a build did."""
    values = asdict(built)
    left_out = values.pop("left_out")
    if out.mode == "json" and left_out:
        values["left_out"] = left_out
    done = built.indexed or built.unchanged or not built.listed
    out.fields(values, title=f"✓ Indexed in {folder}" if done else "✗ Nothing could be indexed")
    for reason in left_out:
        out.warning(reason)
    if built.missed:
        out.hint("the Hub did not deliver all: hub-merge zoo update asks for the rest again")
    elif built.unusable > len(left_out):
        out.hint("hub-merge zoo stats tells why adapters could not be used")


def print_stats(out: Output, stats: Statistics) -> None:
    """Print the figures of an index."""
    values = stats.to_dict()
    if out.mode == "json":
        out.document(values)
        return
    shown = {name: value for name, value in values.items() if isinstance(value, int)}
    per_adapter = stats.bytes // stats.adapters if stats.adapters else None
    out.fields({**shown, "bytes_an_adapter": per_adapter}, formats={"bytes": human_size})
    if out.human:
        bases = [{"base_model": base, "adapters": count} for base, count in stats.bases.items()]
        out.table(bases, ["base_model", "adapters"], title="By base model")
        reasons = [{"adapters": count, "reason": reason} for reason, count in stats.reasons.items()]
        if reasons:
            out.table(reasons[:MOST_REASONS], ["adapters", "reason"], title="Not usable")


def print_matches(
    out: Output, found: Sequence[Match], kind: str, asked: str, *, without_exact: str | None = None
) -> None:
    """Print the answer to a question about the adapter that is named ``asked``.

    ``without_exact`` says why no exact comparison was made at all.
    """
    rows = [{"reference": match.entry.reference, **match.to_dict()} for match in found]
    columns = ["key", "cosine", "estimate", "norm_ratio", "relation", "license", "downloads"]
    if kind == "complement":
        columns.insert(1, "value")
    out.table(rows, columns, main="reference")
    if estimated := [match.entry for match in found if match.cosine is None]:
        why = without_exact or _not_had(estimated)
        out.note(f"Estimates are right give or take 0.016; cosines near 0 need the exact comparison, which {why}.")
    if found and (kind != "near" or found[0].entry.repo_id is None):
        command = "score" if kind == "near" else "check"
        out.hint(f"hub-merge {command} {shlex.join([asked, found[0].entry.argument])}")


def _not_had(estimated: Sequence[Entry]) -> str:
    """Return why some of the adapters of an answer were not compared exactly although others may have been."""
    if any(entry.repo_id is None for entry in estimated):
        return "local adapters lack: the index keeps no path of them"
    return "was not possible where the Hub did not deliver the adapter"


def print_families(out: Output, found: Families) -> None:
    """Print the families of an index."""
    rows = [family.to_dict() for family in found.families]
    out.table(rows, ["name", "size", "files", "deltas", "cohesion", "base"])
    out.note(f"{len(found.places)} adapters, {sum(row['size'] for row in rows)} of them in {len(rows)} families.")


def print_proposal(
    out: Output, proposal: Proposal, checked: Compatibility | None, scores: Scores | None, merged: Path | None
) -> None:
    """Print a set to merge, what was expected of it, and what the exact check and scores say."""
    content = proposal.to_dict()
    if out.mode == "json":
        content["compatible"] = checked and checked.compatible
        content["findings"] = [found.to_dict() for found in checked.report.findings] if checked else None
        content["scores"] = scores and scores.to_dict(modules=False)
        content["output"] = merged and str(merged)
        out.document(content)
        return
    columns = ["skill", "reference", "license", "downloads", "norm"]
    out.table(content["adapters"], columns, main="reference")
    if out.human:
        pairs = [dict(pair) for pair in content["pairs"]]
        for pair, score in zip(pairs, scores.pairs if scores else (), strict=False):
            pair["cosine"] = score.global_cosine
        out.table(pairs, ["first", "second", "cosine", "estimate", "norm_ratio"], title="Between them")
    out.line(f"Expected interference: {proposal.interference:.3g}")
    if checked is not None and checked.report.findings:
        out.note(checked.report.describe())
    if merged is not None:
        out.note(f"Merged into {merged}")
    elif checked is None or checked.compatible:
        if proposal.has_local:
            out.note("Local adapters, of which the index keeps no path, are checked when you merge them.")
        out.hint(merge_command(proposal))


def merge_command(proposal: Proposal, output: str = "merged") -> str:
    """Return what merges the set."""
    return f"hub-merge merge {shlex.join(entry.argument for entry in proposal.entries)} -o {shlex.quote(output)}"


def print_job(out: Output, text: str, submitted: Submitted | None) -> None:
    """Print the script of a job, or where the one that was started can be watched."""
    if submitted is not None:
        out.fields({"url": submitted.url, "id": submitted.id}, title="✓ Started")
    elif out.mode == "json":
        out.document({"script": text})
    else:
        click.echo(text, nl=False)
