"""Each rule of the advice on adapters made for it, and what every advice says."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hub_merge import advise as rules
from hub_merge import compat, pipeline
from hub_merge.adapter import Adapter, LoraFactors
from hub_merge.advise import Advice, advise
from hub_merge.cli.app import cli
from hub_merge.cli.output import Output
from hub_merge.cli.show.scores import print_advice
from hub_merge.compat import check
from hub_merge.scores import score
from tests.helpers import Dense, adapter_of, dense_sum, random_factors

SHAPE = (60, 50)
MODULES = ("h.0", "h.1", "h.2", "h.3")
BASE: dict[str, Any] = {"base_model": "acme/base", "task_type": "CAUSAL_LM"}


def advice_on(*adapters: Adapter, **asked: Any) -> Advice:
    return advise(adapters, score(adapters), check(adapters), **asked)


def apart(*ranks: int, factors: dict[int, float] | None = None) -> list[Adapter]:
    """Return adapters that write to output rows of their own, so that all their deltas are orthogonal."""
    rng, adapters, start = np.random.default_rng(1), [], 0
    for number, rank in enumerate(ranks):
        parts = {}
        for module in MODULES:
            part = random_factors(rng, SHAPE, rank)
            B = np.zeros(part.B.shape)
            B[start : start + rank] = part.B[:rank] * (factors or {}).get(number, 1.0)
            parts[module] = LoraFactors(part.A, B)
        adapters.append(adapter_of("abcdefgh"[number], parts, **BASE))
        start += rank
    return adapters


def alike(*blends: float, one_start: bool = True) -> list[Adapter]:
    """Return adapters of one common delta of norm 1 and one of their own of norm ``blends[i]``, sharing A or not."""
    rng = np.random.default_rng(2)
    common = {module: random_factors(rng, SHAPE, 3) for module in MODULES}
    adapters = []
    for number, blend in enumerate(blends):
        parts = {}
        for module, shared in common.items():
            other = random_factors(rng, SHAPE, 3)
            own = other if not one_start else LoraFactors(shared.A, other.B)
            scale = blend * norm(shared) / norm(own)
            turn = np.arange(6) if one_start or not number else np.roll(np.arange(6), 1)
            A = np.concatenate([shared.A, own.A])[turn]
            B = np.concatenate([shared.B, scale * own.B], axis=1)[:, turn]
            parts[module] = LoraFactors(A, B)
        adapters.append(adapter_of("abcdefgh"[number], parts, **BASE))
    return adapters


def norm(part: LoraFactors) -> float:
    return float(np.linalg.norm(dense_sum([part])))


def smallest_dense_rank(deltas: list[Dense], share: float) -> int:
    squares = sum(np.linalg.svd(delta, compute_uv=False) ** 2 for delta in deltas)
    return int(np.argmax(np.cumsum(squares) / np.sum(squares) >= share)) + 1


# --- the rules --------------------------------------------------------------------------------------------------------


def test_one_adapter_is_compressed_to_the_rank_that_keeps_its_energy() -> None:
    rng = np.random.default_rng(0)
    part = random_factors(rng, SHAPE, 6)
    graded = LoraFactors(part.A, part.B * [1, 1, 1e-3, 1e-3, 1e-3, 1e-3])
    advice = advice_on(adapter_of("a", {"h.0": graded}, **BASE))
    assert (advice.method, advice.rank, advice.weights) == ("svd", 2, (1.0,))
    assert "nothing to merge" in advice.reasons[0]
    assert rules.CONTESTED not in advice.caveats


def test_adapters_of_disjoint_modules_are_put_side_by_side() -> None:
    rng = np.random.default_rng(0)
    one, two = (adapter_of(name, {name: random_factors(rng, SHAPE, 2)}, **BASE) for name in "ab")
    advice = advice_on(one, two)
    assert (advice.method, advice.rank, advice.alternatives) == ("sum", None, ())
    assert "side by side" in advice.reasons[0]


def test_adapters_near_chance_are_added() -> None:
    rng = np.random.default_rng(3)
    strangers = [adapter_of(name, {m: random_factors(rng, SHAPE, 2) for m in MODULES}, **BASE) for name in "abc"]
    for adapters in (apart(3, 3), strangers):
        advice = advice_on(*adapters)
        assert (advice.method, advice.rank, set(advice.weights)) == ("sum", None, {1.0})
        assert "apart" in advice.reasons[0]
        assert "nothing has to be cut" in advice.reasons[-1]


def test_a_sum_above_the_largest_rank_is_cut_to_the_smallest_that_keeps_99_per_cent() -> None:
    for adapters in (apart(5, 5, factors={1: 0.01}), apart(5, 5, factors={0: 3.0})):
        advice = advice_on(*adapters, max_rank=9)
        deltas = [dense_sum([adapter.factors(m) for adapter in adapters], list(advice.weights)) for m in MODULES]
        assert (advice.method, advice.rank) == ("svd", min(9, smallest_dense_rank(deltas, 0.99)))


def test_a_rank_that_cannot_keep_the_energy_is_taken_and_told() -> None:
    advice = advice_on(*apart(8, 8), max_rank=4)
    assert (advice.method, advice.rank) == ("svd", 4)
    assert any("to keep 99 %" in caveat for caveat in advice.caveats)
    kept = dict(advice.energy_at_rank)
    assert kept[4] < 0.99
    assert kept[16] == pytest.approx(1.0)
    assert list(kept) == sorted(kept)


def test_the_exact_rank_of_64_is_cut_without_being_asked() -> None:
    rng = np.random.default_rng(0)
    adapters = [adapter_of(name, {"h.0": random_factors(rng, (90, 80), 33)}, **BASE) for name in "ab"]
    assert advice_on(*adapters).rank is not None
    assert advice_on(*adapters, max_rank=66).rank is None


def test_norms_far_apart_are_balanced_by_the_weights() -> None:
    adapters = apart(3, 3, 3, factors={0: 10.0})
    advice = advice_on(*adapters)
    scores = score(adapters)
    balanced = [weight * length for weight, length in zip(advice.weights, scores.norms, strict=True)]
    assert balanced == pytest.approx([math.prod(scores.norms) ** (1 / 3)] * 3, rel=0.01)
    assert any("drown" in reason for reason in advice.reasons)
    assert any("stronger than it was trained" in caveat for caveat in advice.caveats)
    assert set(advice_on(*apart(3, 3, factors={0: 3.0})).weights) == {1.0}


def test_checkpoints_of_one_family_are_averaged() -> None:
    advice = advice_on(*alike(0.1, 0.1, 0.2))
    assert (advice.method, advice.rank, advice.alternatives) == ("mean", None, ())
    assert "overlap strongly" in advice.reasons[0]


def test_a_mixed_overlap_of_one_start_is_averaged_with_alternatives_to_measure() -> None:
    advice = advice_on(*alike(1.7, 1.7))
    assert (advice.method, advice.alternatives) == ("mean", ("core", "sum"))
    assert "started alike" in advice.reasons[0]


def test_a_mixed_overlap_without_a_common_start_is_told_apart() -> None:
    advice = advice_on(*alike(1.7, 1.7, one_start=False))
    assert (advice.method, advice.alternatives) == ("mean", ("core", "sum"))
    assert "does not explain it" in advice.reasons[0]


def test_a_strong_pair_beside_a_stranger_is_mixed() -> None:
    one, two = alike(0.1, 0.1)
    rng = np.random.default_rng(9)
    stranger = adapter_of("z", {m: random_factors(rng, SHAPE, 3) for m in MODULES}, **BASE)
    advice = advice_on(one, two, stranger)
    assert (advice.method, advice.alternatives) == ("mean", ("core", "sum"))
    assert advice.reasons[0].startswith("1 of 3 pairs overlap")


def test_a_mean_above_the_largest_rank_stays_a_mean() -> None:
    advice = advice_on(*alike(0.1, 0.1), max_rank=8)
    assert advice.method == "mean"
    assert advice.rank is not None
    assert advice.rank <= 8


def test_the_energy_of_a_mean_divides_by_the_adapters_that_have_a_module() -> None:
    one, two = alike(0.1, 0.1)
    alone = {**{m: two.load(m) for m in MODULES}, "x": LoraFactors(np.eye(1, 50), np.eye(60, 1) * 40)}
    advice = advice_on(one, adapter_of("b", alone, **BASE))
    assert advice.method == "mean"
    deltas = [dense_sum([one.load(m), two.load(m)], [0.5, 0.5]) for m in MODULES] + [dense_sum([alone["x"]])]
    squares = sum(np.linalg.svd(delta, compute_uv=False) ** 2 for delta in deltas)
    wanted = np.cumsum(squares) / np.sum(squares)
    for rank, share in advice.energy_at_rank:
        assert share == pytest.approx(wanted[rank - 1])


def test_opposed_adapters_are_told() -> None:
    one, _ = alike(0.1, 0.1)
    parts = {m: LoraFactors(one.load(m).A, -one.load(m).B) for m in MODULES}
    advice = advice_on(one, adapter_of("n", parts, **BASE))
    assert any("against each other" in caveat for caveat in advice.caveats)
    assert advice.energy_at_rank == ()
    assert advice.rank is None


def test_untrained_adapters_leave_nothing_to_merge() -> None:
    one, two = apart(2, 2)
    zero = {m: LoraFactors(two.load(m).A, 0 * two.load(m).B) for m in MODULES}
    advice = advice_on(one, adapter_of("z", zero, **BASE))
    assert (advice.method, advice.weights) == ("svd", (1.0, 1.0))
    assert advice.reasons[0].startswith("Only a has a delta")
    nothing = advice_on(adapter_of("z", zero, **BASE))
    assert (nothing.rank, nothing.energy_at_rank) == (None, ())
    assert "nothing to merge" in nothing.reasons[0]


def test_adapters_that_do_not_fit_are_told_first() -> None:
    one, two = apart(2, 2)
    other = adapter_of("b", {m: two.load(m) for m in MODULES}, base_model="acme/else", task_type="CAUSAL_LM")
    advice = advice_on(one, other)
    assert "base_differs" in advice.caveats[0]


# --- what every advice says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapters", [apart(3, 3), alike(0.1, 0.1), alike(1.7, 1.7), apart(2, 2, factors={0: 50})])
def test_every_advice_on_several_says_that_orthogonality_is_contested_and_to_measure(adapters: list[Adapter]) -> None:
    advice = advice_on(*adapters)
    text = " ".join(advice.caveats)
    for paper in ("2508.11985", "2510.03262", "2606.11262"):
        assert paper in text
    assert "measure the composite" in text
    assert not any(word in " ".join(advice.reasons).lower() for word in ("better", "best", "quality", "perform"))
    assert set(advice.to_dict()) == set(Advice.__slots__)


def test_advice_does_not_depend_on_the_order_of_adapters() -> None:
    for adapters in (apart(2, 3, factors={0: 20}), alike(1.7, 1.5)):
        given, turned = advice_on(*adapters), advice_on(*adapters[::-1])
        assert (turned.method, turned.rank, turned.weights) == (given.method, given.rank, given.weights[::-1])


def test_the_command_line_offers_the_limit_of_the_rules() -> None:
    (option,) = (param for param in cli.commands["advise"].params if param.name == "max_rank")
    assert option.default == rules.MAX_RANK == compat.SERVED_RANKS[-1]


@pytest.mark.parametrize("adapters", [apart(8, 8), alike(0.1, 0.1), apart(3, 3, factors={0: 50})[:1]])
def test_what_is_suggested_can_be_merged_and_keeps_the_energy_that_was_told(adapters: list[Adapter]) -> None:
    advice = advice_on(*adapters, max_rank=5)
    composite = pipeline.merge(adapters, advice.method, weights=list(advice.weights), rank=advice.rank)
    whole = "sum" if advice.method == "svd" else advice.method
    exact = pipeline.merge(adapters, whole, weights=list(advice.weights))
    kept, total = (sum(norm(merged.factors(m)) ** 2 for m in MODULES) for merged in (composite, exact))
    assert advice.rank is not None
    assert kept / total == pytest.approx(dict(advice.energy_at_rank)[advice.rank])


# --- printing ---------------------------------------------------------------------------------------------------------


def test_the_command_carries_all_that_was_decided(capsys: pytest.CaptureFixture[str]) -> None:
    advice = Advice("svd", 8, (0.5, 2.0), ("because",), ("but",), ((8, 0.995),), ("core",))
    folders = [str(Path("my adapters") / "a"), "someone/b"]
    for mode in ("human", "agent", "json", "quiet"):
        decided = {"base": "acme/base", "allow": ["task_differs"], "extras": "drop"}
        print_advice(Output(mode), advice, folders, **decided)  # type: ignore[arg-type]
        said = capsys.readouterr()
        if mode == "quiet":
            assert (said.out, said.err) == ("svd\n", "")
            continue
        assert "because" in said.out
        assert "but" in said.out
        words = shlex.split(said.err.removeprefix("Hint: "))
        assert words[words.index("merge") + 1 :] == [
            *folders,
            *("--method", "svd", "--weights", "0.5,2", "--rank", "8", "--base", "acme/base"),
            *("--allow", "task_differs", "--extras", "drop", "-o", "composite"),
        ]
