"""What serving engines make of a composite, by their documented rules, and the card's usage block carried out.

The two readers here follow what the engines are documented to do and share no code with ours: vLLM's ``PEFTHelper`` and
llama.cpp's ``convert_lora_to_gguf.py`` with the scale that llama.cpp applies.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from hub_merge import Adapter, list_methods
from hub_merge.card import render_card
from hub_merge.composite import Composite
from hub_merge.errors import IncompatibleAdapters, MergeError
from hub_merge.hub import Hub
from hub_merge.pipeline import merge, merge_to_folder, save
from hub_merge.provenance import read_record
from hub_merge.ranks import Rank
from hub_merge.recipe import Recipe, Source
from tests.helpers import Dense, peft_config, peft_tensors, relative_error, write_adapter

Q, K, DOWN = (f"model.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"))
PREFIX = "base_model.model."
VLLM_RANKS = (8, 16, 32, 64, 128, 256)
COMMON = {"base_model_name_or_path": "acme/base", "task_type": "CAUSAL_LM"}


class Refused(Exception):
    """An engine does not load the files."""


# --- the engines ------------------------------------------------------------------------------------------------------


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return config and tensors."""
    return json.loads((folder / "adapter_config.json").read_text()), load_file(folder / "adapter_model.safetensors")


def products(tensors: Mapping[str, Any], scale: Callable[[int], float]) -> dict[str, Dense]:
    """Return ``scale(rank) * B @ A`` of every module."""
    deltas = {}
    for name, A in tensors.items():
        if name.endswith(".lora_A.weight"):
            B = tensors[name.replace(".lora_A.", ".lora_B.")]
            module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            deltas[module] = scale(len(A)) * B.astype(np.float64) @ A.astype(np.float64)
    return deltas


def vllm(folder: Path, max_lora_rank: int = 16) -> dict[str, Dense]:
    """Return the deltas that vLLM applies; it looks at seven fields of the config and has one scale for all modules."""
    config, tensors = read(folder)
    rank, alpha = config["r"], config["lora_alpha"]
    assert max_lora_rank in VLLM_RANKS
    if config.get("modules_to_save"):
        raise Refused("vLLM only supports modules_to_save being None.")
    if config.get("use_dora"):
        raise Refused("vLLM does not yet support DoRA.")
    if config.get("bias", "none") != "none":
        raise Refused("Adapter bias cannot be used without bias_enabled.")
    if rank > max_lora_rank:
        raise Refused(f"LoRA rank {rank} is greater than max_lora_rank {max_lora_rank}.")
    if not isinstance(config["target_modules"], list):
        raise Refused("The names of the target modules are compared, not matched.")
    suffixes = {target.rpartition(".")[2] for target in config["target_modules"]}
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    deltas = products(tensors, lambda _: scale)
    if strange := {module for module in deltas if module.rpartition(".")[2] not in suffixes}:
        raise Refused(f"Unexpected modules {strange}.")
    if left := [name for name in tensors if not name.endswith((".lora_A.weight", ".lora_B.weight"))]:
        raise Refused(f"{left[0]} is unsupported LoRA weight")
    return deltas


def llama_cpp(folder: Path) -> dict[str, Dense]:
    """Return the deltas that llama.cpp applies to the converted file: its one alpha over the rank of each tensor."""
    config, tensors = read(folder)
    for name in tensors:
        is_lora = ".lora_A.weight" in name or ".lora_B.weight" in name
        is_kept = ".base_layer.weight" in name or "_layernorm" in name or ".norm" in name
        if not is_lora and not is_kept:
            raise Refused(f"Unexpected name '{name}': Not a lora_A or lora_B tensor")
    return products(tensors, lambda rank: config["lora_alpha"] / rank)


ENGINES = (vllm, llama_cpp)


# --- the portable profile ---------------------------------------------------------------------------------------------


@pytest.fixture
def parents(tmp_path: Path, rng: np.random.Generator) -> list[Path]:
    """Adapters that the engines themselves would read wrongly: patterns and mixed ranks, and rsLoRA."""
    patterns = {"rank_pattern": {"k_proj": 3}, "alpha_pattern": {"k_proj": 5}}
    targets = ["q_proj", "k_proj"]
    return [
        write_adapter(
            tmp_path / "patterns",
            peft_tensors(rng, {Q: 2, K: 3}),
            peft_config(**COMMON, **patterns, target_modules=targets),
        ),
        write_adapter(
            tmp_path / "rslora",
            peft_tensors(rng, {Q: 4, DOWN: 4}),
            peft_config(**COMMON, r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "down_proj"]),
        ),
    ]


