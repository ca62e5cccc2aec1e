"""Verifying what was published: reproduced, differs (and where), or parents gone; against the Hub double."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import yaml
from safetensors.numpy import load, save

from hub_merge import verify
from hub_merge.errors import AdapterNotFound, HubUnavailable
from hub_merge.fusion import fuse, push_fused
from hub_merge.hub import Hub
from hub_merge.pipeline import merge_to_folder, push_folder
from hub_merge.recipe import Recipe, Source
from tests.helpers import peft_config, peft_tensors
from tests.hub_double import HubDouble

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RECORD, RECIPE = "hub_merge.json", "recipe.yaml"
MODEL = "model.safetensors"
MATH, MEDICINE, BASE = "alice/math", "bob/medicine", "acme/base"
MODULES = {"model.layers.0.self_attn.q_proj": 2, "model.layers.1.self_attn.q_proj": 3}
CARD = b"---\nlicense: mit\n---\n"


def adapter(seed: int) -> dict[str, bytes]:
    ranks = {"layers.1.self_attn.q_proj": 3}
    config = peft_config(rank_pattern=ranks, target_modules=["q_proj"], base_model_name_or_path=BASE)
    tensors = peft_tensors(np.random.default_rng(seed), MODULES)
    return {CONFIG: json.dumps(config).encode(), WEIGHTS: save(tensors), "README.md": CARD}


def base_files() -> dict[str, bytes]:
    rng = np.random.default_rng(9)
    tensors = {f"{module}.weight": rng.standard_normal((6, 5)).astype(ml_dtypes.bfloat16) for module in MODULES}
    tensors["model.norm.weight"] = rng.standard_normal(5).astype(ml_dtypes.bfloat16)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
    return {
        MODEL: save(tensors),
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": b"{}",
        "README.md": CARD,
    }


def flipped(content: bytes, tensor: str) -> bytes:
    """Return a safetensors file with the lowest bit of one number of ``tensor`` turned over."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    changed = bytearray(content)
    changed[8 + int.from_bytes(content[:8], "little") + header[tensor]["data_offsets"][0]] ^= 1
    return bytes(changed)


def factor(layer: int, side: str) -> str:
    return f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight"


class Shop:
    """The Hub double with two parents and their base, and clients that have nothing in their caches."""

    def __init__(self, hub: HubDouble, folder: Path) -> None:
        self.hub, self.folder, self.clients = hub, folder, 0
        self.hub.add_repo(BASE, base_files(), owner="alice")
        self.hub.add_repo(MATH, adapter(1))
        self.hub.add_repo(MEDICINE, adapter(2))

    def client(self, user: str | None = None) -> Hub:
        self.clients += 1
        token = self.hub.token(user) if user else False
        return Hub(endpoint=self.hub.endpoint, token=token, cache_dir=self.folder / f"cache{self.clients}")

    def publish(self, method: str = "sum", rank: int | None = None) -> str:
        recipe = Recipe(method, (Source(MATH), Source(MEDICINE, -0.5)), rank=rank)
        merge_to_folder(recipe, self.folder / method, hub=self.client())
        return push_folder(self.folder / method, f"alice/{method}", hub=self.client("alice")).repo_id

    def publish_fused(self) -> str:
        fuse(MATH, self.folder / "fused", hub=self.client())
        return push_fused(self.folder / "fused", "alice/fused", hub=self.client("alice")).repo_id

    def verify(self, repo_id: str, user: str | None = None) -> Any:
        return verify(repo_id, hub=self.client(user))


@pytest.fixture
def shop(hub: HubDouble, tmp_path: Path) -> Shop:
    return Shop(hub, tmp_path)


def places(result: Any) -> set[tuple[str, str]]:
    return {(found.source, found.file) for found in result.differences}


def tensors(result: Any) -> set[str]:
    return {name for found in result.differences for name in found.tensors}


