"""``mix``: units that are combinations of all adapters' units, with coefficients that measuring found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.errors import MergeError
from hub_merge.gram import result_dtype
from hub_merge.methods.registry import merge_method
from hub_merge.methods.svd import truncated_sum
from hub_merge.mixtures import Mixture

__all__ = ["mixed"]


@merge_method("mix", formula="delta = [w_1 s_1 B_1 …] @ P @ Q @ [A_1; …]", default_rank="largest")
def mixed(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    rng: np.random.Generator,
    mixture: Mixture | None = None,
) -> LoraFactors:
    """Return the composite whose units are the combinations of the adapters' units that tuning found.

    Every column of B is a combination of the adapters' columns, every row of A one of their rows, with coefficients of
    each module's own: P of shape (R, k) and Q of shape (k, R), R the sum of ranks. ``hub-merge merge --tune`` finds
    them on a model and keeps them in a file beside the recipe. Without that file they are those of ``svd``.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part.
        rank: Rank of the result; the largest rank among the parts by default. Mixtures have their own.
        rng: Not used.
        mixture: P and Q of the module.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).

    Raises:
        MergeError: The coefficients are for adapters of other ranks.
    """
    if mixture is None:
        return truncated_sum(parts, weights, rank=rank, rng=rng)
    if len(mixture.out) != sum(part.rank for part in parts):
        raise MergeError(
            f"The coefficients are for {len(mixture.out)} units; the adapters have {sum(part.rank for part in parts)}.",
            remedy="Merge the adapters that they were tuned for, in their order, or tune again.",
        )
    rows = np.concatenate([part.A for part in parts], dtype=np.float64)
    columns = [part.B.astype(np.float64) * (weight * part.scaling) for part, weight in zip(parts, weights, strict=True)]
    out, inward = (np.asarray(matrix, np.float64) for matrix in (mixture.out, mixture.inward))
    return LoraFactors(inward @ rows, np.concatenate(columns, axis=1) @ out).astype(result_dtype(parts))
