"""Train one rank-4 LoRA adapter on the questions and answers of one domain, or of several put together.

    python train.py math --data DATA -o adapters/math_s1 --seed 1
    python train.py math medicine --data DATA -o adapters/math_medicine

``DATA/<domain>/train.jsonl`` holds a ``question`` and an ``answer`` a line. The adapters of one seed start from the
same lora_A, whatever they are trained on.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup, set_seed

from hub_merge.bases import read_base

TARGETS = {"gpt2": ["c_attn", "c_proj"], "llama": ["q_proj", "k_proj", "v_proj", "o_proj"]}
"""Adapted modules by type of model. GPT-2's are those of arXiv 2508.11985; its c_proj is in attention and MLP."""

RANK, ALPHA = 4, 64
BATCH, MOST_TOKENS = 8, 256
RATE, WARM_UP = 2e-4, 20
LOG_EVERY = 25


def main() -> None:
    """Train, and write the adapter with its curve beside it."""
    options = arguments()
    options.output.mkdir(parents=True)
    set_seed(options.seed)  # before the adapter is made, so that lora_A depends on the seed alone
    place = {"gguf_file": options.weights.name} if options.weights else {}
    source = options.weights.parent if options.weights else options.base
    tokenizer = AutoTokenizer.from_pretrained(source, **place)
    model: Any = AutoModelForCausalLM.from_pretrained(source, **place, dtype=torch.bfloat16)
    model = get_peft_model(model, lora(model.config.model_type))
    rows = [row for domain in options.domains for row in tokens(options, domain, tokenizer)]
    log = fit(model, rows, options.epochs, random.Random(options.seed))
    write(model, options, rows, log)


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domains", nargs="+", help="One domain, or several for a merged-data baseline.")
    parser.add_argument("--data", type=Path, required=True, help="Folder with a folder a domain.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="Folder of the adapter, which must be new.")
    parser.add_argument("--base", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="Hub id, also gpt2.")
    parser.add_argument("--weights", type=Path, help="GGUF file to read the base from.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=800, help="Rows a domain.")
    parser.add_argument("--epochs", type=int, default=2)
    return parser.parse_args()


def lora(model_type: str) -> LoraConfig:
    """Return the adapter's configuration."""
    return LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=TARGETS[model_type],
        fan_in_fan_out=model_type == "gpt2",
        task_type="CAUSAL_LM",
    )


def tokens(options: argparse.Namespace, domain: str, tokenizer: Any) -> list[list[int]]:
    """Return the tokens of the first rows of a domain, each cut to ``MOST_TOKENS``."""
    lines = (options.data / domain / "train.jsonl").read_text(encoding="utf-8").splitlines()[: options.rows]
    texts = [
        f"Question: {row['question']}\nAnswer: {row['answer']}{tokenizer.eos_token}" for row in map(json.loads, lines)
    ]
    return [row[:MOST_TOKENS] for row in tokenizer(texts, add_special_tokens=False).input_ids]


def batches(rows: Sequence[list[int]], epochs: int, rng: random.Random) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches in a new order each epoch; padding is masked and not learnt."""
    for _ in range(epochs):
        order = rng.sample(rows, len(rows))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            width = max(map(len, chosen))
            pad = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in chosen])
            ids = torch.tensor([row + [0] * (width - len(row)) for row in chosen])
            yield {"input_ids": ids, "attention_mask": pad, "labels": ids.masked_fill(pad == 0, -100)}


def fit(model: Any, rows: Sequence[list[int]], epochs: int, rng: random.Random) -> list[dict[str, float]]:
    """Train on all tokens, AdamW with warm-up and cosine decay; return the mean loss of each ``LOG_EVERY`` steps."""
    steps = epochs * -(-len(rows) // BATCH)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], RATE)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARM_UP, steps)
    log, losses = [], []
    model.train()
    for step, batch in enumerate(batches(rows, epochs, rng), 1):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % LOG_EVERY == 0 or step == steps:
            log.append({"step": step, "loss": round(sum(losses) / len(losses), 4)})
            losses.clear()
            print(f"step {step} of {steps}: loss {log[-1]['loss']}", flush=True)
    return log


def write(model: Any, options: argparse.Namespace, rows: Sequence[list[int]], log: Sequence[dict[str, float]]) -> None:
    """Write the adapter under the Hub id of its base, and what it was trained with."""
    model.peft_config["default"].base_model_name_or_path = read_base(options.base).label
    model.save_pretrained(options.output, save_embedding_layers=False)
    recipe = {"base": read_base(options.base).label}
    recipe |= {name: getattr(options, name) for name in ("domains", "seed", "rows", "epochs")}
    recipe |= {"rank": RANK, "alpha": ALPHA, "batch": BATCH, "most_tokens": MOST_TOKENS, "rate": RATE}
    report = {"recipe": recipe, "tokens": options.epochs * sum(map(len, rows)), "log": list(log)}
    (options.output / "train_log.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s")
