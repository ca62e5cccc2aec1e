"""Names that other tools trip over: of modules, and of adapters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from hub_merge.adapter import Adapter
from hub_merge.pipeline import merge
from tests.helpers import dense_sum, peft_config, peft_tensors, write_adapter

MODULES = {"h.0.mlp.c_attn": 2, "h.1.mlp.c_attn": 2}


@pytest.mark.parametrize("name", ["mlp", "c_attn", "h", "0", "default", "lora_A", "weight", "base_model", "base_layer"])
def test_an_adapter_called_like_a_part_of_a_module_loses_nothing(name: str, tmp_path: Path) -> None:
    """PEFT cuts the adapter's name out of the keys it saves (peft#3584)."""
    parents = [
        write_adapter(tmp_path / folder / name, peft_tensors(np.random.default_rng(seed), MODULES), peft_config())
        for seed, folder in enumerate(("one", "two"))
    ]
    adapters = [Adapter.from_pretrained(parent) for parent in parents]
    written = load_file(
        merge(adapters, base="acme/base").save_pretrained(tmp_path / "out") / "adapter_model.safetensors"
    )
    assert written.keys() == load_file(parents[0] / "adapter_model.safetensors").keys()
    for module in MODULES:
        A, B = (written[f"base_model.model.{module}.lora_{side}.weight"].astype(np.float64) for side in "AB")
        assert np.allclose(B @ A, dense_sum([adapter.factors(module) for adapter in adapters]), rtol=1e-5)


@pytest.mark.parametrize(
    "module",
    [
        "model.lora_block.q",
        "lora_A.q",
        "model.lora_A.weight",
        "model.weight.q",
        "model.default.q",
        "model.base_layer.q",
        "model.modules_to_save.q",
        "model.lora_embedding_A.q",
        "model.token_adapter.q",
    ],
)
def test_a_module_called_like_a_part_of_peft_goes_to_peft_and_back(module: str, tmp_path: Path) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")

    def base() -> object:
        root = place = torch.nn.Module()
        *path, last = module.split(".")
        for part in path:
            place.add_module(part, torch.nn.Module())
            place = getattr(place, part)
        place.add_module(last, torch.nn.Linear(5, 6))
        return root

    torch.manual_seed(0)
    made = peft.get_peft_model(base(), peft.LoraConfig(r=2, target_modules=[module], init_lora_weights=False))
    made.save_pretrained(tmp_path / "theirs")
    adapter = Adapter.from_pretrained(tmp_path / "theirs")
    assert list(adapter.modules) == [module] and adapter.findings == ()
    ours = merge([adapter], base="acme/base").save_pretrained(tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(base(), ours)
    layer = again.base_model.model.get_submodule(module)
    assert np.allclose(layer.get_delta_weight("default").detach().numpy(), adapter.factors(module).delta(), rtol=1e-5)
