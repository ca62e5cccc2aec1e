"""Which tensors of a full model an adapter changes, and the model with the adapter folded in, block by block.

``W + delta`` is formed in float64 and rounded once, to the dtype that W has. A block of rows is all there is in memory,
whatever the size of the tensor.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hub_merge.adapter import Adapter
from hub_merge.bases import read_base
from hub_merge.errors import CheckpointError, MergeError
from hub_merge.formats.checkpoints import MODEL_CONFIG, MODEL_INDEX, Checkpoint
from hub_merge.formats.tensors import WRITABLE, TensorInfo, dtype_named, encode_header
from hub_merge.gram import Float64
from hub_merge.parallel import map_modules

__all__ = ["Block", "Fold", "Plan", "blocks", "delta_rows", "fold_into", "numbers", "plan_fold", "tensor_of"]

BLOCK = 2**18
"""Numbers in a block."""

INPUT_EMBEDDINGS = frozenset({"embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings"})
HEADS = frozenset({"lm_head", "embed_out"})
WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How the names of classes end that have a head over the vocabulary."""
SHARING = ("ForMaskedLM", "ForPreTraining")
"""How the names of classes end whose output layers, under names of their own, share the embedding."""

RENAMED = (("model.language_model.", "language_model.model."), ("language_model.model.", "model.language_model."))
"""Prefixes that transformers exchanged between its versions 4 and 5."""

MOST_NAMED = 6


