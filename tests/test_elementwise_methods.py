"""Element-wise methods against their dense definitions and against PEFT where PEFT is right."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from hub_merge.adapter import LoraFactors
from hub_merge.methods import Method, get_method
from tests.helpers import Dense, dense_sum, in_basis, random_basis, random_factors, relative_error

SHAPE = (24, 20)
SPACES = ("core", "knots", "delta", "factors")
LOSSLESS = ("core", "knots", "delta")
SUMS = ("dare_linear", "magnitude_prune", "breadcrumbs")
MEANS = ("ties", "dare_ties", "della", "sce")
RANDOM = ("dare_linear", "dare_ties", "della")


def some(rng: np.random.Generator, shape: tuple[int, int] = SHAPE) -> tuple[list[LoraFactors], list[float]]:
    parts = [random_factors(rng, shape, rank, scaling=scaling) for rank, scaling in [(3, 2.0), (5, 0.5), (2, -1.5)]]
    return parts, [1.0, 0.7, -0.4]


def merged(
    name: str,
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    seed: int = 0,
    **given: Any,
) -> Dense:
    method = get_method(name)
    options = method.parse_options(given)
    return method.kernel(parts, weights, rank=rank, rng=np.random.default_rng(seed), **options).delta()


def trimmed(values: Dense, density: float) -> Dense:
    """Return each layer with zeros for all but its ``int(density * size)`` largest magnitudes."""
    out = np.zeros_like(values)
    for kept, layer in zip(out, values, strict=True):
        for index in np.argsort(-np.abs(layer), axis=None)[: int(density * layer.size)]:
            kept.flat[index] = layer.flat[index]
    return out


def ties_by_definition(values: Dense, weights: Sequence[float], density: float, majority: str = "total") -> Dense:
    """Return TIES of dense arrays, one entry at a time."""
    kept = trimmed(values, density)
    out = np.zeros(values.shape[1:])
    for index in np.ndindex(out.shape):
        column = [float(layer[index]) for layer in kept]
        votes = sum(column) if majority == "total" else sum(np.sign(column))
        agreeing = [w * v for w, v in zip(weights, column, strict=True) if (v > 0 if votes >= 0 else v < 0)]
        out[index] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return out


def closest(dense: Dense, rank: int) -> Dense:
    U, S, Vt = np.linalg.svd(dense, full_matrices=False)
    best: Dense = (U[:, :rank] * S[:rank]) @ Vt[:rank]
    return best


# --- dense definitions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [1.0, 0.3])
@pytest.mark.parametrize("rank", [None, 4])
def test_knots_is_its_dense_definition(density: float, rank: int | None, rng: np.random.Generator) -> None:
    parts, weights = some(rng)
    U, S, Vt = np.linalg.svd(np.concatenate([part.delta() for part in parts], axis=1), full_matrices=False)
    assert np.count_nonzero(S > 1e-10 * S[0]) == 10
    P = np.stack(np.split(S[:10, None] * Vt[:10], 3, axis=1))
    wanted = U[:, :10] @ ties_by_definition(P, weights, density)
    got = merged("knots", parts, weights, density=density, rank=rank)
    assert relative_error(got, wanted if rank is None else closest(wanted, rank)) < 1e-10
    assert relative_error(merged("ties", parts, weights, density=density, rank=rank, space="knots"), got) < 1e-14


@pytest.mark.parametrize("basis", ["deltas", "factors"])
@pytest.mark.parametrize("density", [1.0, 0.3])
@pytest.mark.parametrize("rank", [None, 4])
def test_core_is_its_dense_definition(basis: str, density: float, rank: int | None, rng: np.random.Generator) -> None:
    parts, weights = some(rng)
    columns, rows = [], []
    for part in parts:
        B, A = np.sqrt(abs(part.scaling)) * part.B, np.sqrt(abs(part.scaling)) * part.A
        if basis == "deltas":
            u, s, vt = np.linalg.svd(part.delta(), full_matrices=False)
            B, A = u[:, : part.rank] * np.sqrt(s[: part.rank]), np.sqrt(s[: part.rank, None]) * vt[: part.rank]
        columns.append(B)
        rows.append(A)
    U = np.linalg.svd(np.concatenate(columns, axis=1))[0][:, :10]
    V = np.linalg.svd(np.concatenate(rows, axis=0))[2][:10]
    M = np.stack([U.T @ part.delta() @ V.T for part in parts])
    wanted = U @ ties_by_definition(M, weights, density) @ V
    got = merged("core", parts, weights, density=density, rank=rank, basis=basis)
    assert relative_error(got, wanted if rank is None else closest(wanted, rank)) < 1e-10
    if basis == "deltas":
        assert relative_error(merged("ties", parts, weights, density=density, rank=rank), got) < 1e-14


@pytest.mark.parametrize("majority_sign", ["total", "frequency"])
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_ties_on_the_deltas_is_the_closest_update_to_the_dense_definition(
    majority_sign: str, density: float, rng: np.random.Generator
) -> None:
    parts, weights = some(rng)
    dense = ties_by_definition(np.stack([part.delta() for part in parts]), weights, density, majority_sign)
    for rank in (None, 4):
        got = merged("ties", parts, weights, rank=rank, space="delta", density=density, majority_sign=majority_sign)
        assert relative_error(got, closest(dense, rank or 10)) < 1e-10


def test_magnitude_prune_on_the_deltas_is_the_closest_update_to_the_dense_definition(rng: np.random.Generator) -> None:
    parts, weights = some(rng)
    dense = np.tensordot(weights, trimmed(np.stack([part.delta() for part in parts]), 0.3), axes=1)
    assert (
        relative_error(merged("magnitude_prune", parts, weights, space="delta", density=0.3), closest(dense, 10))
        < 1e-10
    )


def test_sce_on_the_deltas_by_a_plain_formula(rng: np.random.Generator) -> None:
    parts, weights = some(rng)
    deltas = np.stack([part.delta() for part in parts])
    selected = deltas * (deltas.var(axis=0) >= np.sort(deltas.var(axis=0), axis=None)[-int(0.4 * 480)])
    shares = (selected**2).mean(axis=(1, 2)) / (selected**2).mean(axis=(1, 2)).sum()
    mask = selected * np.where(selected.sum(axis=0) >= 0, 1, -1) > 0
    coefficients = shares[:, None, None] * mask
    total = (coefficients * selected * np.array(weights)[:, None, None]).sum(axis=0)
    dense = total / np.where(coefficients.sum(axis=0) > 0, coefficients.sum(axis=0), 1.0)
    assert relative_error(merged("sce", parts, weights, space="delta", density=0.4), closest(dense, 10)) < 1e-10


def test_linear_is_the_sum_and_every_cross_term(rng: np.random.Generator) -> None:
    parts = [random_factors(rng, SHAPE, 4, scaling=scaling) for scaling in (2.0, 0.5, -1.5)]
    weights = [0.7, -0.4, 1.0]
    reach = [weight * part.scaling for part, weight in zip(parts, weights, strict=True)]
    cross = sum(
        np.sqrt(abs(reach[i])) * parts[i].B @ parts[j].A * np.copysign(np.sqrt(abs(reach[j])), reach[j])
        for i in range(3)
        for j in range(3)
        if i != j
    )
    assert relative_error(merged("linear", parts, weights) - dense_sum(parts, weights), np.asarray(cross)) < 1e-12


def test_linear_fills_smaller_factors_up_with_zeros(rng: np.random.Generator) -> None:
    small, large = random_factors(rng, SHAPE, 2), random_factors(rng, SHAPE, 5)
    padded = LoraFactors(
        np.concatenate([small.A, np.zeros((3, SHAPE[1]))]), np.concatenate([small.B, np.zeros((SHAPE[0], 3))], axis=1)
    )
    for name, given in [("linear", {}), ("ties", {"space": "factors"})]:
        unequal = merged(name, [small, large], [1.0, 2.0], **given)
        assert relative_error(unequal, merged(name, [padded, large], [1.0, 2.0], **given)) < 1e-14


# --- invariants -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("space", LOSSLESS)
def test_nothing_dropped_is_the_exact_sum(name: str, space: str, rng: np.random.Generator) -> None:
    parts, weights = some(rng)
    assert relative_error(merged(name, parts, weights, space=space, density=1), dense_sum(parts, weights)) < 1e-12


@pytest.mark.parametrize("name", ["knots", "core"])
def test_the_rule_sum_is_the_exact_sum(name: str, rng: np.random.Generator) -> None:
    parts, weights = some(rng)
    assert relative_error(merged(name, parts, weights, rule="sum", density=0.5), dense_sum(parts, weights)) < 1e-12


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_copies_of_an_adapter_are_that_adapter(name: str, space: str, count: int, rng: np.random.Generator) -> None:
    part = random_factors(rng, SHAPE, 4, scaling=1.5)
    got = merged(name, [part] * count, [1.0] * count, space=space)
    wanted = part.delta()
    assert relative_error(got, wanted) < 1e-12


@pytest.mark.parametrize("name", ["knots", "core"])
def test_copies_of_an_adapter_written_otherwise_are_that_adapter(name: str, rng: np.random.Generator) -> None:
    part = random_factors(rng, SHAPE, 4, scaling=1.5)
    copies = [part, in_basis(part, random_basis(rng, 4)), LoraFactors(-3 * part.A, part.B, -0.5)]
    assert relative_error(merged(name, copies, [1.0] * 3), part.delta()) < 1e-11


@pytest.mark.parametrize("name", [*SUMS, *MEANS])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("factor", [4.0, 1e-3])
def test_rescaling_all_adapters_or_all_weights_rescales_the_result(
    name: str, space: str, factor: float, rng: np.random.Generator
) -> None:
    parts, weights = some(rng)
    options: dict[str, Any] = {"space": space, "density": 0.5}
    plain = merged(name, parts, weights, **options)
    larger = [LoraFactors(part.A, part.B, factor * part.scaling) for part in parts]
    assert relative_error(merged(name, larger, weights, **options), factor * plain) < 1e-10
    heavier = [factor * weight for weight in weights]
    assert relative_error(merged(name, parts, heavier, **options), factor * plain) < 1e-10


@pytest.mark.parametrize("name", [*SUMS, *MEANS])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("order", [(3, 0, 2, 1), (1, 0, 3, 2)])
def test_the_order_of_adapters_does_not_matter_when_entries_are_dropped(
    name: str, space: str, order: tuple[int, ...], rng: np.random.Generator
) -> None:
    parts, weights = some(rng)
    parts, weights = [*parts, parts[0]], [*weights, 0.3]  # one adapter twice, with two weights
    method = get_method(name)
    for majority in ["total", "frequency"] if "majority_sign" in {o.name for o in method.options} else [None]:
        options = {"space": space, "density": 0.5, **({"majority_sign": majority} if majority else {})}
        turned = merged(name, [parts[i] for i in order], [weights[i] for i in order], **options)
        assert relative_error(turned, merged(name, parts, weights, **options)) < 1e-10


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("space", SPACES)
def test_masks_follow_the_seed(name: str, space: str, rng: np.random.Generator) -> None:
    parts, weights = some(rng)
    one, two, other = (merged(name, parts, weights, space=space, density=0.5, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(one, two)
    assert relative_error(other, one) > 0.1


@pytest.mark.parametrize("space", ["core", "knots"])
@pytest.mark.parametrize("density", [0.5, 0.2])
def test_dare_is_the_sum_on_average_with_the_error_that_theory_gives(
    space: str, density: float, rng: np.random.Generator
) -> None:
    parts, weights = some(rng)
    exact, count = dense_sum(parts, weights), 400
    draws = [merged("dare_linear", parts, weights, seed=seed, space=space, density=density) for seed in range(count)]
    energy = sum(np.linalg.norm(w * part.delta()) ** 2 for part, w in zip(parts, weights, strict=True))
    expected = (1 - density) / density * energy  # of the squared distance of one draw to the sum
    assert 0.93 < np.mean([np.linalg.norm(draw - exact) ** 2 for draw in draws]) / expected < 1.07
    assert 0.6 < np.linalg.norm(sum(draws) / count - exact) / np.sqrt(expected / count) < 1.4


def test_dare_on_factors_is_peft_linear_on_average(rng: np.random.Generator) -> None:
    parts, weights = some(rng)
    draws = [merged("dare_linear", parts, weights, seed=s, space="factors", density=0.5) for s in range(800)]
    linear = merged("linear", parts, weights)
    assert relative_error(sum(draws) / len(draws), linear) < 0.15
    assert relative_error(sum(draws) / len(draws), dense_sum(parts, weights)) > 0.5


def test_two_copies_of_an_adapter_have_masks_of_their_own(rng: np.random.Generator) -> None:
    part = random_factors(rng, SHAPE, 4)
    alone = [merged("dare_linear", [part], [1.0], density=0.5, seed=seed) - part.delta() for seed in range(60)]
    twice = [merged("dare_linear", [part] * 2, [0.5] * 2, density=0.5, seed=seed) - part.delta() for seed in range(60)]
    ratio = np.linalg.norm(twice) / np.linalg.norm(alone)
    assert abs(ratio - np.sqrt(0.5)) < 0.07  # as independent ones have; with one mask for both it would be 1


@pytest.mark.parametrize("name", ["ties", "magnitude_prune", "breadcrumbs", "sce", "knots", "core"])
def test_the_result_depends_on_the_deltas_and_not_on_their_factors(name: str, rng: np.random.Generator) -> None:
    parts, weights = some(rng)
    rewritten = [in_basis(part, random_basis(rng, part.rank)) for part in parts]
    got, wanted = (merged(name, group, weights, density=0.5) for group in (rewritten, parts))
    assert relative_error(got, wanted) < 1e-10


def test_the_faithful_core_does_depend_on_the_factors(rng: np.random.Generator) -> None:
    parts, weights = some(rng)
    rewritten = [in_basis(part, random_basis(rng, part.rank)) for part in parts]
    got, wanted = (merged("core", group, weights, preset="faithful") for group in (rewritten, parts))
    assert relative_error(got, wanted) > 0.05


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("linear", {}, "cross terms"),
        ("ties", {"space": "factors"}, "cross terms"),
        ("ties", {"space": "delta"}, "only the closest update"),
        ("dare_linear", {}, "is the plain sum"),
        ("magnitude_prune", {}, "is the plain sum"),
        ("breadcrumbs", {}, "is the plain sum"),
        ("dare_ties", {}, "is ties"),
        ("della", {}, "is ties"),
    ],
)
def test_what_an_option_costs_is_told(name: str, given: dict[str, Any], told: str) -> None:
    method = get_method(name)
    assert method.cautions is not None
    assert any(told in caution for caution in method.cautions([1.0, 0.5], method.parse_options(given)))


def test_nothing_is_told_where_nothing_is_lost() -> None:
    for name, given in [("ties", {}), ("sce", {}), ("dare_linear", {"density": 0.5})]:
        method = get_method(name)
        assert method.cautions is not None
        assert not method.cautions([1.0, 0.5], method.parse_options(given))
    alone: Callable[[Method], Sequence[str]] = lambda method: method.cautions([1.0, 0.0], {})  # type: ignore[misc]
    assert not alone(get_method("linear"))


# --- PEFT -------------------------------------------------------------------------------------------------------------


class Peft:
    """A layer with three adapters in PEFT, in float64, and the same adapters as ours."""

    def __init__(self, ranks: Sequence[int], alphas: Sequence[float]) -> None:
        torch = pytest.importorskip("torch")
        peft = pytest.importorskip("peft")
        torch.manual_seed(11)
        base = torch.nn.Sequential(torch.nn.Linear(SHAPE[1], SHAPE[0], bias=False))
        config = lambda r, alpha: peft.LoraConfig(r=r, lora_alpha=alpha, target_modules=["0"], init_lora_weights=False)
        self.names = [f"adapter{i}" for i in range(len(ranks))]
        self.model = peft.get_peft_model(base, config(ranks[0], alphas[0]), adapter_name=self.names[0])
        for name, r, alpha in zip(self.names[1:], ranks[1:], alphas[1:], strict=True):
            self.model.add_adapter(name, config(r, alpha))
        self.model.double()
        self.layer = self.model.base_model.model[0]
        self.parts = [
            LoraFactors(self._array(self.layer.lora_A[n]), self._array(self.layer.lora_B[n]), self.layer.scaling[n])
            for n in self.names
        ]

    @staticmethod
    def _array(layer: Any) -> Dense:
        return np.array(layer.weight.detach().numpy())

    def merged(self, weights: Sequence[float], kind: str, **given: Any) -> Dense:
        """Return the delta of PEFT's own merge."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a density of 1
            self.model.add_weighted_adapter(self.names, list(weights), "merged", combination_type=kind, **given)
        return np.array(self.layer.get_delta_weight("merged").detach().numpy())