def summed_by_hand(parents: list[Path]) -> dict[str, Dense]:
    """Return the sum of the deltas: scaling 4/2 and, by the patterns, 5/3 in the first, 8/sqrt(4) in the second."""
    (_, patterns), (_, rslora) = map(read, parents)
    scalings = [(patterns, {Q: 2.0, K: 5 / 3}), (rslora, {Q: 4.0, DOWN: 4.0})]
    total: dict[str, Dense] = {}
    for tensors, by_module in scalings:
        for module, scaling in by_module.items():
            A, B = (tensors[f"{PREFIX}{module}.lora_{side}.weight"].astype(np.float64) for side in "AB")
            total[module] = total.get(module, 0) + scaling * B @ A
    return total


def composite_of(parents: list[Path], method: str = "sum", **asked: Any) -> Composite:
    return merge([Adapter.from_pretrained(parent) for parent in parents], method, **asked)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_engines_would_read_the_parents_wrongly(engine: Any, parents: list[Path]) -> None:
    """Else the tests below would pass whatever we wrote."""
    wanted = summed_by_hand(parents)
    served = engine(parents[0])
    assert relative_error(served[K], wanted[K]) > 0.1
    if engine is llama_cpp:
        assert relative_error(engine(parents[1])[DOWN], wanted[DOWN]) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sum_is_served_as_the_sum_by_hand(engine: Any, parents: list[Path], tmp_path: Path) -> None:
    served = engine(save(composite_of(parents), tmp_path / "out"))
    wanted = summed_by_hand(parents)
    assert served.keys() == wanted.keys()
    for module, delta in wanted.items():
        assert relative_error(served[module], delta) < 1e-6


