"""LoRA adapters out of two full models, against the dense singular value decomposition of their difference."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from hub_merge import lowrank
from hub_merge.adapter import Adapter
from hub_merge.errors import MergeError, OutputExists
from hub_merge.extraction import extract
from hub_merge.fusion import fuse
from hub_merge.hub import Hub
from tests.helpers import Dense, fill_disk, relative_error
from tests.test_fusion import Arrays, write_model

OFFLINE = Hub(offline=True)
Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"


def base_tensors(rng: np.random.Generator, dtype: Any = np.float32) -> Arrays:
    shapes = {
        "model.embed_tokens.weight": (11, 20),
        f"{Q}.weight": (20, 20),
        f"{UP}.weight": (30, 20),
        "model.layers.1.mlp.up_proj.weight": (30, 20),
        "model.norm.weight": (20,),
        "lm_head.weight": (11, 20),
    }
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def graded(rng: np.random.Generator, shape: tuple[int, int]) -> Dense:
    """Return a matrix with singular values 1, 1/2, 1/4, …"""
    rank = min(shape)
    U, _ = np.linalg.qr(rng.standard_normal((shape[0], rank)))
    V, _ = np.linalg.qr(rng.standard_normal((shape[1], rank)))
    return (U * 0.5 ** np.arange(rank)) @ V.T


def best(matrix: NDArray[Any], rank: int) -> Dense:
    u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


@pytest.fixture
def models(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, Path, Arrays]:
    """A tuned model, its base, and what was added; the second up_proj, and head, did not change."""
    base = base_tensors(rng)
    added: Arrays = {f"{name}.weight": graded(rng, base[f"{name}.weight"].shape) for name in (Q, UP)}
    added |= {"model.norm.weight": np.ones(20), "model.embed_tokens.weight": np.ones((11, 20))}
    tuned = {name: (tensor + added.get(name, 0)).astype(np.float32) for name, tensor in base.items()}
    return write_model(tmp_path / "tuned", tuned, shards=2), write_model(tmp_path / "base", base), added


@pytest.mark.parametrize("small", [2**18, 0], ids=["exact", "randomised"])
def test_each_module_is_the_closest_update_of_the_rank(
    small: int, models: tuple[Path, Path, Arrays], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowrank, "SMALL", small)
    monkeypatch.setattr(lowrank, "OVERSAMPLING", 2)  # or the search space would be the whole space
    monkeypatch.setattr("hub_merge.extraction.BLOCK", 100)
    tuned, base, added = models
    result = extract(tuned, base, tmp_path / "out", rank=3, hub=OFFLINE)
    adapter = Adapter.from_pretrained(tmp_path / "out")
    assert set(adapter.modules) == {Q, UP}
    for module in (Q, UP):
        assert relative_error(adapter.factors(module).delta(), best(added[f"{module}.weight"], 3)) < 1e-4
    share = (1 + 1 / 4 + 1 / 16) / (1 / (1 - 1 / 4))  # of the squares 1, 1/4, 1/16, …
    assert result.energy == pytest.approx(share, rel=1e-4)
    assert [module.energy for module in result.modules] == pytest.approx([share, share], rel=1e-4)
    assert result.not_carried == ("model.embed_tokens.weight", "model.norm.weight")


def test_the_smallest_rank_that_keeps_the_energy_is_taken(models: tuple[Path, Path, Arrays], tmp_path: Path) -> None:
    tuned, base, _ = models
    assert extract(tuned, base, tmp_path / "a", rank=8, energy=0.9, hub=OFFLINE).rank == 2  # 1 + 1/4 of 4/3 is 0.94
    assert extract(tuned, base, tmp_path / "b", rank=8, energy=0.95, hub=OFFLINE).rank == 3
    assert extract(tuned, base, tmp_path / "c", rank=2, energy=1.0, hub=OFFLINE).rank == 2
    assert Adapter.from_pretrained(tmp_path / "a").rank == 2


def test_modules_are_chosen_by_parts_of_their_names(models: tuple[Path, Path, Arrays], tmp_path: Path) -> None:
    tuned, base, _ = models
    for name, choice in (("in", {"include": ["self_attn"]}), ("out", {"exclude": ["mlp"]})):
        result = extract(tuned, base, tmp_path / name, rank=2, hub=OFFLINE, **choice)  # type: ignore[arg-type]
        assert [module.name for module in result.modules] == [Q]
        assert f"{UP}.weight" in result.not_carried
    with pytest.raises(MergeError, match="No matrix"):
        extract(tuned, base, tmp_path / "none", rank=2, include=["lm_head"], hub=OFFLINE)


def test_a_suffix_targets_modules_only_where_it_hits_no_other(
    models: tuple[Path, Path, Arrays], tmp_path: Path
) -> None:
    tuned, base, _ = models
    extract(tuned, base, tmp_path / "out", rank=2, hub=OFFLINE)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == [UP, "q_proj"]  # the up_proj of layer 1 did not change
    assert config["task_type"] == "CAUSAL_LM"


def test_what_is_extracted_and_fused_again_is_the_tuned_model(tmp_path: Path, rng: np.random.Generator) -> None:
    base = base_tensors(rng, ml_dtypes.bfloat16)
    step = (rng.standard_normal((20, 2)) @ rng.standard_normal((2, 20))).astype(ml_dtypes.bfloat16)
    tuned = {**base, f"{Q}.weight": base[f"{Q}.weight"] + step}
    folders = write_model(tmp_path / "tuned", tuned), write_model(tmp_path / "base", base)
    extract(*folders, tmp_path / "out", rank=20, hub=OFFLINE)
    fuse(tmp_path / "out", tmp_path / "again", base=folders[1], hub=OFFLINE)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert {name: tensor.tobytes() for name, tensor in again.items()} == {n: t.tobytes() for n, t in tuned.items()}


def test_a_checkpoint_without_the_models_prefix_gives_the_names_of_the_whole_model(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
    base = {"h.0.attn.c_attn.weight": rng.standard_normal((6, 18)).astype(np.float32)}
    added = graded(rng, (6, 18))
    tuned = {f"transformer.{name}": (tensor + added).astype(np.float32) for name, tensor in base.items()}
    folders = write_model(tmp_path / "tuned", tuned, config), write_model(tmp_path / "base", base, config)
    extract(*folders, tmp_path / "out", rank=6, hub=OFFLINE)
    adapter = Adapter.from_pretrained(tmp_path / "out")
    assert adapter.fan_in_fan_out
    assert relative_error(adapter.factors("transformer.h.0.attn.c_attn").delta(), added.T) < 1e-6
    bare = write_model(tmp_path / "bare", {name: 2 * tensor for name, tensor in base.items()}, config)
    extract(bare, folders[1], tmp_path / "two", rank=1, hub=OFFLINE)
    assert set(Adapter.from_pretrained(tmp_path / "two").modules) == {"transformer.h.0.attn.c_attn"}


def test_one_seed_gives_the_same_bytes_and_the_card_says_what_is_kept(
    models: tuple[Path, Path, Arrays], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowrank, "SMALL", 0)
    tuned, base, _ = models
    for name in "ab":
        extract(tuned, base, tmp_path / name, rank=2, seed=5, hub=OFFLINE)
    first, second = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "ab")
    assert first == second
    card = (tmp_path / "a" / "README.md").read_text()
    assert "closest update of rank 2 to `./tuned` minus `./base`" in card
    assert re.search(r"keeps 93\.[78]% of the squared norm", card)  # 1 + 1/4 of 4/3
    assert "`model.embed_tokens.weight`, `model.norm.weight`" in card
    assert str(tmp_path) not in card


def test_a_card_that_cannot_be_added_to_stays_whole(
    models: tuple[Path, Path, Arrays], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch)
    with pytest.raises(OSError, match="No space"):
        extract(*models[:2], tmp_path / "out", rank=2, hub=OFFLINE)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---") and "Extracted from" not in card
    assert not [*(tmp_path / "out").glob(".hub-merge*")]


def test_asking_for_what_cannot_be_is_told(models: tuple[Path, Path, Arrays], tmp_path: Path) -> None:
    tuned, base, _ = models
    with pytest.raises(MergeError, match="No matrix"):
        extract(base, base, tmp_path / "out", rank=2, hub=OFFLINE)
    with pytest.raises(MergeError, match="out of range"):
        extract(tuned, base, tmp_path / "out", rank=2, energy=1.5, hub=OFFLINE)
    with pytest.raises(OutputExists):
        extract(tuned, base, base, rank=2, hub=OFFLINE)


def test_a_difference_that_is_not_finite_names_its_tensor(tmp_path: Path, rng: np.random.Generator) -> None:
    base = base_tensors(rng)
    tuned = {**base, f"{Q}.weight": np.full((20, 20), np.nan, np.float32)}
    folders = write_model(tmp_path / "tuned", tuned), write_model(tmp_path / "base", base)
    with pytest.raises(MergeError, match=r"q_proj\.weight: tuned - base is not finite"):
        extract(*folders, tmp_path / "out", rank=2, hub=OFFLINE)


def test_the_commands_fuse_and_extract_are_each_others_way_back(
    models: tuple[Path, Path, Arrays], tmp_path: Path
) -> None:
    def run(*arguments: str) -> Any:
        command = [sys.executable, "-m", "hub_merge", *arguments, "--json"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    extracted = run("extract", "tuned", "base", "--rank", "20", "-o", "lora", "--exclude", "embed")
    assert extracted["rank"] == 20
    assert extracted["not_carried"] == ["model.embed_tokens.weight", "model.norm.weight"]
    fused = run("fuse", "./lora", "--base", "./base", "-o", "full")
    assert fused["proof"]["passed"]
    assert fused["changed"] == 2
    assert (tmp_path / "full" / "model.safetensors").is_file()
