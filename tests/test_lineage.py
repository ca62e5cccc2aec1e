"""What an adapter was trained on, what that stands for, and how that is known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hub_merge.adapter import Adapter
from hub_merge.bases import same_name, without_quantisation
from hub_merge.compat import Compatibility, check
from hub_merge.hub import Hub
from hub_merge.pipeline import inspect_reference, merge, merge_to_folder
from hub_merge.provenance import read_record
from hub_merge.recipe import Recipe, Source
from tests.helpers import adapter_of, peft_config, peft_tensors, random_factors, write_adapter
from tests.hub_double import HubDouble

LAYERS = [f"model.layers.{layer}.self_attn.{name}" for layer in range(3) for name in ("q_proj", "v_proj")]
LLAMA = "meta-llama/Llama-3.2-1B-Instruct"
COPY = "unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit"


def lora(name: str, base: str | None, modules: list[str] = LAYERS, shape: tuple[int, int] = (6, 5)) -> Adapter:
    rng = np.random.default_rng(sum(map(ord, name)))
    return adapter_of(name, {module: random_factors(rng, shape, 2) for module in modules}, base_model=base)


def told(result: Compatibility) -> list[tuple[str, str, str]]:
    return [(found.severity, found.code, found.adapter) for found in result.report.findings]


def stand(result: Compatibility) -> list[tuple[str, str | None, str]]:
    return [(base.trained_on, base.stands_for, base.how) for base in result.bases]


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("copy", "whole"),
    [
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct"),
        ("unsloth/gemma-3-270m-it-unsloth-bnb-4bit", "unsloth/gemma-3-270m-it"),
        ("unsloth/llama-3-8b-bnb-4bit", "unsloth/llama-3-8b"),
        ("TheBloke/Mistral-7B-v0.1-GPTQ", "TheBloke/Mistral-7B-v0.1"),
        ("TheBloke/Llama-2-7B-Chat-AWQ", "TheBloke/Llama-2-7B-Chat"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-8B"),
        ("bartowski/Phi-3-mini-4k-instruct-GGUF", "bartowski/Phi-3-mini-4k-instruct"),
        ("mlx-community/Qwen3-0.6B-4bit", "mlx-community/Qwen3-0.6B"),
        ("RedHatAI/Llama-3.1-8B-Instruct-quantized.w4a16", "RedHatAI/Llama-3.1-8B-Instruct"),
        ("RedHatAI/Llama-3.1-8B-Instruct-FP8-dynamic", "RedHatAI/Llama-3.1-8B-Instruct"),
        ("turboderp/Llama-3-8B-exl2-4.0bpw", "turboderp/Llama-3-8B"),
        ("hugging-quants/Llama-3.1-8B-Instruct-AWQ-INT4", "hugging-quants/Llama-3.1-8B-Instruct"),
        ("ISTA-DASLab/Llama-2-7b-AQLM-2Bit-1x16-hf", None),
        ("meta-llama/Llama-3.2-1B-Instruct", None),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", None),
        ("acme/model-4k", None),
        ("acme/int-4b", None),
        ("acme/unsloth-dynamic", None),
        ("acme/-bnb-4bit", None),
    ],
)
def test_names_of_quantised_copies_are_known_by_their_ending(copy: str, whole: str | None) -> None:
    assert without_quantisation(copy) == whole


def test_one_name_is_told_apart_from_another_by_more_than_owner_case_and_ending() -> None:
    assert same_name(COPY, LLAMA) and same_name("TheBloke/MISTRAL-7B-v0.1-GPTQ", "mistralai/Mistral-7B-v0.1")
    assert not same_name(COPY, "meta-llama/Llama-3.2-1B")


# --- conclusions ------------------------------------------------------------------------------------------------------


def test_a_quantised_copy_by_name_alone_is_taken_with_a_word_of_the_assumption() -> None:
    result = check([lora("a", COPY), lora("b", LLAMA)])
    assert result.compatible and result.base_model == LLAMA
    assert stand(result) == [(COPY, LLAMA, "name"), (LLAMA, LLAMA, "stated")]
    assert told(result) == [("caution", "base_by_name", "a")]
    assert f"--base {LLAMA}" in result.report.findings[0].remedy
    assert [row["stands_for"] for row in result.to_dict()["bases"]] == [LLAMA, LLAMA]


def test_confirming_the_base_ends_the_assumption() -> None:
    result = check([lora("a", COPY), lora("b", LLAMA)], base=LLAMA)
    assert result.compatible and told(result) == [("caution", "base_asserted", "")]
    assert stand(result) == [(COPY, LLAMA, "asserted"), (LLAMA, LLAMA, "stated")]


def test_copies_of_two_models_or_of_none_that_is_named_block() -> None:
    assert told(check([lora("a", COPY), lora("b", "meta-llama/Llama-3.2-1B")]))[0] == ("problem", "base_differs", "")
    two = check([lora("a", "unsloth/x-bnb-4bit"), lora("b", "TheBloke/x-GPTQ")])
    assert not two.compatible and two.base_model is None
    doubtful = check([lora("a", "unsloth/x-bnb-4bit"), lora("b", "one/x"), lora("c", "two/x")])
    assert not doubtful.compatible


def test_a_copy_whose_original_nobody_names_is_told() -> None:
    result = check([lora("a", COPY), lora("b", COPY)])
    assert result.compatible and result.base_model == COPY
    assert told(result) == [("caution", "base_quantised", "a"), ("caution", "base_quantised", "b")]


def test_the_card_of_a_copy_is_believed_before_its_name() -> None:
    cards: Mapping[str, str] = {"x/odd-name-GGUF": LLAMA, COPY: "other/model"}
    result = check([lora("a", "x/odd-name-GGUF"), lora("b", LLAMA)], original=cards.get)
    assert result.compatible and stand(result)[0] == ("x/odd-name-GGUF", LLAMA, "card")
    assert told(result) == [("caution", "base_copy", "a")]
    assert not check([lora("a", COPY), lora("b", LLAMA)], original=cards.get).compatible


@pytest.mark.parametrize("base", [None, "/home/ann/secret/llama", "./llama", "C:\\secret\\llama", "llama-tuned"])
def test_a_base_that_is_no_id_is_judged_by_modules_and_shapes(base: str | None) -> None:
    result = check([lora("a", LLAMA), lora("b", base)])
    assert result.compatible and result.base_model == LLAMA
    assert stand(result)[1][1:] == (LLAMA, "shape")
    assert told(result) == [("caution", "base_by_shape", "b")]
    assert "secret" not in json.dumps(result.to_dict())


@pytest.mark.parametrize(
    ("modules", "shape"),
    [
        (LAYERS[:4], (6, 5)),  # fewer layers
        ([*LAYERS, "model.layers.3.self_attn.q_proj"], (6, 5)),  # more layers
        (LAYERS, (6, 4)),  # another width
        (["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"], (6, 5)),  # nothing to compare
        (["transformer.h.0.self_attn.q_proj"], (6, 5)),  # another architecture
    ],
)
def test_an_unknown_base_whose_modules_differ_blocks(modules: list[str], shape: tuple[int, int]) -> None:
    result = check([lora("a", LLAMA), lora("b", None, modules, shape)])
    assert ("problem", "base_unknown", "") in told(result) and result.base_model is None


def test_an_unknown_base_beside_two_known_ones_is_not_guessed() -> None:
    result = check([lora("a", LLAMA), lora("b", "acme/other"), lora("c", None)])
    assert not result.compatible and stand(result)[2][1:] == (None, "unknown")


def test_a_path_into_the_cache_is_the_model_at_its_commit() -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    cached = f"/root/.cache/huggingface/hub/models--meta-llama--Llama-3.2-1B-Instruct/snapshots/{commit}"
    result = check([lora("a", cached), lora("b", LLAMA)])
    assert result.report.findings == () and result.base_model == LLAMA
    assert (result.bases[0].how, result.bases[0].revision) == ("stated", commit)


# --- what cards on the Hub say ----------------------------------------------------------------------------------------


def card(base: str, relation: str | None = None) -> dict[str, bytes]:
    stated = f"base_model: {base}\n" + (f"base_model_relation: {relation}\n" if relation else "")
    return {"README.md": f"---\n{stated}---\n".encode(), "config.json": b"{}"}


@pytest.fixture
def client(hub_lfs: HubDouble, tmp_path: Path) -> Hub:
    return Hub(token=False, endpoint=hub_lfs.endpoint, cache_dir=tmp_path / "cache", retries=0)


def test_cards_are_followed_to_the_original_through_copies_and_renames(hub_lfs: HubDouble, client: Hub) -> None:
    hub_lfs.add_repo("acme/base", {"config.json": b"{}"})
    hub_lfs.add_repo("bob/base-mirror", card("acme/old-name", "quantized"))
    hub_lfs.add_repo("alice/any-name", card("bob/base-mirror", "quantized"))
    hub_lfs.renames["acme/old-name"] = "acme/base"
    assert client.original("alice/any-name") == client.original("bob/base-mirror") == "acme/base"
    assert client.original("acme/base") is None and client.original("acme/absent") is None


def test_a_fine_tune_is_no_copy_but_a_mirror_of_one_name_is(hub_lfs: HubDouble, client: Hub) -> None:
    hub_lfs.add_repo("acme/base", {"config.json": b"{}"})
    hub_lfs.add_repo("bob/tuned", card("acme/base"))
    hub_lfs.add_repo("bob/Base", card("acme/base"))
    hub_lfs.add_repo("bob/base-GPTQ", card("acme/base", "finetune"))
    assert [client.original(f"bob/{name}") for name in ("tuned", "Base", "base-GPTQ")] == [
        None,
        "acme/base",
        "acme/base",
    ]


def test_cards_that_lead_in_a_circle_or_too_far_end(hub_lfs: HubDouble, client: Hub) -> None:
    hub_lfs.add_repo("alice/one", card("alice/two", "quantized"))
    hub_lfs.add_repo("alice/two", card("alice/one", "quantized"))
    hub_lfs.add_repo("alice/self", card("alice/self", "quantized"))
    for number in range(50):
        hub_lfs.add_repo(f"alice/chain{number}", card(f"alice/chain{number + 1}", "quantized"))
    assert client.original("alice/one") == "alice/two" and client.original("alice/self") is None
    before = len(hub_lfs.requests)
    assert client.original("alice/chain0") == "alice/chain4"
    assert len(hub_lfs.requests) - before <= 6


@pytest.fixture
def adapters(tmp_path: Path) -> dict[str, Path]:
    """One adapter on the original, one on a copy."""
    made = {}
    for seed, (name, base) in enumerate({"math": "acme/base", "medicine": "bob/four-bits"}.items()):
        config: dict[str, Any] = peft_config(base_model_name_or_path=base, target_modules=["q_proj", "v_proj"])
        tensors = peft_tensors(np.random.default_rng(seed), dict.fromkeys(LAYERS, 2))
        made[name] = write_adapter(tmp_path / name, tensors, config)
    return made


def test_a_merge_over_a_copy_names_the_original_and_records_both(
    hub_lfs: HubDouble, client: Hub, adapters: dict[str, Path], tmp_path: Path
) -> None:
    hub_lfs.add_repo("acme/base", {"config.json": b"{}"})
    hub_lfs.add_repo("bob/four-bits", card("acme/base", "quantized"))
    recipe = Recipe("sum", tuple(Source(str(folder)) for folder in adapters.values()))
    merge_to_folder(recipe, tmp_path / "out", hub=client)
    record = read_record(tmp_path / "out")
    assert record.base_model == "acme/base"
    assert [(p.base_model, p.base_stands_for) for p in record.parents] == [
        ("acme/base", "acme/base"),
        ("bob/four-bits", "acme/base"),
    ]
    assert "base_copy" in {found["code"] for found in record.findings}
    assert "bob/four-bits" in (tmp_path / "out" / "README.md").read_text()
    opened, base = inspect_reference(str(adapters["medicine"]), hub=client)
    assert opened.adapter.base_model == base.trained_on == "bob/four-bits"
    assert base.stands_for == "bob/four-bits"  # its name does not say that it is a copy, so nobody was asked


def test_a_hub_that_does_not_answer_leaves_the_names_as_they_are(adapters: dict[str, Path]) -> None:
    opened = [Adapter.from_pretrained(folder) for folder in adapters.values()]
    with pytest.raises(Exception, match="base_differs"):
        merge(opened)
