"""Fingerprints: estimates are unbiased, as exact as documented, and blind to how a delta was factored."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_merge.adapter import Adapter, LoraFactors
from hub_merge.errors import AdapterFormatError
from hub_merge.gram import stack
from hub_merge.zoo.fingerprint import Fingerprint, fingerprint
from hub_merge.zoo.sketch import SIZE, bound, deviation, fold, from_spectrum, sketch_module
from tests.helpers import Dense, adapter_of, in_basis, random_basis, random_factors

BASE = "openai-community/gpt2"
SHAPES = {"h.0.attn": (24, 18), "h.1.attn": (24, 18), "h.0.mlp": (40, 12)}


def random_adapter(seed: int, name: str = "adapter", rank: int = 3) -> Adapter:
    rng = np.random.default_rng(seed)
    return adapter_of(name, {module: random_factors(rng, shape, rank) for module, shape in SHAPES.items()})


def mixed(one: Adapter, other: Adapter, share: float) -> Adapter:
    """Return an adapter whose delta is ``one`` and a share of ``other``, so that it goes along with ``one``."""
    parts = {}
    for module in SHAPES:
        x, y = one.factors(module), other.factors(module)
        parts[module] = LoraFactors(np.concatenate([x.A, y.A]), np.concatenate([x.B, share * y.B], axis=1))
    return adapter_of("mixed", parts)


def dense_inner(one: Adapter, other: Adapter) -> float:
    shared = one.modules.keys() & other.modules.keys()
    return sum(float(np.vdot(one.factors(module).delta(), other.factors(module).delta())) for module in shared)


def dense_cosine(one: Adapter, other: Adapter) -> float:
    return dense_inner(one, other) / math.sqrt(dense_inner(one, one) * dense_inner(other, other))


def estimate(one: Fingerprint, other: Fingerprint) -> float:
    """Return what two sketches say of the inner product of the deltas."""
    return one.norm * other.norm * float(one.sketch.astype(np.float64) @ other.sketch.astype(np.float64))


def dense_sketch(delta: Dense, base: str, module: str) -> Dense:
    """Return the sketch the plain way: each entry of the delta goes to the sum of its row's and its column's bucket."""
    from hub_merge.zoo.sketch import _hashes

    rows, columns = _hashes(base, module, "B", delta.shape[0]), _hashes(base, module, "A", delta.shape[1])
    sketch = np.zeros(SIZE)
    for i in range(delta.shape[0]):
        for j in range(delta.shape[1]):
            bucket = (rows.buckets[i] + columns.buckets[j]) % SIZE
            sketch[bucket] += rows.signs[i] * columns.signs[j] * delta[i, j]
    return sketch


def test_a_sketch_is_that_of_the_dense_delta(rng: np.random.Generator) -> None:
    part = random_factors(rng, (9, 7), 3, scaling=2.5)
    stacked = stack([part])
    sketch = from_spectrum(sketch_module(BASE, "h.0", stacked, 1.0).spectrum)
    np.testing.assert_allclose(sketch, dense_sketch(part.delta(), BASE, "h.0"), atol=1e-10)


@pytest.mark.parametrize("share", [None, 4.0, 1.0, 0.1], ids=["random", "loose", "alike", "near"])
def test_estimates_are_unbiased_and_vary_as_documented(share: float | None) -> None:
    one = random_adapter(1)
    other = random_adapter(2) if share is None else mixed(one, random_adapter(2), share)
    exact, cosine = dense_inner(one, other), dense_cosine(one, other)
    norms = math.sqrt(dense_inner(one, one) * dense_inner(other, other))
    seeds = [f"base/{number}" for number in range(120)]  # another base is another seed
    raw = [estimate(fingerprint(one, seed), fingerprint(other, seed)) for seed in seeds]
    errors = (np.array(raw) - exact) / norms
    assert abs(errors.mean()) < 4 * deviation(cosine) / math.sqrt(len(seeds))
    assert 0.75 * deviation(cosine) < errors.std() < 1.3 * deviation(cosine)


def test_weight_in_few_entries_stays_within_the_bound_for_all_deltas() -> None:
    spike = LoraFactors(np.eye(1, 18), np.eye(24, 1))
    wide = LoraFactors(np.eye(1, 18), np.ones((24, 1)) / math.sqrt(24))
    one, other = adapter_of("one", {"h": spike}), adapter_of("other", {"h": wide})
    seeds = [f"base/{number}" for number in range(200)]
    raw = np.array([estimate(fingerprint(one, seed), fingerprint(other, seed)) for seed in seeds])
    assert float(np.square(raw - dense_inner(one, other)).mean()) < 11 / SIZE


def test_cosines_of_pairs_lie_within_the_documented_bound() -> None:
    adapters = [random_adapter(seed) for seed in range(12)]
    adapters += [mixed(adapters[0], adapters[seed], share) for seed, share in ((1, 0.2), (2, 0.5), (3, 1), (4, 2))]
    prints = [fingerprint(adapter, BASE) for adapter in adapters]
    pairs = [(i, j) for i in range(len(adapters)) for j in range(i)]
    within = 0
    for i, j in pairs:
        exact, estimate = dense_cosine(adapters[i], adapters[j]), prints[i].cosine(prints[j])
        assert estimate is not None
        within += abs(estimate - exact) <= bound(exact)
    assert within >= 0.95 * len(pairs)


def test_norms_are_those_of_the_dense_deltas_in_all_and_by_group() -> None:
    adapter = random_adapter(3)
    found = fingerprint(adapter, BASE)
    assert found.norm == pytest.approx(math.sqrt(dense_inner(adapter, adapter)), rel=1e-12)
    attention = [np.linalg.norm(adapter.factors(module).delta()) for module in ("h.0.attn", "h.1.attn")]
    assert found.groups["h.*.attn"] == pytest.approx(np.linalg.norm(attention), rel=1e-12)
    assert found.groups["h.*.mlp"] == pytest.approx(np.linalg.norm(adapter.factors("h.0.mlp").delta()), rel=1e-12)
    assert (found.rank, found.modules) == (3, 3)
    assert found.parameters == 3 * (2 * (24 + 18) + 40 + 12)


@given(st.integers(0, 2**32 - 1), st.floats(-30, 30))
def test_only_the_delta_counts_not_its_factors_nor_its_scale(seed: int, exponent: float) -> None:
    rng = np.random.default_rng(seed)
    part = random_factors(rng, (12, 10), 2)
    other = in_basis(part, random_basis(rng, 2))
    scaled = replace(other, scaling=10.0**exponent)
    plain, moved = (fingerprint(adapter_of("a", {"h": value}), BASE) for value in (part, scaled))
    np.testing.assert_allclose(moved.sketch.astype(float), plain.sketch.astype(float), atol=2e-3)
    assert moved.norm == pytest.approx(plain.norm * 10.0**exponent, rel=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_factors_of_every_precision_give_the_sketch_of_their_numbers(rng: np.random.Generator, dtype: Any) -> None:
    part = random_factors(rng, (24, 18), 3, dtype=dtype)
    found = fingerprint(adapter_of("a", {"h": part}), BASE)
    wide = LoraFactors(part.A.astype(np.float64), part.B.astype(np.float64))
    expected = fingerprint(adapter_of("a", {"h": wide}), BASE)
    assert found.norm == pytest.approx(expected.norm, rel=1e-6)
    np.testing.assert_allclose(found.sketch.astype(float), expected.sketch.astype(float), atol=1e-3)


def test_an_untrained_adapter_has_norm_zero_and_no_cosine(rng: np.random.Generator) -> None:
    part = random_factors(rng, (24, 18), 3)
    zero = fingerprint(adapter_of("a", {"h": LoraFactors(part.A, part.B * 0)}), BASE)
    assert zero.norm == 0
    assert not zero.sketch.any()
    assert zero.cosine(fingerprint(random_adapter(1), BASE)) is None


def test_numbers_that_are_not_finite_are_refused(rng: np.random.Generator) -> None:
    part = random_factors(rng, (24, 18), 3)
    part.A[0, 0] = np.inf
    with pytest.raises(AdapterFormatError, match="h holds numbers that are not finite"), np.errstate(all="ignore"):
        fingerprint(adapter_of("a", {"h": part}), BASE)


def test_one_base_in_other_letters_gives_one_sketch_and_another_base_another() -> None:
    adapter = random_adapter(1)
    one, same, other = (fingerprint(adapter, base) for base in ("Owner/Model", "owner/model", "owner/other"))
    assert (one.sketch == same.sketch).all()
    cosine = one.cosine(other)
    assert cosine is not None
    assert abs(cosine) < 5 * deviation(0)


def test_a_folded_sketch_is_the_sketch_of_fewer_buckets(rng: np.random.Generator) -> None:
    part = random_factors(rng, (9, 7), 3)
    sketch = dense_sketch(part.delta(), BASE, "h.0")
    small = np.zeros(1024)
    for place, number in enumerate(sketch):
        small[place % 1024] += number
    np.testing.assert_allclose(fold(sketch, 1024), small, atol=1e-12)


def test_a_shared_start_shows_although_the_deltas_are_unrelated() -> None:
    def trained(seed: int) -> Adapter:
        made = np.random.default_rng(seed)
        parts = {}
        for module, shape in SHAPES.items():
            A = np.random.default_rng(len(module) + shape[0]).standard_normal((3, shape[1]))
            parts[module] = LoraFactors(A + 0.1 * made.standard_normal(A.shape), made.standard_normal((shape[0], 3)))
        return adapter_of("a", parts)

    one, other = fingerprint(trained(1), BASE), fingerprint(trained(2), BASE)
    alike, apart = one.one_start(other), one.one_start(fingerprint(random_adapter(9), BASE))
    assert alike is not None
    assert apart is not None
    assert alike > 0.7
    assert abs(apart) < 0.35


def test_sketches_stay_the_same_over_releases() -> None:
    """The hash is SHAKE-128 of the names; these numbers were computed by hand with hashlib alone."""
    import hashlib

    from hub_merge.zoo.sketch import _hashes

    stream = hashlib.shake_128(b"hub-merge zoo\x001\x00owner/model\x00h.0\x00A").digest(4)
    first, second = (int.from_bytes(stream[start : start + 2], "little") for start in (0, 2))
    found = _hashes("Owner/Model", "h.0", "A", 2)
    assert found.buckets.tolist() == [first % 4096, second % 4096]
    assert found.signs.tolist() == [1.0 if number < 2**15 else -1.0 for number in (first, second)]
