"""How merge methods are printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hub_merge.cli.output import Output

if TYPE_CHECKING:
    from hub_merge.methods import Method

__all__ = ["print_method", "print_methods"]


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