@pytest.mark.parametrize("rank", [None, 2, "auto"])
@pytest.mark.parametrize("method", [method.name for method in list_methods()])
def test_every_portable_composite_is_served_as_what_it_is(
    method: str, rank: Rank | None, parents: list[Path], tmp_path: Path
) -> None:
    composite = composite_of(parents, method, rank=rank)
    folder = save(composite, tmp_path / "out")
    config, tensors = read(folder)
    assert {len(A) for name, A in tensors.items() if "lora_A" in name} == {config["r"]}  # what the config says is there
    for engine in ENGINES:
        served = engine(folder)
        assert served.keys() == composite.modules.keys()
        for module, delta in served.items():
            np.testing.assert_allclose(delta, composite.factors(module).delta(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rank", "told"), [(8, 8), (9, 16), (64, 64), (65, 128), (256, 256)])
def test_vllm_takes_the_rank_that_the_card_tells(rank: int, told: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(rank)
    write_adapter(
        tmp_path / "a", peft_tensors(rng, {Q: rank}), peft_config(**COMMON, r=rank, target_modules=["q_proj"])
    )
    folder = save(composite_of([tmp_path / "a"]), tmp_path / "out")
    found = re.search(r"--max-lora-rank (\d+)", (folder / "README.md").read_text())
    assert found and int(found[1]) == told
    assert vllm(folder, told).keys() == {Q}
    if told > 8:
        with pytest.raises(Refused, match="greater than max_lora_rank"):
            vllm(folder, told // 2)


# --- what they do not read --------------------------------------------------------------------------------------------


def test_a_rank_for_each_module_is_read_wrongly_and_the_card_says_so(parents: list[Path], tmp_path: Path) -> None:
    composite = composite_of(parents, rank=2, profile="peft")
    folder = save(composite, tmp_path / "out")
    alpha = read(folder)[0]["lora_alpha"]
    served = llama_cpp(folder)
    wrong = {m for m, delta in served.items() if relative_error(delta, composite.factors(m).delta()) > 0.1}
    assert wrong == {module for module, spec in composite.modules.items() if spec.rank != alpha} != set()
    text = (folder / "README.md").read_text()
    assert "vLLM, llama.cpp's converter and other loaders that pass over `rank_pattern`" in text
    assert "make it again with `profile: portable`" in text
    assert "vllm serve" not in text and "convert_lora_to_gguf.py" not in text


@pytest.mark.parametrize("file_format", ["kohya", "diffusers", "mlx"])
def test_a_rank_for_each_module_is_refused_in_formats_that_cannot_say_it(
    file_format: str, parents: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(MergeError, match="rofile"):
        save(composite_of(parents, rank=2, profile="peft"), tmp_path / "out", format=file_format)
    assert not (tmp_path / "out").exists()


def test_a_kept_head_is_refused_by_both_and_the_card_offers_neither(parents: list[Path], tmp_path: Path) -> None:
    config, tensors = read(parents[0])
    head = {f"{PREFIX}score.weight": np.ones((2, 5), np.float32)}
    write_adapter(parents[0], {**tensors, **head}, {**config, "modules_to_save": ["score"]})
    with pytest.raises(IncompatibleAdapters):
        composite_of(parents)
    folder = save(composite_of(parents, extras="keep:patterns"), tmp_path / "out")
    for engine in ENGINES:
        with pytest.raises(Refused):
            engine(folder)
    text = (folder / "README.md").read_text()
    assert "Other loaders may refuse or ignore them." in text
    assert "vllm serve" not in text and "convert_lora_to_gguf.py" not in text


# --- a server's limit -------------------------------------------------------------------------------------------------


def carry_out(parents: list[Path], output: Path, max_rank: int, **asked: Any) -> Any:
    models = tuple(Source(f"./{parent.name}") for parent in parents)
    recipe = Recipe(**{"merge_method": "sum", **asked}, models=models)
    hub = Hub(token=False, endpoint="http://127.0.0.1:9", offline=True)
    return merge_to_folder(recipe, output, hub=hub, sources_from=parents[0].parent, max_rank=max_rank)


@pytest.mark.parametrize(
    ("asked", "rank", "limit", "remedy"),
    [
        ({}, 6, 5, "Take --method svd, which has rank 4 here, or give --rank 5."),
        ({}, 6, 3, "Give --rank 3."),
        ({"merge_method": "svd"}, 4, 3, "Give --rank 3."),
        ({"rank": 3}, 3, 2, "Give --rank 2."),
        ({"rank": "auto", "energy": 1.0}, 5, 4, "Give --rank 4."),
        ({"rank": 2, "profile": "peft"}, 3, 2, "Leave out --profile peft and give --rank 2; "),
    ],
)
def test_a_composite_above_the_limit_is_refused_before_it_is_computed(
    asked: dict[str, Any],
    rank: int,
    limit: int,
    remedy: str,
    parents: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Composite, "merged", lambda *_: pytest.fail("a factor was computed"))
        with pytest.raises(MergeError, match=f"has rank {rank}; --max-rank allows {limit}") as refused:
            carry_out(parents, tmp_path / "out", limit, **asked)
    assert refused.value.remedy and refused.value.remedy.startswith(remedy)
    assert not (tmp_path / "out").exists()

    for words in re.findall(r"--(method \w+|rank \d+)", refused.value.remedy):  # what it offers fits
        name, value = words.split()
        offered = {"merge_method": value} if name == "method" else {**asked, "rank": int(value), "energy": None}
        record = carry_out(parents, tmp_path / name, limit, **{**offered, "profile": "portable"})
        assert record.output["rank"] <= limit


def test_a_composite_at_the_limit_is_written(parents: list[Path], tmp_path: Path) -> None:
    assert carry_out(parents, tmp_path / "out", 6).output["rank"] == 6
    assert "max" not in (tmp_path / "out" / "recipe.yaml").read_text()  # a limit changes no merge


# --- PEFT, as the card says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repo_id", [None, "me/composite"])
def test_the_python_of_the_card_loads_the_composite(
    repo_id: str | None, tmp_path: Path, rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    from tests.tiny_models import tiny_llama, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    base = tiny_llama(len(tokenizer))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    for name, scaling in (("one", 2.0), ("two", 0.5)):
        tensors: dict[str, Any] = {}
        for layer in (0, 1):
            place = f"model.layers.{layer}.self_attn.q_proj"
            A, B = (rng.standard_normal(shape).astype(np.float32) * 0.2 for shape in ((3, 24), (24, 3)))
            tensors |= {f"{PREFIX}{place}.lora_A.weight": A, f"{PREFIX}{place}.lora_B.weight": B}
            with torch.no_grad():
                base.get_submodule(place).weight += torch.from_numpy(scaling * B @ A)
        config = peft_config(**COMMON, r=3, lora_alpha=3 * scaling, target_modules=["q_proj"])
        write_adapter(tmp_path / name, tensors, config)
    folder = save(composite_of([tmp_path / "one", tmp_path / "two"]), tmp_path / "out")

    (block,) = re.findall(r"```python\n(.*?)```", render_card(read_record(folder), repo_id=repo_id), re.DOTALL)
    for name, path in (("acme/base", tmp_path / "base"), (repo_id or "path/to/this/adapter", folder)):
        assert f'"{name}"' in block
        block = block.replace(f'"{name}"', repr(str(path)))
    said: dict[str, Any] = {}
    exec(compile(block, "card", "exec"), said)

    tokens = torch.tensor([said["tokenizer"]("A question of numbers.").input_ids])
    with torch.no_grad():
        wanted, got = base(tokens).logits, said["model"].eval()(tokens).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    with torch.no_grad(), said["model"].disable_adapter():
        assert (said["model"](tokens).logits - wanted).abs().max() > 0.01