@dataclass(frozen=True, slots=True)
class Fold:
    """One tensor of the result.

    Attributes:
        name: Its name.
        source: The tensor of the base that it is made from; another name only for one that the base ties to it.
        info: Dtype and shape, of both.
        module: The adapter's module whose delta is added; ``None`` for one that is copied.
        transposed: Whether it is stored as ``(in, out)``.
    """

    name: str
    source: str
    info: TensorInfo
    module: str | None = None
    transposed: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What the fused model consists of.

    Attributes:
        base: The model to fold into.
        adapter: The adapter to fold.
        shards: The tensors of each file, in the order in which they are stored.
        untied: Whether input embedding and head, one tensor in the base, become two.
        config: Content of ``config.json`` where it differs from the base's.
    """

    base: Checkpoint
    adapter: Adapter
    shards: Mapping[str, Sequence[Fold]]
    untied: bool
    config: Mapping[str, Any] | None

    @property
    def folds(self) -> list[Fold]:
        """Every tensor of the result."""
        return [fold for folds in self.shards.values() for fold in folds]


# --- which tensors ----------------------------------------------------------------------------------------------------


def plan_fold(base: Checkpoint, adapter: Adapter) -> Plan:
    """Return what folding ``adapter`` into ``base`` makes of each tensor.

    An adapter that changes the input embedding or the head of a model that ties them changes one of the two; they are
    untied then, so that the result computes what base and adapter compute together. (PEFT's ``merge_and_unload``
    changes both and warns.)

    Raises:
        MergeError: A module has no tensor in the base, several, or one of another shape; all of them are listed.
        CheckpointError: A tensor is stored in a dtype that takes no delta.
    """
    tied = _tied(base)
    sources = {**{name: name for name in base.infos}, **({tied[1]: tied[0]} if tied else {})}
    targets = _targets(base, adapter, sources)
    untied = tied is not None and not targets.keys().isdisjoint(tied)
    shards: dict[str, list[Fold]] = {}
    for file, store in base.shards.items():
        shards[file] = folds = []
        for name, info in sorted(store.infos.items(), key=lambda item: item[1].begin):
            folds.append(Fold(name, name, info, *targets.get(name, (None, False))))
            if tied and untied and name == tied[0]:
                folds.append(Fold(tied[1], name, info, *targets.get(tied[1], (None, False))))
    return Plan(base, adapter, shards, untied, _config(base, targets))


def _config(base: Checkpoint, targets: Iterable[str]) -> Mapping[str, Any] | None:
    """Return the config with its tie undone where an end of it changes, and without a local path; else ``None``."""
    config = dict(base.config)
    if "_name_or_path" in config and read_base(str(config["_name_or_path"])).model_id is None:
        del config["_name_or_path"]
    ends = {_last(target.removesuffix(".weight")) for target in targets} & (INPUT_EMBEDDINGS | HEADS)
    if base.ties and ends and (_tied(base) or _heads(base)):
        config["tie_word_embeddings"] = False
        text = config.get("text_config")
        if isinstance(text, Mapping) and "tie_word_embeddings" in text:
            config["text_config"] = {**text, "tie_word_embeddings": False}
    return None if config == base.config else config


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _heads(base: Checkpoint) -> list[str]:
    return [name for name in base.infos if _last(name.removesuffix(".weight")) in HEADS]


def _is_any(base: Checkpoint, endings: tuple[str, ...]) -> bool:
    """Whether the class of the model has a name with one of these endings."""
    return any(str(name).endswith(endings) for name in base.config.get("architectures") or [])


def _tied(base: Checkpoint) -> tuple[str, str] | None:
    """Return the tensor that serves as input embedding and head, and what the head is called; ``None`` if none does."""
    embeddings = [name for name in base.infos if _last(name.removesuffix(".weight")) in INPUT_EMBEDDINGS]
    if not (base.ties and len(embeddings) == 1 and _is_any(base, WITH_HEAD)) or _heads(base):
        return None
    wrapper = "language_model." if embeddings[0].startswith("language_model.") else ""
    return embeddings[0], f"{wrapper}lm_head.weight"


def _is_shared(base: Checkpoint, module: str) -> bool:
    """Whether ``module`` is an embedding that several layers share in a way that this version does not untie."""
    several = base.config.get("is_encoder_decoder") or (base.ties and _is_any(base, SHARING))
    return bool(several) and _last(module) in {*INPUT_EMBEDDINGS, "shared"}


def _targets(base: Checkpoint, adapter: Adapter, sources: Mapping[str, str]) -> dict[str, tuple[str, bool]]:
    """Return module and orientation by the name of the tensor that the module changes."""
    find = tensor_of(sources)
    targets: dict[str, tuple[str, bool]] = {}
    problems: dict[str, list[str]] = defaultdict(list)
    for module, spec in adapter.modules.items():
        found = find(module)
        if len(found) != 1:
            problems["that it lacks" if not found else "that could be several of its tensors"].append(module)
            continue
        info = base.infos[sources[found[0]]]
        transposed = spec.kind == "embedding" or base.is_conv1d(module)
        wanted = spec.shape[::-1] if transposed else spec.shape
        if found[0] in targets:
            problems["that are one tensor in it"] += [targets[found[0]][0], module]
        elif info.shape != wanted:
            problems["of another shape"].append(f"{module} {list(wanted)}, in the base {list(info.shape)}")
        elif _is_shared(base, module):
            problems["that several layers share"].append(module)
        else:
            _require_foldable(base, found[0], info)
            targets[found[0]] = (module, transposed)
    if problems:
        raise _misfit(base, adapter, problems)
    return targets


def _misfit(base: Checkpoint, adapter: Adapter, problems: Mapping[str, Sequence[str]]) -> MergeError:
    quantised = any(name.endswith((".qweight", ".weight.absmax", ".weight_scale")) for name in base.infos)
    listed = "; ".join(
        f"{len(names)} {what} ({', '.join(names[:MOST_NAMED])}{', …' if len(names) > MOST_NAMED else ''})"
        for what, names in problems.items()
    )
    return MergeError(
        f"{adapter.name} does not fit {base.label}: of its {len(adapter.modules)} modules there are {listed}.",
        remedy="Name the model that it was quantised from: --base OWNER/NAME."
        if quantised
        else "Name the model that the adapter was trained on: --base OWNER/NAME, or a folder.",
    )


def _require_foldable(base: Checkpoint, name: str, info: TensorInfo) -> None:
    if info.dtype not in WRITABLE:
        raise CheckpointError(
            f"{name} of {base.label} is {info.dtype}, and a delta is added to float32, bfloat16 or float16 only.",
            remedy="Name the same model in one of these: --base OWNER/NAME.",
        )


def tensor_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Return what finds the tensors that may be the weight of a module: the one of its name, or by their common end.

    A checkpoint may have been saved without the prefix that the module has (``transformer.``), or with one more. One of
    the two names has to end with the whole of the other.
    """
    present = set(names)
    longer: dict[str, list[str]] = defaultdict(list)
    for name in sorted(present):
        for tail in _tails(name):
            longer[tail].append(name)

    def find(module: str) -> list[str]:
        keys = [f"{module}.weight"]
        keys += [new + keys[0].removeprefix(old) for old, new in RENAMED if keys[0].startswith(old)]
        if exact := [key for key in keys if key in present]:
            return exact
        return [*longer[keys[0]], *(tail for tail in _tails(keys[0]) if tail in present)]

    return find


