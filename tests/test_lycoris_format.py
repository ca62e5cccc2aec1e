"""LoRA, LoCon, LoHa and LoKr against what LyCORIS itself computes in its forward pass, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hub_merge.adapter import Adapter
from hub_merge.pipeline import merge
from tests.helpers import Dense, relative_error

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file
pytest.importorskip("lycoris")
pytestmark = pytest.mark.filterwarnings("ignore")

LINEAR = "lora_unet_mid_block_attentions_0_proj_in", "unet.mid_block.attentions.0.proj_in"
CONV = "lora_unet_mid_block_resnets_0_conv1", "unet.mid_block.resnets.0.conv1"


def layer(kind: str, out: int = 12, inner: int = 8) -> Any:
    if kind == "linear":
        return torch.nn.Linear(inner, out, bias=False)
    return torch.nn.Conv2d(inner, out, 3 if kind == "conv" else 1, bias=False)


def trained(algorithm: str, base: Any, **options: Any) -> Any:
    """Return a LyCORIS module on ``base`` with random parameters."""
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    torch.manual_seed(1)
    made = {"locon": LoConModule, "loha": LohaModule, "lokr": LokrModule}[algorithm]("it", base, **options)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def delta_of(module: Any, base: Any) -> Dense:
    """Return the delta that the forward pass applies: the answer to every unit input, less that of the base."""
    weight = base.weight
    with torch.no_grad():
        if weight.ndim == 2:
            unit = torch.eye(weight.shape[1])
            return (module(unit) - base(unit)).T.double().numpy()
        unit = torch.eye(weight[0].numel()).reshape(-1, *weight.shape[1:])
        return (module(unit) - base(unit)).reshape(len(unit), -1).T.double().numpy()


def opened(path: Path, flat: str, module: Any, dtype: Any = torch.float32) -> Adapter:
    tensors = {f"{flat}.{what}": tensor.detach().to(dtype) for what, tensor in module.custom_state_dict().items()}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return Adapter.from_pretrained(path)


CASES: list[tuple[str, str, dict[str, Any], int]] = [
    ("locon", "linear", {"lora_dim": 3, "alpha": 2}, 3),
    ("locon", "conv", {"lora_dim": 3, "alpha": 2}, 3),
    ("locon", "conv", {"lora_dim": 3, "alpha": 2, "use_tucker": True}, 3),
    ("locon", "pointwise", {"lora_dim": 3, "alpha": 6}, 3),
    ("locon", "linear", {"lora_dim": 4, "alpha": 2, "rs_lora": True}, 4),
    ("loha", "linear", {"lora_dim": 2, "alpha": 1}, 4),
    ("loha", "linear", {"lora_dim": 3, "alpha": 1}, 8),
    ("loha", "linear", {"lora_dim": 2, "alpha": 3, "rs_lora": True}, 4),
    ("loha", "conv", {"lora_dim": 3, "alpha": 2}, 9),
    ("loha", "conv", {"lora_dim": 3, "alpha": 2, "use_tucker": True}, 9),
    ("lokr", "linear", {"lora_dim": 1, "alpha": 2, "factor": 2}, 2),
    ("lokr", "linear", {"lora_dim": 1, "alpha": 2, "factor": 4, "decompose_both": True}, 1),
    ("lokr", "linear", {"lora_dim": 100, "alpha": 2, "factor": 2}, 8),
    ("lokr", "conv", {"lora_dim": 1, "alpha": 2, "factor": 2}, 2),
    ("lokr", "conv", {"lora_dim": 1, "alpha": 2, "factor": 2, "use_tucker": True}, 2),
    ("lokr", "conv", {"full_matrix": True, "factor": 2}, 12),
    ("lokr", "pointwise", {"lora_dim": 1, "alpha": 2, "factor": 2}, 2),
]


@pytest.mark.parametrize(("algorithm", "kind", "options", "rank"), CASES)
def test_every_algorithm_has_the_delta_that_lycoris_applies(
    tmp_path: Path, algorithm: str, kind: str, options: dict[str, Any], rank: int
) -> None:
    base = layer(kind)
    module = trained(algorithm, base, **options)
    flat, name = LINEAR if kind == "linear" else CONV
    if kind == "pointwise":
        flat, name = flat.replace("conv1", "conv_shortcut"), name.replace("conv1", "conv_shortcut")
    adapter = opened(tmp_path / "it.safetensors", flat, module)
    assert not adapter.findings
    spec, part = adapter.modules[name], adapter.factors(name)
    kernel = {"linear": (), "conv": (3, 3), "pointwise": (1, 1)}[kind]
    assert (spec.shape, spec.rank, spec.kernel) == (part.shape, rank, kernel)
    assert part.rank == rank
    assert relative_error(part.delta(), delta_of(module, base)) < 2e-6


@pytest.mark.parametrize(("algorithm", "options"), [("loha", {"lora_dim": 2}), ("lokr", {"lora_dim": 1, "factor": 2})])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_products_of_half_precision_factors_are_not_rounded_again(
    tmp_path: Path, algorithm: str, options: dict[str, Any], dtype: str
) -> None:
    base = layer("linear")
    module = trained(algorithm, base, alpha=1, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.to(getattr(torch, dtype)))
    adapter = opened(tmp_path / "it.safetensors", LINEAR[0], module, getattr(torch, dtype))
    assert relative_error(adapter.factors(LINEAR[1]).delta(), delta_of(module, base)) < 2e-6


def test_the_names_of_diffusers_are_understood_for_lokr_too(tmp_path: Path) -> None:
    base = layer("linear")
    module = trained("lokr", base, lora_dim=1, alpha=2, factor=2)
    adapter = opened(tmp_path / "it.safetensors", "transformer.blocks.0.attn.to_q", module)
    assert (adapter.format, list(adapter.modules)) == ("diffusers", ["transformer.blocks.0.attn.to_q"])
    assert relative_error(adapter.factors("transformer.blocks.0.attn.to_q").delta(), delta_of(module, base)) < 2e-6


def test_a_loha_is_written_exactly_or_truncated_with_the_least_error(tmp_path: Path) -> None:
    base = layer("conv", 12, 8)
    module = trained("loha", base, lora_dim=3, alpha=2)
    adapter = opened(tmp_path / "it.safetensors", CONV[0], module)
    wanted = delta_of(module, base)
    whole = Adapter.from_pretrained(adapter.save_pretrained(tmp_path / "whole", format="kohya"))
    assert whole.modules[CONV[1]].kernel == (3, 3)
    assert relative_error(whole.factors(CONV[1]).delta(), wanted) < 2e-6
    small = Adapter.from_pretrained(merge([adapter], rank=4).save_pretrained(tmp_path / "small"))
    values = np.linalg.svd(wanted, compute_uv=False)
    least = np.sqrt((values[4:] ** 2).sum() / (values**2).sum())
    assert relative_error(small.factors(CONV[1]).delta(), wanted) == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        ("hada_w1_b", "hada_w1 has no matrix and no two factors"),
        ("hada_w2_a", "hada_w2 has no matrix and no two factors"),
    ],
)
def test_a_half_that_is_missing_is_a_finding(tmp_path: Path, lost: str, says: str) -> None:
    module = trained("loha", layer("linear"), lora_dim=2)
    tensors = {f"{LINEAR[0]}.{what}": tensor.detach() for what, tensor in module.custom_state_dict().items()}
    del tensors[f"{LINEAR[0]}.{lost}"]
    save_file(tensors, tmp_path / "it.safetensors")
    (found,) = Adapter.from_pretrained(tmp_path / "it.safetensors").findings
    assert (found.code, found.where, found.seen) == ("factor_shape", LINEAR[1], says)


def test_a_decomposed_weight_is_refused(tmp_path: Path) -> None:
    module = trained("lokr", layer("linear"), lora_dim=1, factor=2, weight_decompose=True)
    adapter = opened(tmp_path / "it.safetensors", LINEAR[0], module)
    assert [found.code for found in adapter.findings] == ["dora"]
