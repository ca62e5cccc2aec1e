"""Rules that look at single entries of several arrays: which to keep, which sign wins, how the rest is averaged.

A rule sees the adapters' values in some space, without weights, in blocks of rows. It may read all blocks first, for a
threshold over the whole module, and then merges one block at a time, so nothing has to be held whole. A rule is a
function ``(values, weights) -> merge``, where ``merge(start, block)`` takes a block ``(T, rows, columns)`` that begins
at row ``start`` and returns the merged ``(rows, columns)``. Most rules first thin out each adapter and then combine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hub_merge.adapter import LoraFactors
from hub_merge.gram import Float64

__all__ = [
    "Majority",
    "Merge",
    "NamedRule",
    "Rule",
    "Seed",
    "Values",
    "added",
    "apply_rule",
    "drop_at_random",
    "drop_outliers",
    "drop_small_at_random",
    "elected",
    "keep_all",
    "keep_largest",
    "kth_largest",
    "named_rule",
    "seeds_of",
    "select_and_erase",
    "thin_and_combine",
]

COLLECT = 2**18
"""A threshold among at most so many candidates is found with all of them in memory."""

SAME = 1e-12
"""A standard deviation below ``SAME * largest`` is rounding: the adapters agree on that entry."""

Seed: TypeAlias = tuple[int, ...]
Majority: TypeAlias = Literal["total", "frequency"]
NamedRule: TypeAlias = Literal["sum", "ties", "dare_ties"]
Merge: TypeAlias = Callable[[int, Float64], Float64]
Sparsify: TypeAlias = Callable[["Values"], Merge]
"""``sparsify(values)(start, block)`` returns a block of the same shape with fewer entries."""
Combine: TypeAlias = Callable[[Float64, Float64], Float64]
"""``combine(block, weights)`` merges a block."""
Rule: TypeAlias = Callable[["Values", Float64], Merge]


@dataclass(frozen=True, slots=True)
class Values:
    """Every adapter's values in one space, read in blocks of rows.

    Attributes:
        shape: ``(T, rows, columns)``.
        read: ``read(start, stop)`` returns these rows of all adapters, ``(T, stop - start, columns)``.
        seeds: Returns a seed for each adapter that does not depend on its position.
        block_rows: Rows in a block.
    """

    shape: tuple[int, int, int]
    read: Callable[[int, int], Float64]
    seeds: Callable[[], Sequence[Seed]]
    block_rows: int

    def blocks(self) -> Iterator[tuple[int, Float64]]:
        """Yield each block with the index of its first row."""
        for start in range(0, self.shape[1], self.block_rows):
            yield start, self.read(start, min(start + self.block_rows, self.shape[1]))


def apply_rule(rule: Rule, values: Float64, weights: Sequence[float], seeds: Callable[[], Sequence[Seed]]) -> Float64:
    """Return what ``rule`` makes of values that are in memory.

    Args:
        rule: The rule.
        values: ``(T, rows, columns)``, without weights. Not modified.
        weights: One number an adapter.
        seeds: See ``Values.seeds``; called by random rules only.
    """
    count, rows, columns = values.shape
    whole = Values((count, rows, columns), lambda start, stop: values[:, start:stop], seeds, max(1, rows))
    return rule(whole, np.asarray(weights, np.float64))(0, values)


def seeds_of(parts: Sequence[LoraFactors], weights: Sequence[float], entropy: int) -> list[Seed]:
    """Return a seed for each adapter from its own factors, so that the order of adapters does not matter.

    Adapters of equal factors get different seeds, told apart by scaling and weight; which of several that are equal in
    these too gets which is of no consequence. The scaling is no part of the seed itself, so rescaled adapters keep
    their masks.
    """
    prints = [_fingerprint(part) for part in parts]
    seeds: list[Seed] = [()] * len(parts)
    seen: Counter[int] = Counter()
    for i in sorted(range(len(parts)), key=lambda i: (prints[i], parts[i].scaling, weights[i])):
        seeds[i] = (entropy, prints[i], seen[prints[i]])
        seen[prints[i]] += 1
    return seeds


def _fingerprint(part: LoraFactors) -> int:
    digest = blake2b(digest_size=8)
    for factor in (part.A, part.B):
        digest.update(np.ascontiguousarray(factor, np.float64).data)
    return int.from_bytes(digest.digest(), "little")


# --- thresholds -------------------------------------------------------------------------------------------------------


def kth_largest(values: Values, measure: Callable[[Float64], Float64], k: int) -> Float64:
    """Return the k-th largest of each layer of ``measure(block)`` over all blocks, exactly and in bounded memory.

    Non-negative floats are ordered like their bits. While there are too many candidates, those that share their leading
    bits with the one that is looked for are counted by their next sixteen bits, in one more pass over the blocks.

    Args:
        values: The blocks.
        measure: Maps a block to non-negative numbers, ``(n, rows, columns)``.
        k: Which one, [1, rows x columns].

    Returns:
        ``(n,)``.
    """
    count = len(measure(values.read(0, 1)))
    wanted, prefixes = np.full(count, k), np.zeros(count, np.uint64)
    candidates, shift = values.shape[1] * values.shape[2], 64
    while candidates > COLLECT and shift:
        counts = _count_bits(values, measure, prefixes, shift)
        shift -= 16
        above = counts[:, ::-1].cumsum(axis=1)
        bins = (above < wanted[:, None]).sum(axis=1)
        inside = np.take_along_axis(counts[:, ::-1], bins[:, None], axis=1)[:, 0]
        wanted -= np.take_along_axis(above, bins[:, None], axis=1)[:, 0] - inside
        prefixes = prefixes << np.uint64(16) | (2**16 - 1 - bins).astype(np.uint64)
        candidates = int(inside.max())
    if not shift:
        return prefixes.view(np.float64)
    found: list[list[NDArray[np.uint64]]] = [[] for _ in range(count)]
    for _, block in values.blocks():
        for layer, kept in enumerate(_candidates(measure(block), prefixes, shift)):
            found[layer].append(kept)
    together = [np.concatenate(pieces).view(np.float64) for pieces in found]
    return np.array([np.partition(x, len(x) - n)[len(x) - n] for x, n in zip(together, wanted, strict=True)])


def _count_bits(
    values: Values, measure: Callable[[Float64], Float64], prefixes: NDArray[np.uint64], shift: int
) -> NDArray[np.int64]:
    """Count, for each layer, the candidates by the sixteen bits below ``shift``, ``(n, 2**16)``."""
    counts = np.zeros((len(prefixes), 2**16), np.int64)
    for _, block in values.blocks():
        for layer, bits in enumerate(_candidates(measure(block), prefixes, shift)):
            next_bits = bits >> np.uint64(shift - 16) & np.uint64(0xFFFF)
            counts[layer] += np.bincount(next_bits.astype(np.int64), minlength=2**16)
    return counts


def _candidates(measured: Float64, prefixes: NDArray[np.uint64], shift: int) -> Iterator[NDArray[np.uint64]]:
    """Yield, for each layer, the bits of the numbers whose bits above ``shift`` are its prefix."""
    for layer, prefix in zip(measured, prefixes, strict=True):
        bits = np.ascontiguousarray(layer).reshape(-1).view(np.uint64)
        yield bits if shift == 64 else bits[bits >> np.uint64(shift) == prefix]


# --- which entries to keep --------------------------------------------------------------------------------------------


def keep_all(values: Values) -> Merge:
    """Keep every entry."""
    return lambda start, block: block


def keep_largest(density: float) -> Sparsify:
    """Keep each adapter's ``int(density * size)`` entries of largest magnitude, at least one, over the whole module.

    Entries equal to the threshold stay.
    """
    return drop_outliers(density, 0.0)


def drop_outliers(density: float, gamma: float) -> Sparsify:
    """Drop each adapter's ``int(gamma * size)`` largest entries, keep the ``int(density * size)`` after them.

    The number kept comes first: with ``density + gamma > 1`` fewer of the largest are dropped.
    """

    def prepare(values: Values) -> Merge:
        size = values.shape[1] * values.shape[2]
        kept = max(1, int(density * size))
        if kept >= size:
            return keep_all(values)
        top = min(int(gamma * size), size - kept)
        low = kth_largest(values, np.abs, top + kept)[:, None, None]
        high = kth_largest(values, np.abs, top)[:, None, None] if top else np.inf

        def thin(start: int, block: Float64) -> Float64:
            magnitude = np.abs(block)
            return np.where((magnitude >= low) & (magnitude < high), block, 0.0)

        return thin

    return prepare


def drop_at_random(density: float) -> Sparsify:
    """Keep each entry with probability ``density`` and divide it by that (DARE, arXiv 2311.03099)."""

    def prepare(values: Values) -> Merge:
        if density >= 1:
            return keep_all(values)
        seeds = values.seeds()
        return lambda start, block: np.where(_uniform(seeds, start, block.shape) < density, block / density, 0.0)

    return prepare


def drop_small_at_random(density: float, epsilon: float) -> Sparsify:
    """Keep entries with a probability that grows with their rank in the row, and divide by it (DELLA, 2406.11617).

    In each row the probabilities go in even steps from ``density - epsilon`` for the smallest magnitude to ``density +
    epsilon`` for the largest. Where that would leave [0, 1] epsilon is narrowed, so the mean is always ``density``.
    """

    def prepare(values: Values) -> Merge:
        if density >= 1:
            return keep_all(values)
        seeds = values.seeds()
        spread = min(epsilon, density, 1 - density) if values.shape[2] > 1 else 0.0
        steps = np.linspace(density - spread, density + spread, values.shape[2])

        def thin(start: int, block: Float64) -> Float64:
            chance = np.empty_like(block)
            np.put_along_axis(chance, np.abs(block).argsort(axis=2), steps[None, None, :], axis=2)
            kept = _uniform(seeds, start, block.shape) < chance
            return np.divide(block, chance, out=np.zeros_like(block), where=kept)

        return thin

    return prepare


def _uniform(seeds: Sequence[Seed], start: int, shape: tuple[int, ...]) -> Float64:
    """Return random numbers in [0, 1) that depend on adapter, row and column but not on how rows are blocked."""
    _, rows, columns = shape
    generators = (np.random.Generator(np.random.PCG64(seed).advance(start * columns)) for seed in seeds)
    return np.stack([generator.random((rows, columns)) for generator in generators])


# --- how to combine them ----------------------------------------------------------------------------------------------


def added(block: Float64, weights: Float64) -> Float64:
    """Return the weighted sum."""
    total: Float64 = np.tensordot(weights, block, axes=1)
    return total


def elected(majority_sign: Majority) -> Combine:
    """Elect a sign for each entry and average the weighted values that have it (TIES, arXiv 2306.01708).

    Votes are the values without weights, summed (``total``) or counted (``frequency``); a draw elects plus. The sum of
    the weighted values is divided by the number of adapters that agree, not by their weights.
    """

    def combine(block: Float64, weights: Float64) -> Float64:
        agree = _agree(block, block if majority_sign == "total" else np.sign(block))
        mean: Float64 = added(block * agree, weights) / np.maximum(agree.sum(axis=0), 1)
        return mean

    return combine


def _agree(block: Float64, votes: Float64) -> NDArray[np.bool_]:
    """Whether each entry has the sign that the votes elect."""
    agree: NDArray[np.bool_] = np.where(votes.sum(axis=0) >= 0, block > 0, block < 0)
    return agree


# --- rules ------------------------------------------------------------------------------------------------------------


def thin_and_combine(sparsify: Sparsify, combine: Combine) -> Rule:
    """Return the rule that thins out each adapter and combines what is left."""

    def rule(values: Values, weights: Float64) -> Merge:
        thin = sparsify(values)
        return lambda start, block: combine(thin(start, block), weights)

    return rule


def named_rule(name: NamedRule, density: float, majority_sign: Majority) -> Rule:
    """Return one of the rules that a method offers by name."""
    if name == "sum":
        return thin_and_combine(keep_all, added)
    sparsify = keep_largest(density) if name == "ties" else drop_at_random(density)
    return thin_and_combine(sparsify, elected(majority_sign))


def select_and_erase(density: float) -> Rule:
    """Return SCE (arXiv 2408.07990): select entries by variance, weigh adapters by energy, erase minority signs.

    The ``int(density * size)`` entries that vary most across adapters stay. An adapter's coefficient is its share of
    the squares of the selected entries. Each entry is the mean of the weighted values that have the elected sign, with
    these coefficients.
    """

    def rule(values: Values, weights: Float64) -> Merge:
        size = values.shape[1] * values.shape[2]
        kept = max(1, int(density * size))
        threshold = float(kth_largest(values, _variance, kept)[0]) if kept < size else 0.0

        def select(block: Float64) -> Float64:
            return np.where(_variance(block) >= threshold, block, 0.0)

        energy = sum(
            (np.square(select(block)).sum(axis=(1, 2)) for _, block in values.blocks()), np.zeros(len(weights))
        )
        share = energy / (energy.sum() or 1.0)

        def merge(start: int, block: Float64) -> Float64:
            selected = select(block)
            agree = _agree(selected, selected)
            present = added(agree.astype(np.float64), share)
            total = added(selected * agree, share * weights)
            return np.divide(total, present, out=np.zeros_like(total), where=present > 0)

        return merge

    return rule


def _variance(block: Float64) -> Float64:
    """Return the variance of each entry across adapters, ``(1, rows, columns)``; zero where they agree to rounding."""
    spread = block.std(axis=0, keepdims=True)
    return np.where(spread <= SAME * np.abs(block).max(axis=0), 0.0, np.square(spread))
