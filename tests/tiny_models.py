"""Causal language models of two layers with a tokenizer of characters, made without any download."""

from __future__ import annotations

from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:?\n"


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
