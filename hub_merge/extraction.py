"""A LoRA adapter out of two full models: the closest update of a rank to their difference, module by module."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hub_merge.adapter import Adapter, LoraFactors, ModuleSpec
from hub_merge.card import code_span
from hub_merge.composite import module_generator
from hub_merge.errors import MergeError
from hub_merge.formats.checkpoints import Checkpoint
from hub_merge.formats.tensors import WRITABLE, TensorInfo, dtype_named
from hub_merge.fusion.folding import BLOCK, INPUT_EMBEDDINGS, tensor_of
from hub_merge.gram import Float64
from hub_merge.hub import Hub
from hub_merge.layout import CARD_FILE, OWN_CONTENT
from hub_merge.lowrank import closest_update
from hub_merge.parallel import map_modules
from hub_merge.pipeline import merge, save
from hub_merge.pipeline.progress import Progress, silent
from hub_merge.ranks import smallest_rank
from hub_merge.sources import open_model, pinned_reference
from hub_merge.staging import require_free
from hub_merge.workspace import write_whole

__all__ = ["ExtractedModule", "Extraction", "extract"]


TASK_TYPES = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
"""PEFT's task types, by the end of the model's class."""

NO_LORA = INPUT_EMBEDDINGS | {"wpe", "embed_positions", "position_embeddings", "shared"}
"""Layers of two dimensions that are no product with a matrix."""

ROOTS = {"h": "transformer", "layers": "model"}
"""First names of layers in a checkpoint that was saved without its head, and what the whole model puts before them."""

MOST_NAMED = 6


@dataclass(frozen=True, slots=True)
class ExtractedModule:
    """What became of one module.

    Attributes:
        name: Its name.
        change: ``‖tuned - base‖ / ‖base‖``; ``None`` where the base is zero.
        energy: Share of ``‖tuned - base‖²`` that the adapter keeps, [0, 1].
    """

    name: str
    change: float | None
    energy: float


@dataclass(frozen=True, slots=True)
class Extraction:
    """An adapter that was extracted, and what it keeps.

    Attributes:
        tuned: Reference of the tuned model, pinned.
        base: Reference of the base model, pinned.
        rank: Rank of the adapter.
        energy: Share of the squared norm of all differences between matrices that it keeps, [0, 1].
        modules: The modules it has; those that do not differ are left out.
        not_carried: Tensors that differ and that it cannot hold: embeddings, norms, biases, convolutions, tensors of
            another shape or of the tuned model alone, and what was left out on request.
    """

    tuned: str
    base: str
    rank: int
    energy: float
    modules: tuple[ExtractedModule, ...]
    not_carried: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Pair:
    """One tensor of the tuned model and the one it was trained from; ``None`` where the base lacks it."""

    module: str
    tuned: str
    base: str | None
    info: TensorInfo


@dataclass(frozen=True, slots=True, eq=False)
class _Update:
    """The closest update of one module, oriented as ``(out, in)``.

    Attributes:
        pair: Its tensors.
        factors: Balanced factors, float32, singular values falling.
        squares: Squared singular values of the factors.
        difference: Squared norm of tuned - base.
        base: Squared norm of the base.
    """

    pair: _Pair
    factors: LoraFactors
    squares: Float64
    difference: float
    base: float


def extract(
    tuned: str | Path,
    base: str | Path,
    output: str | Path,
    *,
    rank: int,
    energy: float | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    dtype: str | None = None,
    seed: int = 0,
    force: bool = False,
    hub: Hub | None = None,
    progress: Progress = silent,
) -> Extraction:
    """Write the LoRA adapter that is closest to what training made of a full model.

    For each matrix the update of ``rank`` closest to ``tuned - base`` is found by a randomised range finder that sees
    the difference in blocks of rows, several times over; neither matrix is ever held. The adapter is written and proved
    like any other; what it cannot hold is listed.

    Args:
        tuned: The tuned model in safetensors, a folder or a Hub id.
        base: The model it was trained from.
        output: Folder to create.
        rank: Largest rank of the adapter.
        energy: Take the smallest rank up to ``rank`` that keeps this share of the squared norm, (0, 1].
        include: Only modules whose name has one of these parts.
        exclude: No modules whose name has one of these parts.
        dtype: ``float32`` (by default), ``bfloat16`` or ``float16``.
        seed: Seed of the random search spaces.
        force: Replace a composite that is there.
        hub: Client to pull with.
        progress: Told of each module.

    Raises:
        MergeError: Nothing that an adapter can hold differs, or a difference is not finite.
        CheckpointError: A model is quantised, or not in safetensors.
        OutputExists: ``output`` exists and ``force`` is not set.
    """
    if rank < 1 or (energy is not None and not 0 < energy <= 1):
        raise MergeError(f"Rank {rank} or energy {energy} is out of range.", remedy="rank from 1, energy in (0, 1].")
    hub, output = hub or Hub(), Path(output).expanduser()
    require_free(output, force, OWN_CONTENT)
    models = open_model(tuned, hub=hub), open_model(base, hub=hub)
    wanted, other = _sorted_out(*models, include, exclude)
    updates = list(_updates(models, wanted, rank, seed, progress))
    if not updates:
        raise MergeError(
            f"No matrix of {models[0].label} that was asked for differs from {models[1].label}.",
            remedy="Compare the names of the two models, and --include and --exclude.",
        )
    kept = _energies(updates)
    chosen = smallest_rank(kept, energy) or rank if energy is not None else len(kept)
    result = Extraction(
        tuned=pinned_reference(models[0].origin, models[0].label),
        base=pinned_reference(models[1].origin, models[1].label),
        rank=chosen,
        energy=kept[chosen - 1],
        modules=tuple(_told(update, chosen) for update in updates),
        not_carried=tuple(sorted(pair.tuned for pair in other if _differs(models, pair))),
    )
    adapter = _adapter(models, updates, chosen)
    save(merge([adapter], dtype=dtype), output, force=force, progress=progress)
    _add_to_card(output / CARD_FILE, result)
    return result


def _sorted_out(
    tuned: Checkpoint, base: Checkpoint, include: Sequence[str], exclude: Sequence[str]
) -> tuple[list[_Pair], list[_Pair]]:
    """Return the tensors that an adapter can hold and that are asked for, and all others."""
    find = tensor_of(base.infos)
    wanted: list[_Pair] = []
    other: list[_Pair] = []
    for name, info in tuned.infos.items():
        module = name.removesuffix(".weight")
        found = [name] if name in base.infos else find(module) if name.endswith(".weight") else []
        pair = _Pair(_full_name(module), name, found[0] if len(found) == 1 else None, info)
        asked = (not include or any(part in module for part in include)) and not any(p in module for p in exclude)
        (wanted if asked and _is_matrix(base, pair) else other).append(pair)
    return wanted, other


def _full_name(module: str) -> str:
    """Return the name that the module has in the model with its head."""
    root = ROOTS.get(module.partition(".")[0])
    return f"{root}.{module}" if root else module


def _is_matrix(base: Checkpoint, pair: _Pair) -> bool:
    """Whether LoRA can hold the difference of the pair."""
    if pair.base is None or not pair.tuned.endswith(".weight") or len(pair.info.shape) != 2:
        return False
    before = base.infos[pair.base]
    fits = before.shape == pair.info.shape and {before.dtype, pair.info.dtype} <= set(WRITABLE)
    return fits and _last(pair.module) not in NO_LORA


# --- differences ------------------------------------------------------------------------------------------------------


def _rows(model: Checkpoint, name: str) -> Iterator[Float64]:
    """Yield a matrix in blocks of rows, float64."""
    store, info = model.store(name), model.infos[name]
    dtype, (count, columns) = dtype_named(info.dtype), info.shape
    height = max(1, BLOCK // max(1, columns))
    for first in range(0, count, height):
        last = min(first + height, count)
        size = columns * dtype.itemsize
        yield store.read_bytes(name, first * size, last * size).view(dtype).reshape(-1, columns).astype(np.float64)


def _differs(models: tuple[Checkpoint, Checkpoint], pair: _Pair) -> bool:
    """Whether the bytes of a pair differ, or cannot be compared."""
    tuned, base = models
    if pair.base is None or base.infos[pair.base].shape != pair.info.shape:
        return True
    if base.infos[pair.base].dtype != pair.info.dtype:
        after, before = tuned.store(pair.tuned).read(pair.tuned), base.store(pair.base).read(pair.base)
        return not np.array_equal(after.astype(np.float64), before.astype(np.float64))
    size = pair.info.end - pair.info.begin
    return any(
        not np.array_equal(
            tuned.store(pair.tuned).read_bytes(pair.tuned, at, min(at + BLOCK, size)),
            base.store(pair.base).read_bytes(pair.base, at, min(at + BLOCK, size)),
        )
        for at in range(0, size, BLOCK)
    )


def _updates(
    models: tuple[Checkpoint, Checkpoint], pairs: Sequence[_Pair], rank: int, seed: int, progress: Progress
) -> Iterator[_Update]:
    """Yield the closest update of each pair that differs."""
    progress("fit", 0, len(pairs))

    def fitted(pair: _Pair) -> _Update | None:
        return _fitted(models, pair, rank, module_generator(seed, pair.module))

    for done, update in enumerate(map_modules(fitted, pairs), 1):
        progress("fit", done, len(pairs))
        if update is not None:
            yield update


def _fitted(models: tuple[Checkpoint, Checkpoint], pair: _Pair, rank: int, rng: np.random.Generator) -> _Update | None:
    tuned, base = models

    def blocks() -> Iterator[Float64]:
        before = _rows(base, str(pair.base))
        return (after - old for after, old in zip(_rows(tuned, pair.tuned), before, strict=True))

    difference = sum(float(np.vdot(block, block)) for block in blocks())
    if difference == 0:
        return None
    if not math.isfinite(difference):
        raise MergeError(f"{pair.tuned}: tuned - base is not finite.", remedy="Leave it out with --exclude.")
    rows, columns = pair.info.shape
    factors = closest_update(blocks, (rows, columns), min(rank, rows, columns), rng)
    squares: Float64 = np.sum(factors.B**2, axis=0) ** 2
    if base.is_conv1d(pair.module):
        factors = LoraFactors(factors.B.T, factors.A.T)
    before = sum(float(np.vdot(block, block)) for block in _rows(base, str(pair.base)))
    return _Update(pair, factors.astype(np.float32), squares, difference, before)


def _energies(updates: Sequence[_Update]) -> tuple[float, ...]:
    """Return the share of all differences that each rank keeps, from 1 to the largest there is."""
    kept = np.zeros(max(len(update.squares) for update in updates))
    for update in updates:
        kept[: len(update.squares)] += update.squares
    total = sum(update.difference for update in updates)
    return tuple(min(1.0, float(share)) for share in np.cumsum(kept) / total)


def _told(update: _Update, rank: int) -> ExtractedModule:
    return ExtractedModule(
        name=update.pair.module,
        change=math.sqrt(update.difference / update.base) if update.base else None,
        energy=min(1.0, float(update.squares[:rank].sum()) / update.difference),
    )


# --- the adapter ------------------------------------------------------------------------------------------------------


def _adapter(models: tuple[Checkpoint, Checkpoint], updates: Sequence[_Update], rank: int) -> Adapter:
    tuned, base = models
    parts = {update.pair.module: LoraFactors(update.factors.A[:rank], update.factors.B[:, :rank]) for update in updates}
    return Adapter(
        name=tuned.label.rpartition("/")[2],
        modules={
            module: ModuleSpec(module, "linear", part.shape, part.rank, 1.0, "float32")
            for module, part in parts.items()
        },
        load=parts.__getitem__,
        base_model=base.origin.repo_id,
        task_type=_task_type(tuned.config),
        target_modules=_targets([_full_name(name.rpartition(".")[0]) for name in tuned.infos], parts),
        fan_in_fan_out=any(base.is_conv1d(module) for module in parts),
        origin=replace(tuned.origin, folder=None, repo_id=None, commit=None),
    )


def _task_type(config: Mapping[str, Any]) -> str | None:
    name = str(next(iter(config.get("architectures") or []), ""))
    if name.endswith("ForConditionalGeneration"):
        return "SEQ_2_SEQ_LM" if config.get("is_encoder_decoder") else "CAUSAL_LM"
    return next((task for ending, task in TASK_TYPES.items() if name.endswith(ending)), None)


def _targets(modules: Iterable[str], parts: Mapping[str, LoraFactors]) -> tuple[str, ...]:
    """Return names that select exactly ``parts`` of ``modules``: last names where every module so called is in it."""
    outside = {_last(module) for module in modules if module not in parts}
    return tuple(sorted({module if _last(module) in outside else _last(module) for module in parts}))


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _add_to_card(path: Path, result: Extraction) -> None:
    """Say below the generated part of the card where the adapter comes from and what it keeps."""
    most = sorted(result.modules, key=lambda module: module.energy)[:MOST_NAMED]
    lines = [
        "## Extracted from two full models",
        "",
        f"This adapter is the closest update of rank {result.rank} to {code_span(result.tuned)} minus "
        f"{code_span(result.base)}, module by module. It keeps {result.energy:.1%} of the squared norm of the "
        f"differences between their matrices; {len(result.modules)} matrices differ.",
        "",
        "Least is kept in: " + ", ".join(f"{code_span(module.name)} {module.energy:.1%}" for module in most) + ".",
    ]
    if result.not_carried:
        named = ", ".join(map(code_span, result.not_carried[:MOST_NAMED]))
        more = f" and {len(result.not_carried) - MOST_NAMED} more" if len(result.not_carried) > MOST_NAMED else ""
        lines += ["", f"Differs too, but is not in the adapter: {named}{more}."]
    write_whole(path, path.read_text(encoding="utf-8") + "\n" + "\n".join(lines) + "\n")
