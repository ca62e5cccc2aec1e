"""Coordinate spaces of one module: small matrices that stand for its deltas without loss.

With orthonormal bases, ``U`` of the columns of all B and ``V`` of the rows of all A, each delta is ``U M_i V`` with a
small ``M_i``. Merging the ``M_i`` instead of the deltas loses nothing for rules that are linear or see singular values
only. Rules that look at single entries depend on the bases, so these are chosen by the deltas and not by how a trainer
happened to factor them. ``merge_elementwise`` runs such a rule in any of four spaces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.elementwise import Rule, Seed, Values, apply_rule, seeds_of
from hub_merge.gram import NULL, Float64, Stack, best_rank_k, inner_products, orthonormal, result_dtype, stack
from hub_merge.lowrank import closest_update, truncated

__all__ = ["Basis", "CoreSpace", "Space", "core_space", "merge_elementwise", "space_cautions"]

Basis: TypeAlias = Literal["deltas", "factors"]
Space: TypeAlias = Literal["core", "knots", "delta", "factors"]
Seeds: TypeAlias = Callable[[], Sequence[Seed]]

BLOCK = 2**20
"""Values of all adapters together that are held at a time."""

NOISE = 1e-13
"""An entry below ``NOISE`` times the summed lengths of an adapter's pieces is zero: its sign would be a coin toss."""


@dataclass(frozen=True, slots=True, eq=False)
class CoreSpace:
    """Deltas of one module in joint bases: ``delta_i = (B @ left) @ M[i] @ (right @ A)`` of the stack, to rounding.

    Attributes:
        stacked: The adapters' rank-one pieces.
        left: Coefficients of the left basis, ``(R, p)``: ``stacked.left(left)`` has orthonormal columns.
        right: Coefficients of the right basis, ``(q, R)``: ``stacked.right(right)`` has orthonormal rows.
        M: The deltas in these bases, without weights, ``(T, p, q)``; p and q are at most R.
    """

    stacked: Stack
    left: Float64
    right: Float64
    M: Float64

    def lift(self, M: Float64, rank: int | None = None) -> LoraFactors:
        """Return the factors of ``U M V``: exact, or the closest of at most ``rank``; balanced.

        Args:
            M: A matrix in these bases, ``(p, q)``.
            rank: Largest rank; the numerical rank of ``M`` by default.
        """
        core = truncated(M, rank)
        return LoraFactors(self.stacked.right(core.A @ self.right), self.stacked.left(self.left @ core.B))


@dataclass(frozen=True, slots=True, eq=False)
class _Joint:
    """Deltas in some orthonormal bases of all columns of B and rows of A: ``delta_i = (B Wb) left_i right_i (Waᵀ A)``.

    Attributes:
        stacked: The adapters' rank-one pieces.
        Wb: Coefficients of the left basis, ``(R, m)``.
        Wa: Coefficients of the right basis, ``(R, n)``.
        lefts: Columns of B in the left basis with the pieces' lengths, one ``(m, r_i)`` an adapter.
        rights: Rows of A in the right basis, one ``(r_i, n)`` an adapter.
    """

    stacked: Stack
    Wb: Float64
    Wa: Float64
    lefts: tuple[Float64, ...]
    rights: tuple[Float64, ...]


def _joint(parts: Sequence[LoraFactors]) -> _Joint:
    stacked = stack(parts)
    Wb, Rb = orthonormal(stacked.gram_b)
    Wa, Ra = orthonormal(stacked.gram_a)
    own = [stacked.owner == i for i in range(len(parts))]
    lefts = tuple(Rb[:, mine] * stacked.lengths[mine] for mine in own)
    return _Joint(stacked, Wb, Wa, lefts, tuple(Ra[:, mine].T for mine in own))


def core_space(parts: Sequence[LoraFactors], basis: Basis = "deltas") -> CoreSpace:
    """Return the deltas of one module in the joint bases of Core Space (arXiv 2509.17786).

    The bases are the left singular vectors of the adapters' B side by side and the right singular vectors of their A on
    top of each other. They are unique up to sign where singular values differ, so the order of adapters does not
    matter; a sign rule on the full vectors fixes the rest. A delta that cancels to rounding is zero.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        basis: ``deltas`` writes each adapter as ``B = U sqrt(S)``, ``A = sqrt(S) Vᵀ`` of its own SVD first, so that the
            bases depend on the deltas only; ``factors`` takes B and A as they are, with the square root of the
            scaling on both, as the paper does.
    """
    joint = _joint(parts)
    if basis == "deltas":
        triplets = [_svd(left, right) for left, right in zip(joint.lefts, joint.rights, strict=True)]
        columns = np.concatenate([u * np.sqrt(s) for u, s, _ in triplets], axis=1)
        rows = np.concatenate([v * np.sqrt(s) for _, s, v in triplets], axis=1)
    else:
        columns, rows = _as_given(parts, joint)
    left, right = _oriented_left(joint, _left_singular(columns)), _oriented_right(joint, _left_singular(rows))
    M = np.stack([(left.T @ a) @ (b @ right) for a, b in zip(joint.lefts, joint.rights, strict=True)])
    M[np.diag(inner_products(joint.stacked, len(parts))) == 0] = 0.0
    return CoreSpace(joint.stacked, joint.Wb @ left, (joint.Wa @ right).T, M)


