"""Whether adapters fit together: every problem and caution at once, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from hub_merge.adapter import Adapter, LoraFactors
from hub_merge.compat import Compatibility, check
from hub_merge.findings import Finding
from tests.helpers import adapter_of, random_factors

Q, V, EMBEDDING = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj", "model.embed_tokens"
SHAPE = (6, 5)
BASE = "acme/base"


def lora(name: str, seed: int, modules: Mapping[str, tuple[int, int]] | None = None, **fields: Any) -> Adapter:
    """Return an adapter whose delta has norm 1 in each module."""
    rng = np.random.default_rng(seed)
    parts = {}
    for module, shape in (modules or {Q: SHAPE}).items():
        part = random_factors(rng, shape, 2)
        parts[module] = LoraFactors(part.A, part.B, 1 / float(np.linalg.norm(part.B @ part.A)))
    return adapter_of(name, parts, **{"base_model": BASE, "task_type": "CAUSAL_LM", **fields})


def codes(result: Compatibility, severity: str) -> list[str]:
    return [found.code for found in result.report.findings if found.severity == severity]


def only(result: Compatibility, code: str) -> Finding:
    (found,) = [found for found in result.report.findings if found.code == code]
    return found


def test_two_adapters_of_one_base_and_shape_fit_without_a_word() -> None:
    result = check([lora("a", 0), lora("b", 1)])
    assert result.compatible and result.report.findings == ()
    assert (result.base_model, result.adapters, result.total_rank) == (BASE, ("a", "b"), 4)
    assert result.norms == pytest.approx((1.0, 1.0), rel=1e-12)


# --- base -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bases", "code"),
    [
        (["acme/base", "acme/other"], "base_differs"),
        (["acme/base", None], "base_unknown"),
        (["acme/base", "/home/ann/base"], "base_unknown"),
        (["gemma3-270m", "/home/ann/other"], "base_unknown"),
        ([None, ""], "base_unknown"),
    ],
)
def test_bases_that_are_not_proven_to_be_one_block_until_the_user_names_it(bases: list[str | None], code: str) -> None:
    adapters = [lora(name, i, base_model=base) for i, (name, base) in enumerate(zip("ab", bases, strict=True))]
    result = check(adapters)
    assert codes(result, "problem") == [code] and result.base_model is None
    assert only(result, code).overrule == "--base OWNER/NAME"
    asserted = check(adapters, base=BASE)
    assert asserted.compatible and asserted.base_model == BASE
    assert codes(asserted, "caution") == ["base_asserted"]


def test_two_names_of_one_base_are_the_same() -> None:
    result = check([lora("a", 0, base_model="gpt2"), lora("b", 1, base_model="openai-community/gpt2")])
    assert result.report.findings == () and result.base_model == "openai-community/gpt2"


def test_a_rename_is_followed_only_where_names_differ() -> None:
    asked: list[str] = []

    def canonical(model_id: str) -> str | None:
        asked.append(model_id)
        return {"old/name": "new/name"}.get(model_id)

    assert check([lora("a", 0), lora("b", 1)], canonical=canonical).compatible and asked == []
    moved = check([lora("a", 0, base_model="old/name"), lora("b", 1, base_model="new/name")], canonical=canonical)
    assert moved.compatible and moved.base_model == "new/name" and asked == ["old/name", "new/name"]
    other = check([lora("a", 0, base_model="old/name"), lora("b", 1, base_model="third/name")], canonical=canonical)
    assert codes(other, "problem") == ["base_differs"]


def test_a_base_that_is_no_hub_id_is_told_by_its_last_part_and_not_passed_on() -> None:
    result = check([lora("a", 0, base_model="/home/ann/secret/llama")])
    assert result.compatible and result.base_model is None
    assert "secret" not in only(result, "base_not_on_hub").describe()


@pytest.mark.parametrize("path", ["/home/ann/secret/base", "./base", "C:\\secret\\base"])
def test_a_folder_cannot_be_asserted_as_base(path: str) -> None:
    result = check([lora("a", 0)], base=path)
    assert codes(result, "problem") == ["base_not_on_hub"] and result.base_model is None
    assert path not in only(result, "base_not_on_hub").describe()


def test_an_asserted_base_is_followed_to_its_present_id() -> None:
    result = check([lora("a", 0, base_model="openai-community/gpt2")], base="gpt2")
    assert result.base_model == "openai-community/gpt2" and result.report.findings == ()


def test_different_revisions_of_the_base_are_a_caution() -> None:
    commit = "0" * 40
    cached = f"/x/models--acme--base/snapshots/{commit}"
    result = check([lora("a", 0, base_revision="v1"), lora("b", 1, base_model=cached), lora("c", 2)])
    assert result.compatible and codes(result, "caution") == ["base_revision_differs"]
    assert commit in only(result, "base_revision_differs").seen
    assert check([lora("a", 0, base_revision="v1"), lora("b", 1)]).report.findings == ()


# --- task and tokens --------------------------------------------------------------------------------------------------


def test_another_task_blocks_until_it_is_allowed() -> None:
    adapters = [lora("a", 0), lora("b", 1, task_type="SEQ_CLS"), lora("c", 2, task_type=None)]
    assert codes(check(adapters), "problem") == ["task_differs"]
    allowed = check(adapters, allow=["task_differs"])
    assert allowed.compatible and "accepted by the user" in only(allowed, "task_differs").seen


def test_a_code_that_accepts_nothing_is_told_beside_those_that_would() -> None:
    result = check([lora("a", 0), lora("b", 1, task_type="SEQ_CLS")], allow=["task_difers"])
    assert codes(result, "problem") == ["task_differs"]
    found = only(result, "allow_unused")
    assert (found.severity, found.expected) == ("caution", "task_differs") and "task_difers" in found.seen


def test_one_id_for_two_tokens_blocks_and_one_meaning_does_not() -> None:
    tokens = lambda token: MappingProxyType({50257: token, 50258: "<end>"})
    same = check([lora("a", 0, added_tokens=tokens("<go>")), lora("b", 1, added_tokens=tokens("<go>"))])
    assert same.report.findings == ()
    clash = check([lora("a", 0, added_tokens=tokens("<go>")), lora("b", 1, added_tokens=tokens("<stop>"))])
    found = only(clash, "token_clash")
    assert (found.severity, found.adapter) == ("problem", "b")
    assert "50257" in found.seen and "<go>" in found.seen and "<stop>" in found.seen


def test_one_token_with_two_ids_is_a_caution() -> None:
    result = check([lora("a", 0, added_tokens={5: "<go>"}), lora("b", 1, added_tokens={6: "<go>", 7: "<end>"})])
    found = only(result, "token_moved")
    assert result.compatible and (found.severity, found.adapter) == ("caution", "b")
    assert "token 6 here and token 5 in a" in found.seen


def test_vocabularies_of_two_sizes_block_until_they_are_allowed() -> None:
    adapters = [lora("a", 0, vocabulary=32000), lora("b", 1), lora("c", 2, vocabulary=32002)]
    found = only(check(adapters), "vocabulary_size")
    assert found.severity == "problem" and "a: 32000 tokens; c: 32002 tokens" in found.seen
    assert check(adapters, allow=["vocabulary_size"]).compatible
    assert check(adapters[:2]).report.findings == ()


# --- shapes, coverage, layout -----------------------------------------------------------------------------------------


def test_another_shape_blocks_and_cannot_be_overruled() -> None:
    result = check([lora("a", 0), lora("b", 1, {Q: (6, 4)})], allow=["shape_differs"])
    found = only(result, "shape_differs")
    assert (found.severity, found.adapter, found.where, found.overrule) == ("problem", "b", Q, None)
    assert "[6, 4]" in found.seen and "[6, 5] as in a" in found.expected


def test_another_shape_of_the_vocabulary_is_named_as_such() -> None:
    result = check([lora("a", 0, {EMBEDDING: (8, 100)}), lora("b", 1, {EMBEDDING: (8, 101)})])
    assert codes(result, "problem") == ["vocabulary_differs"]


def test_a_linear_layer_and_an_embedding_of_one_shape_do_not_fit() -> None:
    first, second = lora("a", 0), lora("b", 1)
    second = replace(second, modules={Q: replace(second.modules[Q], kind="embedding")})
    assert codes(check([first, second]), "problem") == ["vocabulary_differs"]


def test_coverage_counts_modules_by_their_place_in_a_layer() -> None:
    layers = {f"model.layers.{i}.self_attn.q_proj": SHAPE for i in range(3)}
    result = check([lora("a", 0, layers), lora("b", 1, {**layers, V: (2, 5)}), lora("c", 2, {V: (2, 5)})])
    assert [(group.group, group.shape, group.counts) for group in result.coverage] == [
        ("self_attn.q_proj", SHAPE, (3, 3, 0)),
        ("self_attn.v_proj", (2, 5), (0, 1, 1)),
    ]
    assert "no_common_module" in codes(result, "caution")
    assert result.to_dict()["coverage"][1] == {"group": "self_attn.v_proj", "shape": (2, 5), "counts": (0, 1, 1)}


def test_partial_overlap_says_how_much_is_shared() -> None:
    result = check([lora("a", 0, {Q: SHAPE, V: SHAPE}), lora("b", 1)])
    assert codes(result, "caution") == ["partial_overlap"]
    assert only(result, "partial_overlap").seen.startswith("1 of 2 modules")


def test_a_flag_of_layout_and_a_dtype_that_differ_are_cautions() -> None:
    other = lora("b", 1, fan_in_fan_out=True)
    other = replace(other, modules={Q: replace(other.modules[Q], dtype="bfloat16")})
    result = check([lora("a", 0), other])
    assert result.compatible and codes(result, "caution") == ["fan_in_fan_out_differs", "dtype_differs"]


@pytest.mark.parametrize(("ranks", "limit"), [((16, 1), "16"), ((60, 5), "64")])
def test_a_rank_beyond_what_servers_load_is_a_caution_with_the_limit(ranks: tuple[int, int], limit: str) -> None:
    parts = [random_factors(np.random.default_rng(i), (70, 80), rank) for i, rank in enumerate(ranks)]
    adapters = [adapter_of(str(i), {Q: part}, base_model=BASE) for i, part in enumerate(parts)]
    result = check(adapters)
    assert result.total_rank == sum(ranks)
    assert f"--rank {limit}" in only(result, "serving_rank").remedy
    assert check(adapters[1:]).report.findings == ()


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["A", "B"])
def test_numbers_that_are_not_finite_block_and_name_the_module(broken: float, side: str) -> None:
    parts = {name: random_factors(np.random.default_rng(i), SHAPE, 2) for i, name in enumerate((Q, V))}
    getattr(parts[V], side)[0, 0] = broken
    result = check([adapter_of("a", parts, base_model=BASE)], allow=["not_finite"])
    found = only(result, "not_finite")
    assert (found.severity, found.where) == ("problem", V)
    assert result.norms[0] == pytest.approx(np.linalg.norm(parts[Q].delta()))


def test_a_zero_delta_is_told_as_untrained_or_partly_zero_and_never_as_nan() -> None:
    zero = lambda part: LoraFactors(part.A, np.zeros_like(part.B), part.scaling)
    full = lora("full", 0, {Q: SHAPE, V: SHAPE})
    parts = {name: full.factors(name) for name in (Q, V)}
    partly = adapter_of("partly", {Q: parts[Q], V: zero(parts[V])}, base_model=BASE)
    untrained = adapter_of("untrained", {name: zero(part) for name, part in parts.items()}, base_model=BASE)
    result = check([full, partly, untrained])
    assert result.compatible and codes(result, "caution") == ["partly_zero", "untrained"]
    assert only(result, "partly_zero").where == V
    assert result.norms == pytest.approx((math.sqrt(2), 1.0, 0.0))


@pytest.mark.parametrize(("factor", "told"), [(4.9, False), (5.1, True), (0.19, True)])
def test_an_adapter_that_drowns_the_other_is_a_caution(factor: float, told: bool) -> None:
    first, second = lora("a", 0), lora("b", 1)
    part = second.factors(Q)
    second = adapter_of("b", {Q: LoraFactors(part.A, part.B, part.scaling * factor)}, base_model=BASE)
    assert ("norms_differ" in codes(check([first, second]), "caution")) is told


def test_one_adapter_under_two_names_is_a_caution() -> None:
    twin, turned = lora("copy", 0), lora("turned", 0)
    part = turned.factors(Q)
    turned = adapter_of("turned", {Q: LoraFactors(-part.A, part.B, part.scaling)}, base_model=BASE)
    result = check([lora("a", 0), twin, turned, lora("b", 1)])
    assert result.compatible and codes(result, "caution") == ["same_adapter"]
    assert only(result, "same_adapter").adapter == "copy" and "as a" in only(result, "same_adapter").seen


def test_without_values_norms_are_unknown_and_nothing_is_read() -> None:
    def explode(module: str) -> LoraFactors:
        raise AssertionError(module)

    result = check([replace(lora("a", 0), has_values=False, load=explode), lora("b", 1)])
    assert result.compatible and result.norms[0] is None and result.norms[1] == pytest.approx(1.0)


# --- the report as a whole --------------------------------------------------------------------------------------------


def test_every_problem_is_told_at_once_and_problems_come_first() -> None:
    own = Finding("problem", "dora", "b", "use_dora", "use_dora is true", "no use_dora", "Leave this adapter out.")
    other = lora("b", 1, {Q: (6, 4), V: (3, 3)}, base_model="acme/other", task_type="SEQ_CLS", findings=(own,))
    result = check([lora("a", 0), other], allow=["dora"])
    assert codes(result, "problem") == ["dora", "base_differs", "shape_differs", "task_differs"]
    severities = [found.severity for found in result.report.findings]
    assert severities == sorted(severities, reverse=True) and "caution" in severities
    told = result.report.describe()
    assert all(found.seen in told and found.remedy in told for found in result.report.problems)
    assert result.to_dict()["compatible"] is False and len(result.to_dict()["findings"]) == len(severities)
