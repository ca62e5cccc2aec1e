"""How scores and advice are printed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hub_merge.cli.output import Output

if TYPE_CHECKING:
    from hub_merge.advise import Advice
    from hub_merge.scores import PairScore, Scores

__all__ = ["print_advice", "print_scores"]

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
        _print_strangers(out, scores)
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


def _print_strangers(out: Output, scores: Scores) -> None:
    for pair in scores.pairs:
        if not pair.shared_modules:
            out.line(f"! {pair.first} and {pair.second} change no module in common: there is nothing to compare.")


def _print_shared_starts(out: Output, scores: Scores) -> None:
    for pair in scores.pairs:
        if pair.one_start:
            out.line(
                f"! {pair.first} and {pair.second} started from one lora_A (rows {pair.a_rows:.2f} alike, chance "
                f"{pair.a_rows_chance:.2f}): that alone raises the cosine."
            )


def print_advice(
    out: Output,
    advice: Advice,
    references: Sequence[str],
    *,
    base: str | None,
    allow: Sequence[str],
    extras: str | None,
) -> None:
    """Print a recommendation, and the command that follows it."""
    command = _merge_command(advice, references, base, allow, extras)
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


def _merge_command(
    advice: Advice, references: Sequence[str], base: str | None, allow: Sequence[str], extras: str | None
) -> str:
    words = ["hub-merge", "merge", *references, "--method", advice.method]
    if set(advice.weights) != {1.0}:
        words += ["--weights", ",".join(f"{weight:g}" for weight in advice.weights)]
    if advice.rank is not None:
        words += ["--rank", str(advice.rank)]
    if base is not None:
        words += ["--base", base]
    for code in allow:
        words += ["--allow", code]
    if extras is not None:
        words += ["--extras", extras]
    return shlex.join([*words, "-o", "composite"])