def _as_given(parts: Sequence[LoraFactors], joint: _Joint) -> tuple[Float64, Float64]:
    """Return the columns of all B and rows of all A in the joint bases, each with the square root of its scaling."""
    columns, rows = [], []
    for part, left, right in zip(parts, joint.lefts, joint.rights, strict=True):
        root = np.sqrt(abs(part.scaling))
        norms_a = np.linalg.norm(part.A.astype(np.float64), axis=1)
        rows.append(right.T * root * norms_a)
        reach = part.scaling * norms_a
        columns.append(left * np.divide(root, reach, out=np.zeros_like(reach), where=reach != 0))
    return np.concatenate(columns, axis=1), np.concatenate(rows, axis=1)


def _svd(left: Float64, right: Float64) -> tuple[Float64, Float64, Float64]:
    """Return ``(u, s, v)`` with ``left @ right == (u * s) @ v.T``, without the part that is rounding."""
    Ql, Tl = np.linalg.qr(left)
    Qr, Tr = np.linalg.qr(right.T)
    u, s, vt = np.linalg.svd(Tl @ Tr.T, full_matrices=False)
    keep = s > NULL * s[:1].sum()
    return Ql @ u[:, keep], s[keep], Qr @ vt[keep].T


def _left_singular(columns: Float64) -> Float64:
    """Return the left singular vectors of ``columns`` that are not rounding, in order."""
    u, s, _ = np.linalg.svd(columns, full_matrices=False)
    kept: Float64 = u[:, s > NULL * s[:1].sum()]
    return kept


def _oriented_left(joint: _Joint, basis: Float64) -> Float64:
    """Return ``basis`` with each sign such that the full vector, ``B @ Wb @ basis``, leans to a fixed direction."""
    pieces = joint.stacked.pieces
    return _leaning((_probe(len(pieces.B)) @ pieces.B) / pieces.norms_b, joint.Wb, basis)


def _oriented_right(joint: _Joint, basis: Float64) -> Float64:
    """Return ``basis`` with each sign such that the full vector, ``A.T @ Wa @ basis``, leans to a fixed direction."""
    pieces = joint.stacked.pieces
    return _leaning((pieces.A @ _probe(pieces.A.shape[1])) / pieces.norms_a, joint.Wa, basis)


def _probe(length: int) -> Float64:
    """Return the fixed direction."""
    return np.cos(np.arange(length, dtype=np.float64))


def _leaning(along: Float64, W: Float64, basis: Float64) -> Float64:
    return basis * np.where(along @ W @ basis < 0, -1.0, 1.0)


# --- merging entry by entry -------------------------------------------------------------------------------------------


def merge_elementwise(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    rule: Rule,
    *,
    space: Space = "core",
    rank: int | None = None,
    rng: np.random.Generator,
    basis: Basis = "deltas",
    block_rows: int | None = None,
) -> LoraFactors:
    """Return the merge of one module by a rule that looks at single entries, in one of four spaces.

    - ``core``: on the small matrices of ``core_space``. Lossless there and back; costs next to nothing.
    - ``knots``: on ``P_i`` of the SVD ``[delta_1 | … | delta_T] = U [P_1 | … | P_T]``, U kept (KnOTS, arXiv
      2410.19735). Lossless there and back; the input side keeps its own coordinates.
    - ``delta``: on the deltas themselves, as papers on full models define these rules. The result is not low-rank: the
      closest update of the rank is kept and the rest is lost. Blocks of rows are formed and dropped again, several
      times over, so it is slow. Up to 2**18 entries the fit is optimal; beyond, a randomised range finder with power
      iterations comes close to that.
    - ``factors``: on all A and on all B, as PEFT does, each with the square root of weight and scaling. The result has
      cross terms ``B_i A_j`` that belong to no adapter, and it depends on how the deltas are factored. Smaller ranks
      are filled up with zeros.

    Parts of rank 0 or weight 0 do not take part. A seed comes from each adapter's own values, so random rules do not
    depend on the order of adapters.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part.
        rule: See ``hub_merge.elementwise``.
        space: Where the rule is applied.
        rank: Largest rank of the result, truncated optimally; the sum of the ranks by default.
        rng: Source of random choices.
        basis: Bases of the core space, see ``core_space``.
        block_rows: Rows held at a time in ``delta`` and ``knots``; as many as make 2**20 values by default.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    present = [(part, weight) for part, weight in zip(parts, weights, strict=True) if part.rank and weight]
    if not present:
        return LoraFactors.empty(parts[0].shape)
    kept, numbers = [part for part, _ in present], [weight for _, weight in present]
    entropy = int(rng.integers(2**63))
    limit = min(rank or sum(part.rank for part in kept), sum(part.rank for part in kept))

    def seeds() -> Sequence[Seed]:
        return seeds_of(kept, numbers, entropy)

    if space == "core":
        merged = _in_core(kept, numbers, rule, limit, seeds, basis)
    elif space == "knots":
        merged = _in_knots(kept, numbers, rule, limit, seeds, block_rows)
    elif space == "delta":
        merged = _in_delta(kept, numbers, rule, limit, seeds, block_rows, rng)
    else:
        merged = _in_factors(kept, numbers, rule, limit, seeds)
    return merged.astype(result_dtype(parts))


def space_cautions(weights: Sequence[float], options: Mapping[str, Any]) -> list[str]:
    """Tell what the option ``space`` costs, for a method's cautions."""
    if options["space"] == "factors" and np.count_nonzero(weights) > 1:
        return ["space factors: the result has cross terms B_i A_j (i ≠ j) that belong to no adapter"]
    if options["space"] == "delta":
        return ["space delta: the merged delta is of full rank; only the closest update of the result's rank is kept"]
    return []


