"""LoRA on parameters of experts, in the layouts of transformers 4 and 5, with PEFT as the judge."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from hub_merge.adapter import Adapter
from hub_merge.errors import IncompatibleAdapters, MergeError
from hub_merge.formats.peft import adapter_from_tensors
from hub_merge.formats.tensors import ArrayStore
from hub_merge.pipeline import merge
from hub_merge.scores import score
from tests.helpers import Dense, peft_config, peft_tensors, relative_error, write_adapter

PATH = "h.0.mlp.experts"
TARGETS = ["mlp.experts.down_proj"]


def experts(rng: np.random.Generator, count: int = 3, rank: int = 2, path: str = PATH, **config: Any) -> Adapter:
    """Return an adapter of one parameter of ``count`` experts, each ``(6, 5)``."""
    A, B = rng.standard_normal((count * rank, 5)), rng.standard_normal((6, rank * count))
    tensors = {f"base_model.model.{path}.lora_A.weight": A, f"base_model.model.{path}.lora_B.weight": B}
    return adapter_from_tensors(
        peft_config(target_modules=[], target_parameters=TARGETS, base_model_name_or_path="acme/base", **config),
        ArrayStore(tensors),
        name="it",
    )


def test_the_delta_of_an_expert_is_the_einsum_of_peft_by_hand(rng: np.random.Generator) -> None:
    A, B = rng.standard_normal((6, 5)), rng.standard_normal((6, 6))
    tensors = {f"{PATH}.lora_A.weight": A, f"{PATH}.lora_B.weight": B}
    adapter = adapter_from_tensors(
        peft_config(target_modules=[], target_parameters=TARGETS), ArrayStore(tensors), name="it"
    )
    assert list(adapter.modules) == [f"{PATH}[{number}]" for number in range(3)]
    wanted = 2 * np.einsum("ore,eri->eoi", B.reshape(6, 2, 3), A.reshape(3, 2, 5))
    for number in range(3):
        assert relative_error(adapter.factors(f"{PATH}[{number}]").delta(), wanted[number]) <= 1e-14
    assert adapter.findings == ()
    assert adapter.target_modules == ()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rank_pattern": {"down_proj": 2}}, "does not say which parameter has which rank"),
        ({"alpha_pattern": {"down_proj": 2}}, "does not say which parameter has which rank"),
        ({"path": "h.0.mlp.other", "count": 1}, "the file has no factors of them where PEFT 0.21 puts them"),
    ],
)
def test_parameters_that_are_not_understood_are_refused_with_the_reason(
    changes: dict[str, Any], reason: str, rng: np.random.Generator
) -> None:
    adapter = experts(rng, **changes)
    with pytest.raises(IncompatibleAdapters) as refusal:
        merge([adapter])
    (found,) = refusal.value.report.problems
    assert (found.code, found.where) == ("target_parameters", "target_parameters")
    assert reason in str(refusal.value)


def test_a_number_of_rows_that_is_no_multiple_of_the_rank_is_a_problem(rng: np.random.Generator) -> None:
    assert [found.code for found in experts(rng, count=1, rank=3).findings] == ["rank_mismatch"]


def test_adapters_of_different_parameters_do_not_fit(rng: np.random.Generator) -> None:
    other = adapter_from_tensors(
        peft_config(target_modules=[], target_parameters=["mlp.experts.up_proj"], base_model_name_or_path="acme/base"),
        ArrayStore({f"{PATH}.lora_A.weight": np.ones((6, 5)), f"{PATH}.lora_B.weight": np.ones((6, 6))}),
        name="other",
    )
    with pytest.raises(IncompatibleAdapters, match=r"mlp\.experts\.up_proj .* expected mlp\.experts\.down_proj"):
        merge([experts(rng), other])


def test_another_number_of_experts_is_another_base(rng: np.random.Generator) -> None:
    composite = merge([experts(rng, count=2), experts(rng, count=2)])
    assert len(composite.modules) == 2
    with pytest.raises(IncompatibleAdapters, match="experts_differ"):
        merge([experts(rng, count=2), experts(rng, count=3)])


def test_weights_that_leave_out_some_experts_are_refused(rng: np.random.Generator) -> None:
    adapter = experts(rng)
    with pytest.raises(MergeError, match=r"leave out h\.0\.mlp\.experts\[1\]"):
        merge([adapter], weights=[{"experts[1]": 0.0, "*": 1.0}])


def test_experts_are_scored_and_counted_together(rng: np.random.Generator) -> None:
    first, second = experts(rng), experts(rng)
    composite = merge([first, second])
    (group,) = composite.compatibility.coverage
    assert (group.group, group.counts) == ("mlp.experts", (3, 3))
    assert score(composite.parents).pairs[0].shared_modules == 3


def test_a_weight_of_zero_leaves_the_experts_and_their_field_out(tmp_path: Path, rng: np.random.Generator) -> None:
    plain = adapter_from_tensors(
        peft_config(base_model_name_or_path="acme/base"), ArrayStore(peft_tensors(rng, {"h.0.c_attn": 2})), name="plain"
    )
    merge([experts(rng), plain], weights=[0, 1]).save_pretrained(tmp_path / "out")
    assert Adapter.from_pretrained(tmp_path / "out").target_parameters == ()
    assert len(load_file(tmp_path / "out" / "adapter_model.safetensors")) == 2


@pytest.mark.parametrize("format", ["kohya", "diffusers", "mlx"])
def test_only_peft_holds_experts(tmp_path: Path, rng: np.random.Generator, format: str) -> None:
    with pytest.raises(MergeError, match=f"factors of experts .* which format {format} cannot hold"):
        merge([experts(rng)]).save_pretrained(tmp_path / "out", format=format)


def test_experts_have_one_rank(rng: np.random.Generator) -> None:
    with pytest.raises(MergeError, match="Profile peft") as caught:
        merge([experts(rng)], rank="auto", profile="peft")
    assert caught.value.remedy == "Leave out --profile."


# --- PEFT -------------------------------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from tests.test_peft_oracle import LOGITS, deltas, load, logits, seeded_model, summed  # noqa: E402

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 16,
}


def mixtral() -> Any:
    config = transformers.MixtralConfig(intermediate_size=24, num_local_experts=4, **SIZES)
    return seeded_model(transformers.MixtralForCausalLM, config, "acme/mixtral")


def gpt_oss() -> Any:
    config = transformers.GptOssConfig(intermediate_size=24, num_local_experts=3, head_dim=8, **SIZES)
    return seeded_model(transformers.GptOssForCausalLM, config, "acme/gpt-oss")


BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "both parameters and attention": (mixtral, {"target_modules": ["q_proj"], "target_parameters": BOTH}),
    "one parameter alone": (mixtral, {"target_modules": [], "target_parameters": BOTH[1:]}),
    "rsLoRA": (mixtral, {"target_modules": [], "target_parameters": BOTH, "use_rslora": True}),
    "weights as (in, out)": (gpt_oss, {"target_modules": ["v_proj"], "target_parameters": BOTH}),
}
quiet = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(base: Any, folder: Path, seed: int, **config: Any) -> tuple[Any, dict[str, Dense]]:
    torch.manual_seed(seed)
    settings = {"task_type": "CAUSAL_LM", "init_lora_weights": False, "r": 3, "lora_alpha": 5, **config}
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**settings)).eval()
    model.save_pretrained(folder, save_embedding_layers=False)
    return model, deltas(copy.deepcopy(model).double())


@quiet
@pytest.mark.parametrize("case", CASES)
def test_experts_come_back_in_peft(case: str, tmp_path: Path) -> None:
    build, config = CASES[case]
    base = build()
    model, wanted = trained(base, tmp_path / "source", 1, **config)
    merge([Adapter.from_pretrained(tmp_path / "source")]).save_pretrained(tmp_path / "out")
    loaded = load(base, tmp_path / "out")
    assert_deltas(deltas(loaded), wanted)
    assert relative_error(logits(loaded), logits(model)) <= LOGITS
    assert relative_error(logits(loaded), logits(base)) > 100 * LOGITS


def assert_deltas(got: dict[str, Dense], wanted: dict[str, Dense]) -> None:
    assert got.keys() == wanted.keys()
    for module, delta in wanted.items():
        assert relative_error(got[module], delta) <= 1e-6, module


@quiet
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, -2.0)])
def test_a_sum_of_experts_of_different_rank_is_the_dense_sum(
    case: str, weights: Sequence[float], tmp_path: Path
) -> None:
    build, config = CASES[case]
    base = build()
    sources = [trained(base, tmp_path / str(seed), seed, **{**config, "r": 2 + seed})[1] for seed in range(2)]
    adapters = [Adapter.from_pretrained(tmp_path / str(seed)) for seed in range(2)]
    merge(adapters, weights=list(weights)).save_pretrained(tmp_path / "out")
    assert_deltas(deltas(load(base, tmp_path / "out")), summed(sources, weights))


@quiet
def test_experts_in_the_layout_of_transformers_4_load_as_their_source_does(tmp_path: Path) -> None:
    """There each expert is a module of its own; PEFT fuses them when it loads such a file into a model of version 5."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (24, 16), "w2": (16, 24), "w3": (24, 16)}
    tensors = {}
    for layer, number, (name, (out, size)) in [(i, e, s) for i in range(2) for e in range(4) for s in shapes.items()]:
        path = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{number}.{name}"
        tensors[f"{path}.lora_A.weight"] = rng.standard_normal((2, size)).astype(np.float32)
        tensors[f"{path}.lora_B.weight"] = rng.standard_normal((out, 2)).astype(np.float32)
    config = peft_config(target_modules=list(shapes), task_type="CAUSAL_LM", base_model_name_or_path="acme/mixtral")
    write_adapter(tmp_path / "source", tensors, config)
    base = mixtral()
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "source").eval()
    merge([Adapter.from_pretrained(tmp_path / "source")]).save_pretrained(tmp_path / "out")
    ours = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "out").eval()
    assert relative_error(logits(ours), logits(theirs)) <= LOGITS
    assert relative_error(logits(ours), logits(base)) > 100 * LOGITS
