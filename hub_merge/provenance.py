"""Where a composite comes from: its record."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hub_merge.adapter import Adapter, Origin
from hub_merge.bases import read_base
from hub_merge.composite import Composite
from hub_merge.conversion import conversion_of
from hub_merge.errors import AdapterNotFound
from hub_merge.formats.output import FileFormat
from hub_merge.formats.peft import contained
from hub_merge.formats.strict_json import read_bounded
from hub_merge.layout import RECORD_FILE
from hub_merge.mixtures import digest_of
from hub_merge.proof import Proof
from hub_merge.recipe import MergeRecord, Parent, Recipe, Source
from hub_merge.scores import Scores
from hub_merge.sources import digests, file_digest, pinned_reference
from hub_merge.weights import Weight

__all__ = ["MAX_RECORD", "build_record", "parent_of", "read_record"]

MAX_RECORD = 10_000_000
"""Bytes of the longest record that is read; one of 64 parents has two million."""


def build_record(
    composite: Composite, folder: Path, scores: Scores, proof: Proof, base: Origin | None, target: FileFormat
) -> MergeRecord:
    """Return the record of a composite whose files lie in ``folder``; nothing in it tells of this machine."""
    base = base or Origin()
    bases = {standing.adapter: standing.stands_for for standing in composite.compatibility.bases}
    parents = tuple(
        parent_of(parent, weight, bases.get(parent.name))
        for parent, weight in zip(composite.parents, composite.weights, strict=True)
    )
    beside = composite.beside
    recipe = Recipe(
        merge_method=composite.method.name,
        models=tuple(Source(parent.model, parent.weight, conversion_of(parent.converted)) for parent in parents),
        base_model=composite.base_model,
        rank=composite.rank_asked,
        energy=composite.energy,
        profile=composite.profile,
        options=composite.options,
        dtype=composite.dtype,
        seed=composite.seed,
        allow=composite.allow,
        extras=beside.policy,
        mixtures=None if composite.mixtures is None else digest_of(composite.mixtures),
    )
    return MergeRecord(
        recipe=recipe,
        parents=parents,
        base_model=composite.base_model,
        base_license=base.license,
        base_license_details=base.license_details,
        base_commit=base.commit,
        output={
            "rank": composite.rank,
            **_ranks(composite),
            "dtype": composite.dtype,
            "modules": len(composite.modules),
            "task_type": composite.task_type,
            **({"extras": beside.to_dict()} if beside.specs or beside.dropped else {}),
            "format": target.name,
            "components": sorted({spec.component for spec in composite.modules.values() if spec.component}),
            "files": [asdict(file_digest(folder / name)) for name in target.files],
        },
        findings=tuple(finding.to_dict() for finding in composite.compatibility.report.findings),
        scores=scores.to_dict(modules=False),
        proof=proof.to_dict(),
        versions={name: version(name) for name in ("hub-merge", "numpy", "ml_dtypes")},
        tuning=composite.tuning,
    )


def _ranks(composite: Composite) -> dict[str, Any]:
    """Return how many modules have which rank, where they have a rank of their own."""
    if composite.profile == "portable":
        return {}
    counts = Counter(spec.rank for spec in composite.modules.values())
    return {"ranks": {str(rank): count for rank, count in sorted(counts.items())}}


def parent_of(adapter: Adapter, weight: Weight, base: str | None = None) -> Parent:
    """Return what a record keeps of an adapter that goes into something with ``weight``; ``base`` is its base."""
    origin = adapter.origin
    scalings = [spec.scaling for spec in adapter.modules.values()] or [0.0]
    return Parent(
        name=adapter.name,
        model=pinned_reference(adapter.origin, adapter.name),
        repo_id=origin.repo_id,
        commit=origin.commit,
        subfolder=origin.subfolder,
        files=tuple(asdict(digest) for digest in digests(adapter)),
        base_model=read_base(adapter.base_model).model_id,
        license=origin.license,
        license_details=origin.license_details,
        gated=origin.gated,
        private=origin.private,
        weight=weight,
        rank=adapter.rank,
        scalings=(min(scalings), max(scalings)),
        modules=len(adapter.modules),
        task_type=adapter.task_type,
        converted=adapter.converted,
        base_stands_for=base,
    )


def read_record(folder: Path) -> MergeRecord:
    """Return the record of the composite in ``folder``.

    Raises:
        AdapterNotFound: It has none.
        RecipeError: It is damaged, or of a newer version.
        AdapterFormatError: It is too long, or a link that leads out of the folder.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        raise AdapterNotFound(
            f"{folder.name} has no {RECORD_FILE}, so it is no composite of hub-merge.",
            remedy="Name what merge, compress or convert wrote.",
        )
    return MergeRecord.from_json(read_bounded(contained(folder, RECORD_FILE), most=MAX_RECORD))
