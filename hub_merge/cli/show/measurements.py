"""How perplexities and the results of tasks are printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hub_merge.cli.output import Output

if TYPE_CHECKING:
    from hub_merge.evaluate import Evaluation

__all__ = ["print_perplexities", "print_tasks"]

COLUMNS = ("composite", "domain", "perplexity", "low", "high", "text", "change", "p", "rows")


def print_perplexities(out: Output, found: Evaluation, against: str) -> None:
    """Print a row a composite and domain; JSON is printed at the end, with what else was measured."""
    from hub_merge.evaluate import figures

    if out.mode == "json":
        return
    title = f"Answer perplexity on {found.model} in {found.dtype}, with 95 % intervals; change against {against}"
    out.table(
        figures(found, against),
        COLUMNS,
        title=title,
        main="perplexity",
        formats={"change": lambda change: "-" if change is None else f"{change:+.1%}"}
        | {name: lambda value: f"{value:.3f}" for name in ("perplexity", "low", "high", "text")},
    )
    for domain, rows in found.cut.items():
        if rows:
            out.warning(f"{rows} rows of {domain} were cut to {found.most_tokens} tokens.")


def print_tasks(out: Output, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print a row a composite, task and metric."""
    if out.mode == "json":
        return
    rows = [{"composite": name, **entry} for name, entries in found.items() for entry in entries]
    columns = ("composite", "dataset", "metric", "value", "interval", "rows")
    out.table(rows, columns, title="Tasks of lm-eval, with 95 % intervals", main="value")
