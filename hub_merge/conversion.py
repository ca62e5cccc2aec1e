"""Adapters that are no plain product against the published base, made plain: PiSSA and its like, and DoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hub_merge.adapter import Adapter, Array, LoraFactors
from hub_merge.base_weights import open_base
from hub_merge.bases import read_base
from hub_merge.errors import AdapterFormatError, MergeError, UnsupportedAdapter
from hub_merge.findings import Finding
from hub_merge.formats.tensors import widest
from hub_merge.gram import result_dtype
from hub_merge.materialize import materialize
from hub_merge.methods.sum import concatenated
from hub_merge.recipe import STATED, Conversion
from hub_merge.sources import digests, open_adapter, pinned_reference

if TYPE_CHECKING:
    from hub_merge.hub import Hub

__all__ = ["conversion_of", "converted", "materialized", "without_initial"]

Place = Callable[[str], str | Path]
"""Where a reference of a recipe is: the reference itself, or the folder of a local one."""


def converted(
    adapter: Adapter,
    conversion: Conversion | None,
    *,
    hub: Hub,
    place: Place,
    progress: Callable[[str, int, int], None],
) -> Adapter:
    """Return ``adapter`` as ``conversion`` says; one that is no DoRA adapter needs no base weights.

    Args:
        adapter: What to convert.
        conversion: How; ``None`` leaves it as it is.
        hub: Client to read with.
        place: Finds what the conversion refers to.
        progress: Told of each module that is materialised.

    Raises:
        HubMergeError: The initial adapter or the base cannot be had, or does not belong to the adapter.
    """
    if conversion is None or (conversion.initial is None and adapter.load_magnitude is None):
        return adapter
    if conversion.initial is not None:
        return without_initial(adapter, open_adapter(place(conversion.initial), hub=hub))
    done = count(1)
    return materialized(
        adapter,
        place(conversion.base_weights or STATED),
        rank=conversion.rank,
        hub=hub,
        progress=lambda module: progress("materialize", next(done), len(adapter.modules)),
    )


def conversion_of(data: Mapping[str, Any] | None) -> Conversion | None:
    """Return the conversion that a converted adapter's data tell of, with its references pinned."""
    if data is None:
        return None
    if data["from"] == "dora":
        return Conversion(base_weights=data["base_weights"], rank=data["rank"])
    return Conversion(initial=data["initial"])


# --- DoRA -------------------------------------------------------------------------------------------------------------


def materialized(
    adapter: Adapter,
    base_weights: str | Path = STATED,
    *,
    rank: int | None = None,
    hub: Hub,
    progress: Callable[[str], None] = lambda module: None,
) -> Adapter:
    """Return a DoRA adapter as plain factors; only the weights that it adapts are read, one module at a time.

    Args:
        adapter: A DoRA adapter.
        base_weights: Folder or Hub reference of the base; ``base`` takes the one the adapter states.
        rank: Rank of the factors; four times the adapter's by default.
        hub: Client to read with.
        progress: Called with each module's name when it is done.

    Raises:
        MergeError: The adapter states no base of the Hub, and none was given.
        HubMergeError: The base cannot be read, or is another one.
    """
    if base_weights == STATED:
        base_weights = _stated_base(adapter)
    base = open_base(base_weights, hub=hub)

    def weight(module: str) -> Array:
        return base.weight(adapter.modules[module], fan_in_fan_out=adapter.fan_in_fan_out)

    plain = materialize(adapter, weight, rank, progress)
    told = {**(plain.converted or {}), "base_weights": base.label}
    worst = max(told["errors"], key=told["errors"].__getitem__)
    seen = (
        f"its DoRA deltas were formed with {base.label} and factorised again at rank {told['rank']}, "
        f"with a relative error of {told['error']:.3g} (largest {told['errors'][worst]:.3g} in {worst})"
    )
    return replace(plain, converted=told, findings=(*plain.findings, _told(adapter, "materialized", seen)))


def _told(adapter: Adapter, code: str, seen: str) -> Finding:
    return Finding("caution", code, adapter.name, "", seen, "", "")


def _stated_base(adapter: Adapter) -> str:
    base = read_base(adapter.base_model)
    if base.model_id is None:
        raise MergeError(
            f"{adapter.name} states no base model of the Hub (it is {base.label}).",
            remedy="Say where its weights are: --base-weights FOLDER_OR_REPO",
        )
    revision = adapter.base_revision or base.revision
    return f"{base.model_id}@{revision}" if revision else base.model_id


# --- PiSSA, OLoRA, CorDA, LoRA-GA -------------------------------------------------------------------------------------


def without_initial(adapter: Adapter, initial: Adapter) -> Adapter:
    """Return ``adapter`` relative to the published base: ``delta = s B A - s0 B0 A0``, of both ranks together.

    PiSSA (arXiv 2404.02948), OLoRA, CorDA and LoRA-GA take the initial product out of the base before training, so the
    base that the stored factors fit is ``W - s0 B0 A0``. The factors are put side by side, exactly.

    Raises:
        UnsupportedAdapter: It is a LoftQ adapter, whose base was quantised as well.
        AdapterFormatError: The initial adapter has other modules or shapes.
    """
    if any(found.code == "quantised_base" for found in adapter.findings):
        raise UnsupportedAdapter(
            f"{adapter.name} was trained from LoftQ: its base is quantised, and the initial factors only come near to "
            "what quantisation took away, so their difference is no delta on the published base.",
            remedy="Use it with its own quantised base, or leave it out.",
        )
    for module in sorted(adapter.modules.keys() | initial.modules.keys()):
        shapes = [spec and spec.shape for spec in (adapter.modules.get(module), initial.modules.get(module))]
        if shapes[0] != shapes[1]:
            raise AdapterFormatError(
                f"{adapter.name} did not start from {initial.name}: {module} is {shapes[0]} and {shapes[1]} there.",
                remedy="Give the adapter as it was saved before training.",
            )

    def load(module: str) -> LoraFactors:
        return _difference(adapter.factors(module), initial.factors(module))

    reference = pinned_reference(initial.origin, initial.name)
    specs = {}
    for module, spec in adapter.modules.items():
        first = initial.modules[module]
        same = spec.scaling == first.scaling
        dtype = spec.dtype if spec.dtype == first.dtype else widest((spec.dtype, first.dtype))
        specs[module] = replace(
            spec, rank=spec.rank + first.rank, scaling=spec.scaling if same else 1.0, dtype=dtype if same else "float32"
        )
    return replace(
        adapter,
        modules=specs,
        load=load,
        findings=(
            *(found for found in adapter.findings if found.code != "changed_base"),
            _told(adapter, "converted", f"the product that it started from, {reference}, was taken away"),
        ),
        converted={
            "from": "changed_base",
            "initial": reference,
            "files": [asdict(digest) for digest in digests(initial)],
        },
    )


def _difference(trained: LoraFactors, initial: LoraFactors) -> LoraFactors:
    """Return the difference of two deltas; with one scaling nothing is rounded."""
    if trained.scaling != initial.scaling:
        return concatenated([trained, initial], [1.0, -1.0])
    wide = None if trained.A.dtype == initial.A.dtype else result_dtype([trained, initial])
    A = np.concatenate([trained.A, initial.A], dtype=wide)
    return LoraFactors(A, np.concatenate([trained.B, -initial.B], axis=1, dtype=wide), trained.scaling)
