"""Causal language models of two layers with a tokenizer of characters, their adapters and questions, all offline."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:?\n"

TEXTS = [
    ("How many?", "three"),
    ("Which colour has the sky on a clear day in May", "blue, but for clouds"),
    ("", "b"),
    ("Two plus two", "2 + 2 = 4\nthe answer is 4"),
]


def tiny_tokenizer() -> Any:
    """Return a tokenizer with a token a letter, ``b`` and ``a`` together being one of their own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: place for place, letter in enumerate([*LETTERS, "<unk>", "<eos>", " b"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(" ", "b")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\x00", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


def tiny_llama(vocabulary: int, **config: Any) -> Any:
    """Return a llama with random weights, the same ones each time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": vocabulary,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        **config,
    }
    torch.manual_seed(7)
    return LlamaForCausalLM(LlamaConfig(**settings)).eval()


def tiny_gpt2(vocabulary: int, **config: Any) -> Any:
    """Return a GPT-2 with random weights, the same ones each time."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = {"vocab_size": vocabulary, "n_positions": 128, "n_embd": 24, "n_layer": 2, "n_head": 2, **config}
    torch.manual_seed(7)
    return GPT2LMHeadModel(GPT2Config(initializer_range=0.3, **settings)).eval()


def tiny_gemma3(vocabulary: int) -> Any:
    """Return a Gemma 3 with random weights and a head of its own; its embedding multiplies what it looked up."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=vocabulary, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=12, initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(7)
    return Gemma3ForCausalLM(config).eval()


def tiny_base(folder: Path, make: Callable[[int], Any] = tiny_llama) -> Any:
    """Write a model and its tokenizer to ``base`` in a folder; return it under a name that its adapters can tell."""
    tokenizer = tiny_tokenizer()
    model = make(len(tokenizer))
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    model.name_or_path = model.config._name_or_path = "tiny/base"
    return model


def write_questions(file: Path, rows: Sequence[tuple[str, str]]) -> None:
    """Write questions and answers, a pair a line."""
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in rows))


def trained(base: Any, folder: Path, seed: int, **config: Any) -> Path:
    """Write an adapter with random factors as PEFT does."""
    import peft
    import torch

    torch.manual_seed(seed)
    settings = {"task_type": "CAUSAL_LM", "init_lora_weights": False, "r": 2, "lora_alpha": 4, **config}
    peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**settings)).save_pretrained(
        folder, save_embedding_layers=False
    )
    return folder


def by_hand(model: Any, tokenizer: Any, rows: Sequence[tuple[str, str]]) -> tuple[float, float]:
    """Return perplexity of the answers and of the texts: one row at a time, no padding, one token after the other."""
    import torch

    nats: dict[str, list[float]] = {"answer": [], "text": []}
    for question, answer in rows:
        prompt = tokenizer.tokenize(f"Question: {question}\nAnswer:")
        tokens = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(f"Question: {question}\nAnswer: {answer}"))
        tokens.append(tokenizer.eos_token_id)
        first = len(prompt) if answer.startswith("b") else len(prompt) + 1  # " b" is one token, " t" are two
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0].double()
        for place in range(1, len(tokens)):
            chances = torch.exp(logits[place - 1]) / torch.exp(logits[place - 1]).sum()
            nats["text"].append(-math.log(chances[tokens[place]]))
            if place >= first:
                nats["answer"].append(nats["text"][-1])
    return tuple(math.exp(math.fsum(part) / len(part)) for part in nats.values())  # type: ignore[return-value]
