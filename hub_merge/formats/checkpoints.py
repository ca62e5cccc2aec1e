"""Full models on disk: ``model.safetensors`` or its shards, the config, and the files that travel with them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from hub_merge.adapter import Origin
from hub_merge.errors import CheckpointError
from hub_merge.formats.peft import contained
from hub_merge.formats.shards import indexed_files
from hub_merge.formats.strict_json import read_bounded
from hub_merge.formats.tensors import SafetensorsStore, TensorInfo

__all__ = [
    "CODE",
    "COMPANIONS",
    "MODEL_CONFIG",
    "MODEL_INDEX",
    "Checkpoint",
    "companion_files",
    "open_checkpoint",
    "read_config",
    "weight_files",
]

MODEL_CONFIG = "config.json"
MODEL_WEIGHTS = "model.safetensors"
MODEL_INDEX = "model.safetensors.index.json"
MAX_TEXT = 50_000_000
"""Bytes of the longest config or index that is read; that of a model with hundreds of experts takes ten million."""

COMPANIONS = (
    MODEL_CONFIG,
    "generation_config.json",
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.tiktoken"),
    *("sentencepiece*.model", "spiece.model", "chat_template*", "*processor_config.json"),
    *("LICENSE*", "LICENCE*", "NOTICE*", "Notice*", "USE_POLICY*"),
)
"""What belongs to a model beside its weights, by pattern."""
CODE = "*.py"
"""Belongs to a model whose config names classes in it."""

CONV1D_MODELS = frozenset({"clvp", "decision_transformer", "gpt2", "imagegpt", "openai-gpt"})
CONV1D_LAYERS = frozenset({"c_attn", "c_fc", "c_proj", "q_attn"})
"""The layers of transformers that keep their weight as ``(in, out)``."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A full model in safetensors whose tensors are read when asked for.

    Attributes:
        folder: Where its files are.
        origin: Where it came from.
        config: Its ``config.json``.
        shards: Its weight files by name, in the order of the names.
    """

    folder: Path
    origin: Origin
    config: Mapping[str, Any]
    shards: Mapping[str, SafetensorsStore]

    @property
    def label(self) -> str:
        """What messages call it: its Hub id, or the name of its folder."""
        return self.origin.repo_id or self.folder.resolve().name

    @cached_property
    def home(self) -> Mapping[str, str]:
        """The file that holds each tensor, by the tensor's name."""
        return {tensor: file for file, store in self.shards.items() for tensor in store.infos}

    @cached_property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Dtype and shape of each tensor, by name."""
        return {tensor: info for store in self.shards.values() for tensor, info in store.infos.items()}

    def store(self, tensor: str) -> SafetensorsStore:
        """Return the file that holds ``tensor``."""
        return self.shards[self.home[tensor]]

    def is_conv1d(self, module: str) -> bool:
        """Whether the layer ``module`` keeps its weight as ``(in, out)``."""
        return self.config.get("model_type") in CONV1D_MODELS and module.rpartition(".")[2] in CONV1D_LAYERS

    @property
    def ties(self) -> bool:
        """Whether the config has the input embedding serve as the head too; where it does not say, it may."""
        return bool(_said(self.config, "tie_word_embeddings", True))


def _said(config: Mapping[str, Any], key: str, default: Any) -> Any:
    """Return what the config, or its part about text, says."""
    text = config.get("text_config")
    inner = text.get(key, default) if isinstance(text, Mapping) else default
    return config.get(key, inner)


def open_checkpoint(folder: Path, origin: Origin) -> Checkpoint:
    """Open the full model in ``folder``.

    Raises:
        CheckpointError: There is none in safetensors, or it is quantised.
        AdapterFormatError: A file is damaged.
    """
    label = origin.repo_id or folder.resolve().name
    names = {path.name for path in folder.iterdir() if path.is_file()}
    text, index = (
        read_bounded(contained(folder, name), most=MAX_TEXT) if name in names else None
        for name in (MODEL_CONFIG, MODEL_INDEX)
    )
    config = read_config(text, label)
    files = weight_files(names, label, index)
    stores = {file: SafetensorsStore(folder / file) for file in files}
    checkpoint = Checkpoint(folder, origin, config, stores)
    if len(checkpoint.infos) < sum(len(store.infos) for store in checkpoint.shards.values()):
        raise CheckpointError(f"{label} holds a tensor twice.", remedy="Download it again.")
    return checkpoint


def read_config(text: bytes | None, label: str) -> Mapping[str, Any]:
    """Return the config of a model whose weights are plain numbers.

    Args:
        text: Content of its ``config.json``, ``None`` if it has none.
        label: What messages call the model.

    Raises:
        CheckpointError: It has none or a damaged one, or it is quantised.
    """
    if text is None:
        raise CheckpointError(
            f"{label} has no {MODEL_CONFIG}, so it is no full model.", remedy="Name a full model in its place."
        )
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{MODEL_CONFIG} of {label} is not JSON.", remedy="Download it again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{MODEL_CONFIG} of {label} is no JSON object.", remedy="Download it again.")
    if quantised := _said(config, "quantization_config", None):
        method = quantised.get("quant_method", "an unknown method") if isinstance(quantised, Mapping) else quantised
        raise CheckpointError(
            f"{label} is quantised ({method}); its weights cannot take a delta without being quantised anew.",
            remedy="Name the model that it was quantised from in its place; to fuse, with --base OWNER/NAME.",
        )
    return config


def weight_files(names: Collection[str], label: str, index: bytes | None = None) -> tuple[str, ...]:
    """Return which of ``names`` hold the model's tensors: one file, or the shards that its index names.

    Args:
        names: File names in the model's folder.
        label: What messages call the model.
        index: Content of the shard index, if there is one.

    Raises:
        CheckpointError: There are none in safetensors, or a shard is missing.
        AdapterFormatError: The index is damaged, or points out of the folder.
    """
    if MODEL_WEIGHTS in names:
        return (MODEL_WEIGHTS,)
    shards = indexed_files(index, MODEL_INDEX, most=MAX_TEXT) if index is not None else []
    if missing := [shard for shard in shards if shard not in names]:
        raise CheckpointError(f"Shard {missing[0]} of {label} is missing.", remedy="Download the model again.")
    if not shards:
        seen = sorted(name for name in names if name.endswith((".bin", ".gguf", ".safetensors", ".pt", ".pth")))
        raise CheckpointError(
            f"{label} has no {MODEL_WEIGHTS}, nor an index of shards (it has {', '.join(seen[:4]) or 'no weights'}).",
            remedy="Take a revision in safetensors, or convert it: load it with transformers and save_pretrained.",
        )
    return tuple(shards)


def companion_files(names: Iterable[str], config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return which of ``names`` belong to a model beside its weights, sorted."""
    patterns = (*COMPANIONS, CODE) if config.get("auto_map") else COMPANIONS
    return tuple(sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)))
