"""One PEFT merge as a process of its own; see ``--help``."""

from __future__ import annotations

import argparse
import json

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.stopwatch import stopwatch


def main() -> None:
    """Load the adapters on a base without trained weights, merge them, save the result, and print what merging took."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("combination", metavar="TYPE", help="combination_type of add_weighted_adapter")
    parser.add_argument("base", type=json.loads, help="config of the base model as JSON")
    parser.add_argument("output")
    parser.add_argument("adapters", nargs="+")
    parser.add_argument("--settings", type=json.loads, default={}, help="arguments of add_weighted_adapter as JSON")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    names = [f"adapter_{number}" for number in range(len(asked.adapters))]
    model = PeftModel.from_pretrained(_untouched(**asked.base), asked.adapters[0], adapter_name=names[0])
    for name, adapter in zip(names[1:], asked.adapters[1:], strict=True):
        model.load_adapter(adapter, adapter_name=name)
    with stopwatch() as took:
        model.add_weighted_adapter(
            names, [1.0] * len(names), "merged", combination_type=asked.combination, **asked.settings
        )
    model.save_pretrained(asked.output, selected_adapters=["merged"])
    print(json.dumps(took))


def _untouched(model_type: str, dtype: str, **config: object) -> PreTrainedModel:
    """Return a model whose weights are reserved, but neither read nor written, so that they take no memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(model_type, **config), dtype=getattr(torch, dtype)
        )
    return model.to_empty(device="cpu")


if __name__ == "__main__":
    main()