# --- composites -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "rank", "exact"), [("sum", None, True), ("mean", None, True), ("svd", 2, False)])
def test_a_published_composite_is_reproduced(method: str, rank: int | None, exact: bool, shop: Shop) -> None:
    result = shop.verify(shop.publish(method, rank))
    assert (result.verdict, result.exact, result.differences, result.missing) == ("reproduced", exact, (), ())
    assert result.proof.passed and result.proof.tolerance <= 1e-6


@pytest.mark.parametrize("method", ["sum", "svd"])
def test_one_bit_of_a_tensor_of_the_composite_is_found(method: str, shop: Shop) -> None:
    published = shop.publish(method, None if method == "sum" else 2)
    weights = flipped(shop.hub.file(published, WEIGHTS), factor(1, "B"))
    shop.hub.push(published, {WEIGHTS: weights}, title="Improve")
    result = shop.verify(published)
    assert result.verdict == "differs" and places(result) == {("", WEIGHTS)}
    assert tensors(result) == {factor(1, "B")}
    assert result.proof.passed  # a last bit is within the rounding of the dtype; the bytes are not those of the sum


def test_a_record_that_was_changed_along_with_the_weights_does_not_help(shop: Shop) -> None:
    published = shop.publish()
    weights = flipped(shop.hub.file(published, WEIGHTS), factor(0, "A"))
    record = json.loads(shop.hub.file(published, RECORD))
    record["output"]["files"][-1] |= {"sha256": hashlib.sha256(weights).hexdigest()}
    shop.hub.push(published, {WEIGHTS: weights, RECORD: json.dumps(record).encode()})
    result = shop.verify(published)
    assert result.verdict == "differs" and places(result) == {("", WEIGHTS)}
    assert tensors(result) == {factor(0, "A")}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("weight: 1.0", "weight: 2.0", "not the recipe that was recorded: models"),
        ("merge_method: sum", "merge_method: mean", "not the recipe that was recorded: merge_method"),
        ("seed: 0", "seed: 1\nallow: [base_differs]", "not the recipe that was recorded: seed, allow"),
        ("seed: 0", "sead: 0", "no recipe that can be read"),
        ("seed: 0", "seed: [", "no recipe that can be read"),
        ("seed: 0", "seed: 0  # \udcff", "no recipe that can be read"),
    ],
)
def test_another_recipe_than_the_recorded_one_is_found(old: str, new: str, told: str, shop: Shop) -> None:
    published = shop.publish()
    recipe = shop.hub.file(published, RECIPE).decode()
    assert old in recipe
    shop.hub.push(published, {RECIPE: recipe.replace(old, new).encode(errors="surrogateescape")})
    result = shop.verify(published)
    assert result.verdict == "differs" and result.proof.passed
    assert [(found.source, found.file, found.detail) for found in result.differences] == [("", RECIPE, told)]


def test_filters_in_another_order_are_another_recipe(shop: Shop) -> None:
    weight = {"layers.0": 0.5, "q_proj": 2.0}  # the first that is found in the name of a module counts
    merge_to_folder(Recipe("sum", (Source(MATH, weight), Source(MEDICINE))), shop.folder / "out", hub=shop.client())
    written = yaml.safe_load((shop.folder / "out" / RECIPE).read_text())
    written["models"][0]["parameters"]["weight"].reverse()
    (shop.folder / "out" / RECIPE).write_text(yaml.safe_dump(written))
    assert [found.file for found in verify(shop.folder / "out", hub=shop.client()).differences] == [RECIPE]


@pytest.mark.parametrize("form", ["json", "sorted", "defaults", "absent"])
def test_the_same_recipe_written_another_way_is_the_same(form: str, shop: Shop) -> None:
    merge_to_folder(Recipe("sum", (Source(MATH), Source(MEDICINE, -0.5))), shop.folder / "out", hub=shop.client())
    file = shop.folder / "out" / RECIPE
    recipe = yaml.safe_load(file.read_text())
    if form == "json":
        file.write_text(json.dumps(recipe, indent=1))
    elif form == "sorted":
        file.write_text("# Our merge.\n" + yaml.safe_dump(recipe, sort_keys=True, default_flow_style=True))
    elif form == "defaults":
        file.write_text(yaml.safe_dump({**recipe, "allow": [], "parameters": {}, "profile": "portable"}))
    else:
        file.unlink()
    assert verify(shop.folder / "out", hub=shop.client()).verdict == "reproduced"


