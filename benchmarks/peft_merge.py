"""One PEFT merge as a process of its own: ``python -m benchmarks.peft_merge TYPE OUTPUT ADAPTER...``."""

from __future__ import annotations

import sys

import torch
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel


def main(combination: str, output: str, *adapters: str) -> None:
    """Load the adapters on a GPT-2 without trained weights, merge them, and save the result."""
    torch.set_num_threads(1)
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config())
    model = model.to_empty(device="cpu")
    model = PeftModel.from_pretrained(model, adapters[0], adapter_name="adapter_0")
    names = ["adapter_0"]
    for number, adapter in enumerate(adapters[1:], start=1):
        names.append(f"adapter_{number}")
        model.load_adapter(adapter, adapter_name=names[-1])
    settings = {"svd_rank": 4, "svd_full_matrices": False} if combination == "svd" else {}
    model.add_weighted_adapter(names, [1.0] * len(names), "merged", combination_type=combination, **settings)
    model.save_pretrained(output, selected_adapters=["merged"])


if __name__ == "__main__":
    main(*sys.argv[1:])
