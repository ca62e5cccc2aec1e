"""How full models, and what was extracted from them, are printed."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from hub_merge.cli.output import Output
from hub_merge.cli.show.publication import hint_push
from hub_merge.cli.show.words import human_size

if TYPE_CHECKING:
    from hub_merge.extraction import Extraction
    from hub_merge.fusion import FusionRecord

__all__ = ["print_extraction", "print_fusion"]

LEAST_KEPT = 5


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
        out.fields(values, title="✓ Fused and proved", formats={"bytes": human_size})
    for caution in record.cautions:
        out.warning(caution)
    hint_push(out, folder, record.license)


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