def test_one_byte_of_a_parent_is_found_with_what_it_changes(shop: Shop) -> None:
    published = shop.publish()
    commit = shop.hub.repo(MEDICINE).head.oid
    shop.hub.tamper(MEDICINE, WEIGHTS, flipped(shop.hub.file(MEDICINE, WEIGHTS), factor(1, "A")), commit)
    result = shop.verify(published)
    assert result.verdict == "differs"
    assert places(result) == {("medicine", WEIGHTS), ("", WEIGHTS)}
    assert tensors(result) == {factor(1, "A")}
    (told,) = (found for found in result.differences if found.source)
    recorded = json.loads(shop.hub.file(published, RECORD))["parents"][1]["files"][-1]["sha256"]
    assert recorded[:12] in told.detail and "parent medicine: adapter_model.safetensors" in told.describe()


def test_a_parent_that_is_no_adapter_any_more_is_named(shop: Shop) -> None:
    published = shop.publish()
    shop.hub.tamper(MEDICINE, WEIGHTS, b"\xff" * 200, shop.hub.repo(MEDICINE).head.oid)
    result = shop.verify(published)
    assert result.verdict == "differs" and result.proof is None
    assert {found.source for found in result.differences} == {"medicine"}


def test_another_config_of_a_parent_at_its_commit_is_found(shop: Shop) -> None:
    published = shop.publish()
    config = json.loads(shop.hub.file(MATH, CONFIG)) | {"lora_alpha": 5}
    shop.hub.tamper(MATH, CONFIG, json.dumps(config).encode(), shop.hub.repo(MATH).head.oid)
    result = shop.verify(published)
    assert result.verdict == "differs" and ("math", CONFIG) in places(result)
    assert not result.proof.passed


def test_a_parent_that_moved_on_is_taken_at_its_commit(shop: Shop) -> None:
    published = shop.publish()
    shop.hub.push(MATH, adapter(7), title="Train on")
    assert shop.verify(published).verdict == "reproduced"


def test_every_parent_that_is_gone_is_named(shop: Shop) -> None:
    published = shop.publish()
    commits = {name: shop.hub.repo(name).head.oid for name in (MATH, MEDICINE)}
    shop.hub.delete_repo(MEDICINE)
    result = shop.verify(published)
    assert (result.verdict, result.differences, result.proof) == ("parents gone", (), None)
    assert [(gone.source, gone.model) for gone in result.missing] == [("medicine", f"{MEDICINE}@{commits[MEDICINE]}")]
    shop.hub.delete_repo(MATH)
    assert [gone.source for gone in shop.verify(published).missing] == ["math", "medicine"]


def test_a_parent_that_is_closed_is_gone_for_those_who_may_not_see_it(shop: Shop) -> None:
    published = shop.publish()
    shop.hub.repo(MEDICINE).private = True
    assert shop.verify(published).verdict == "parents gone"
    assert shop.verify(published, "bob").verdict == "reproduced"


def test_what_differs_counts_more_than_what_is_gone(shop: Shop) -> None:
    published = shop.publish()
    shop.hub.push(published, {WEIGHTS: flipped(shop.hub.file(published, WEIGHTS), factor(0, "A"))})
    shop.hub.delete_repo(MEDICINE)
    result = shop.verify(published)
    assert result.verdict == "differs" and places(result) == {("", WEIGHTS)}
    assert [gone.source for gone in result.missing] == ["medicine"]


def test_a_hub_that_does_not_answer_is_no_verdict(shop: Shop) -> None:
    published = shop.publish()
    shop.hub.faults.add(f"^GET /api/models/{MATH}/", status=503, times=None)
    with pytest.raises(HubUnavailable):
        shop.verify(published)