def _tails(name: str) -> Iterator[str]:
    """Yield the ends of a dotted name, longest first, without the whole."""
    while "." in name:
        name = name.partition(".")[2]
        yield name


# --- block by block ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A part of one tensor.

    Attributes:
        fold: The tensor.
        start: First byte.
        stop: Byte after the last.
        left: Rows of the left factor of the delta that belong to it, scaling included, float64; ``None`` for a copy.
        right: The right factor.
    """

    fold: Fold
    start: int
    stop: int
    left: Float64 | None = None
    right: Float64 | None = None


def blocks(adapter: Adapter, folds: Iterable[Fold]) -> Iterator[Block]:
    """Cut tensors into blocks, in order; the factors of a module are computed once and kept for its blocks only."""
    for fold in folds:
        info = fold.info
        if fold.module is None:
            size = info.end - info.begin
            yield from (Block(fold, at, min(at + 8 * BLOCK, size)) for at in range(0, size, 8 * BLOCK))
            continue
        left, right = _sides(adapter, fold)
        row = info.shape[1] * dtype_named(info.dtype).itemsize
        height = max(1, BLOCK // info.shape[1])
        for first in range(0, info.shape[0], height):
            last = min(first + height, info.shape[0])
            yield Block(fold, first * row, last * row, left[first:last], right)


def _sides(adapter: Adapter, fold: Fold) -> tuple[Float64, Float64]:
    """Return the factors of the delta as the tensor is stored: ``delta = left @ right``."""
    factors = adapter.factors(str(fold.module))
    A: Float64 = factors.A.astype(np.float64, copy=False)
    B: Float64 = factors.scaling * factors.B.astype(np.float64, copy=False)
    return (A.T, B.T) if fold.transposed else (B, A)


def delta_rows(block: Block) -> Float64:
    """Return the rows of the delta that belong to a block of a changed tensor."""
    if block.left is None or block.right is None:
        raise ValueError(f"{block.fold.name} is not changed")
    return np.asarray(block.left @ block.right)


def numbers(block: Block, raw: NDArray[np.uint8]) -> NDArray[Any]:
    """Return the bytes of a block of a changed tensor as rows of its dtype."""
    return raw.view(dtype_named(block.fold.info.dtype)).reshape(-1, block.fold.info.shape[1])


def fold_into(plan: Plan, folder: Path, progress: Callable[[str], None] = lambda tensor: None) -> None:
    """Write the weights of the fused model to ``folder``, and config and index where they differ from the base's.

    Args:
        plan: What to write.
        folder: Existing folder without these files.
        progress: Called with each tensor's name when it is written.
    """

    def folded(block: Block) -> tuple[Block, NDArray[np.uint8]]:
        raw = plan.base.store(block.fold.source).read_bytes(block.fold.source, block.start, block.stop)
        if block.left is None:
            return block, raw
        weights = numbers(block, raw)
        with np.errstate(over="ignore"):  # the proof finds what overflowed
            total = delta_rows(block)
            total += weights
            return block, total.astype(weights.dtype).view(np.uint8).reshape(-1)

    for file, folds in plan.shards.items():
        with (folder / file).open("xb") as output:
            output.write(encode_header({fold.name: (fold.info.dtype, fold.info.shape) for fold in folds}))
            for block, content in map_modules(folded, blocks(plan.adapter, folds)):
                output.write(content.data)
                if block.stop == block.fold.info.end - block.fold.info.begin:
                    progress(block.fold.name)
    _write_texts(plan, folder)


def _write_texts(plan: Plan, folder: Path) -> None:
    if plan.config is not None:
        (folder / MODEL_CONFIG).write_text(json.dumps(plan.config, indent=2) + "\n", encoding="utf-8")
    index = plan.base.folder / MODEL_INDEX
    if plan.untied and len(plan.shards) > 1 and index.is_file():
        content = json.loads(index.read_bytes())
        content["weight_map"] = {fold.name: file for file, folds in plan.shards.items() for fold in folds}
        size = sum(math.prod(fold.info.shape) * dtype_named(fold.info.dtype).itemsize for fold in plan.folds)
        content["metadata"] = {**content.get("metadata", {}), "total_size": size}
        (folder / MODEL_INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