def _in_core(
    parts: Sequence[LoraFactors], weights: Sequence[float], rule: Rule, rank: int, seeds: Seeds, basis: Basis
) -> LoraFactors:
    core = core_space(parts, basis)
    if not core.M.size:
        return LoraFactors.empty(parts[0].shape)
    return core.lift(apply_rule(rule, _settled(core.M, _floors(core.stacked, len(parts))), weights, seeds), rank)


def _in_knots(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    rule: Rule,
    rank: int,
    seeds: Seeds,
    block_rows: int | None,
) -> LoraFactors:
    joint = _joint(parts)
    triplets = [_svd(left, right) for left, right in zip(joint.lefts, joint.rights, strict=True)]
    columns = np.concatenate([u * s for u, s, _ in triplets], axis=1)
    left = _oriented_left(joint, _left_singular(columns))
    if not left.size:
        return LoraFactors.empty(parts[0].shape)
    A = joint.stacked.pieces.A / joint.stacked.pieces.norms_a[:, None]
    rights = [A[joint.stacked.owner == i] for i in range(len(parts))]
    floors = _floors(joint.stacked, len(parts))
    values = _products([left.T @ own for own in joint.lefts], rights, seeds, block_rows, floors)
    merge = rule(values, np.asarray(weights))
    P = np.concatenate([merge(start, block) for start, block in values.blocks()])
    return best_rank_k(stack([LoraFactors(P, joint.stacked.left(joint.Wb @ left))]), rank)


def _in_delta(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    rule: Rule,
    rank: int,
    seeds: Seeds,
    block_rows: int | None,
    rng: np.random.Generator,
) -> LoraFactors:
    lefts = [part.scaling * part.B.astype(np.float64) for part in parts]
    rights = [part.A.astype(np.float64, copy=False) for part in parts]
    values = _products(lefts, rights, seeds, block_rows)
    merge = rule(values, np.asarray(weights))
    shape = values.shape[1:]
    return closest_update(lambda: (merge(start, block) for start, block in values.blocks()), shape, rank, rng)


def _in_factors(
    parts: Sequence[LoraFactors], weights: Sequence[float], rule: Rule, rank: int, seeds: Seeds
) -> LoraFactors:
    largest = max(part.rank for part in parts)
    reach = np.array([weight * part.scaling for part, weight in zip(parts, weights, strict=True)])
    roots = np.sqrt(np.abs(reach))
    A = np.stack([np.pad(part.A.astype(np.float64), ((0, largest - part.rank), (0, 0))) for part in parts])
    B = np.stack([np.pad(part.B.astype(np.float64), ((0, 0), (0, largest - part.rank))) for part in parts])
    merged = LoraFactors(
        apply_rule(rule, A, np.copysign(roots, reach), lambda: [(*seed, 0) for seed in seeds()]),
        apply_rule(rule, B, roots, lambda: [(*seed, 1) for seed in seeds()]),
    )
    return merged if rank >= largest else best_rank_k(stack([merged]), rank)


def _products(
    lefts: Sequence[Float64],
    rights: Sequence[Float64],
    seeds: Seeds,
    block_rows: int | None,
    floors: Float64 | None = None,
) -> Values:
    """Return the values ``lefts[i] @ rights[i]``, formed in blocks of rows."""
    shape = len(lefts), len(lefts[0]), rights[0].shape[1]

    def read(start: int, stop: int) -> Float64:
        block: Float64 = np.stack([left[start:stop] @ right for left, right in zip(lefts, rights, strict=True)])
        return block if floors is None else _settled(block, floors)

    return Values(shape, read, seeds, block_rows or max(1, BLOCK // (shape[0] * shape[2])))


def _floors(stacked: Stack, count: int) -> Float64:
    """Return, for each adapter, the magnitude below which an entry is rounding, ``(T,)``."""
    return np.bincount(stacked.owner, NOISE * np.abs(stacked.lengths), count).astype(np.float64)


def _settled(values: Float64, floors: Float64) -> Float64:
    """Return ``values`` with zero in place of rounding, so that no rule counts or elects its sign."""
    return np.where(np.abs(values) <= floors[:, None, None], 0.0, values)