def test_a_repository_without_a_record_is_told_as_such(shop: Shop) -> None:
    with pytest.raises(AdapterNotFound, match=r"hub_merge\.json"):
        shop.verify(MATH)


# --- fused models -----------------------------------------------------------------------------------------------------


def test_a_published_fused_model_is_reproduced(shop: Shop) -> None:
    result = shop.verify(shop.publish_fused())
    assert (result.verdict, result.exact, result.differences) == ("reproduced", False, ())
    assert result.proof.passed and result.proof.changed == len(MODULES)


@pytest.mark.parametrize("tensor", ["model.norm.weight", "model.layers.1.self_attn.q_proj.weight"])
def test_one_bit_of_a_tensor_of_a_fused_model_is_found(tensor: str, shop: Shop) -> None:
    published = shop.publish_fused()
    shop.hub.push(published, {MODEL: flipped(shop.hub.file(published, MODEL), tensor)})
    result = shop.verify(published)
    assert result.verdict == "differs" and tensors(result) == {tensor}
    assert ("", MODEL) in places(result)


def test_another_tokenizer_of_a_fused_model_is_found_although_the_record_was_changed_too(shop: Shop) -> None:
    published = shop.publish_fused()
    record = json.loads(shop.hub.file(published, RECORD))
    entry = next(file for file in record["output"]["files"] if file["name"] == "tokenizer.json")
    entry["sha256"] = hashlib.sha256(b"[]").hexdigest()
    shop.hub.push(published, {"tokenizer.json": b"[]", RECORD: json.dumps(record).encode()})
    result = shop.verify(published)
    assert result.verdict == "differs" and places(result) == {("", "tokenizer.json")}


def test_a_changed_base_and_a_changed_adapter_of_a_fused_model_are_told_apart(shop: Shop) -> None:
    published = shop.publish_fused()
    weights = shop.hub.file(BASE, MODEL)
    shop.hub.tamper(BASE, MODEL, flipped(weights, "model.norm.weight"), shop.hub.repo(BASE).head.oid)
    result = shop.verify(published)
    assert (BASE, MODEL) in places(result) and tensors(result) == {"model.norm.weight"}
    shop.hub.tamper(BASE, MODEL, weights, shop.hub.repo(BASE).head.oid)
    changed = load(shop.hub.file(MATH, WEIGHTS))
    changed[factor(1, "A")] = 2 * changed[factor(1, "A")]
    shop.hub.tamper(MATH, WEIGHTS, save(changed), shop.hub.repo(MATH).head.oid)
    result = shop.verify(published)
    assert ("math", WEIGHTS) in places(result)
    assert tensors(result) == {"model.layers.1.self_attn.q_proj.weight"}


@pytest.mark.parametrize("gone", [BASE, MATH])
def test_a_fused_model_whose_base_or_adapter_is_gone_says_which(gone: str, shop: Shop) -> None:
    published = shop.publish_fused()
    shop.hub.delete_repo(gone)
    result = shop.verify(published)
    assert result.verdict == "parents gone"
    assert [missing.model.partition("@")[0] for missing in result.missing] == [gone]


def test_a_fused_model_of_folders_is_verified_with_them(tmp_path: Path) -> None:
    for name, files in (("base", base_files()), ("math", adapter(1))):
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file).write_bytes(content)
    hub = Hub(offline=True)
    fuse(tmp_path / "math", tmp_path / "fused", base=tmp_path / "base", hub=hub)
    result = verify(tmp_path / "fused", hub=hub)
    assert result.verdict == "parents gone"
    assert sorted(missing.source for missing in result.missing) == ["base", "math"]
    given = [tmp_path / "base", tmp_path / "math"]
    assert verify(tmp_path / "fused", parents=given, hub=hub).verdict == "reproduced"
    (tmp_path / "base" / MODEL).write_bytes(flipped((tmp_path / "base" / MODEL).read_bytes(), "model.norm.weight"))
    assert ("base", MODEL) in places(verify(tmp_path / "fused", parents=given, hub=hub))