WEIGHTS = [0.75, -0.5, 1.25]  # exact in float32, which PEFT keeps weights in


@pytest.mark.parametrize("rank", [2, 5])
@pytest.mark.parametrize("density", [1.0, 0.4])
@pytest.mark.parametrize("majority_sign_method", ["total", "frequency"])
def test_ties_on_the_deltas_is_what_peft_calls_ties_svd(rank: int, density: float, majority_sign_method: str) -> None:
    theirs = Peft([3, 5, 2], [6, 5, 1])
    wanted = theirs.merged(
        WEIGHTS,
        "ties_svd",
        svd_rank=rank,
        density=density,
        majority_sign_method=majority_sign_method,
        svd_full_matrices=False,
    )
    options: dict[str, Any] = {"space": "delta", "density": density, "majority_sign": majority_sign_method}
    assert relative_error(merged("ties", theirs.parts, WEIGHTS, rank=rank, **options), wanted) < 1e-5


@pytest.mark.parametrize(
    ("kind", "density"), [("magnitude_prune", 1.0), ("magnitude_prune", 0.4), ("dare_linear", 1.0), ("dare_ties", 1.0)]
)
def test_other_rules_on_the_deltas_are_what_peft_calls_the_same_with_svd(kind: str, density: float) -> None:
    theirs = Peft([3, 5, 2], [6, 5, 1])
    wanted = theirs.merged(WEIGHTS, f"{kind}_svd", svd_rank=4, density=density, svd_full_matrices=False)
    assert relative_error(merged(kind, theirs.parts, WEIGHTS, rank=4, space="delta", density=density), wanted) < 1e-5


def test_linear_is_what_peft_calls_linear() -> None:
    theirs = Peft([4, 4, 4], [8, 2, 1])
    wanted = theirs.merged(WEIGHTS, "linear")
    assert relative_error(merged("linear", theirs.parts, WEIGHTS), wanted) < 1e-5


@pytest.mark.parametrize(("kind", "density"), [("ties", 1.0), ("ties", 0.4), ("magnitude_prune", 0.4)])
def test_rules_on_factors_are_what_peft_does_without_svd(kind: str, density: float) -> None:
    theirs = Peft([4, 4, 4], [8, 2, 1])
    wanted = theirs.merged(WEIGHTS, kind, density=density)
    assert relative_error(merged(kind, theirs.parts, WEIGHTS, space="factors", density=density), wanted) < 1e-5
