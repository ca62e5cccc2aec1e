"""Writing a composite: factors, proof, record, recipe, card and what its sources' licences ask for."""

from __future__ import annotations

from pathlib import Path

from hub_merge.adapter import Adapter, Origin
from hub_merge.budgets import budget
from hub_merge.choice import choose
from hub_merge.composite import Composite
from hub_merge.errors import MergeError, OutputExists, ProofFailed
from hub_merge.formats.opening import open_adapter_files
from hub_merge.formats.output import get_format
from hub_merge.formats.tensors import dtype_named
from hub_merge.layout import CARD_FILE, OWN_CONTENT, RECORD_FILE
from hub_merge.licenses import verdict_of
from hub_merge.mixtures import write_mixtures
from hub_merge.notices import carried_texts, notice_texts, write_texts
from hub_merge.pipeline.documents import document, keep_words
from hub_merge.pipeline.merging import merge
from hub_merge.pipeline.progress import Progress, counter, silent
from hub_merge.proof import Proof, prove
from hub_merge.provenance import build_record, read_record
from hub_merge.recipe import MergeRecord
from hub_merge.scores import Scoring
from hub_merge.staging import staged

__all__ = ["require_rank_at_most", "require_room", "save", "write_composite"]

HEADER_BYTES = 1000
"""More than two tensors take in the header of a file."""


def save(
    adapter: Adapter,
    folder: Path,
    *,
    format: str = "peft",
    force: bool = False,
    picture: bool = False,
    base: Origin | None = None,
    progress: Progress = silent,
) -> Path:
    """Write ``adapter`` to ``folder`` with proof, record, recipe and card; whole or not at all.

    A plain adapter is written as the sum of itself alone, so it is checked and proved like any composite.

    Args:
        adapter: What to write.
        folder: Where to; created with its parents.
        format: ``peft``, or ``kohya``, ``diffusers`` or ``mlx`` where that format can hold the adapter.
        force: Replace a composite that is there; what was written around our part of a composite's card stays.
        picture: Draw the scores too (needs matplotlib).
        base: Where the base model is and which licence it states, where that is known.
        progress: Told of each module that is written or compared.

    Raises:
        BudgetExceeded: The file would be larger than a limit or the disk allows.
        OutputExists: ``folder`` exists and ``force`` is not set, or it is a parent's or holds something else too.
        ProofFailed: What was written is not what was asked for; nothing is left behind.
        IncompatibleAdapters: The adapter holds more than its factors, which would be lost.
        MergeError: The format cannot hold the adapter, or its profile.
    """
    write_composite(adapter, folder, format=format, force=force, picture=picture, base=base, progress=progress)
    return folder.expanduser()


def write_composite(
    adapter: Adapter,
    folder: Path,
    *,
    format: str,
    force: bool,
    picture: bool,
    base: Origin | None,
    progress: Progress,
) -> MergeRecord:
    """Do what ``save`` does and return the record that was written; the folder may be another run's by then."""
    target = get_format(format)
    composite = adapter if isinstance(adapter, Composite) else merge([adapter])
    target.require_profile(composite.profile)
    folder = folder.expanduser()
    _require_no_parent(folder, composite)
    target.require_content(composite)
    require_room(composite, folder)
    total = len(composite.modules)
    with staged(folder, force, OWN_CONTENT) as stage:
        target.write(
            composite,
            stage,
            base_model=composite.base_model,
            dtype=composite.dtype,
            rank=composite.uniform_rank,
            progress=counter("write", total, progress),
        )
        if composite.mixtures is not None:
            write_mixtures(composite.mixtures, stage)
        written = open_adapter_files(stage, choose(target.files), name=composite.name, origin=Origin(folder=stage))
        scoring = Scoring(composite.parents, composite.weights)
        proof = prove(stage, written, composite, counter("prove", total, progress), scoring)
        _require_proof(proof)
        scores = scoring.result()
        record = build_record(composite, stage, scores, proof, base, target)
        document(record, stage, scores if picture else None)
        carried = carried_texts(record, base, [parent.origin for parent in composite.parents])
        write_texts(stage, {**carried, **notice_texts(verdict_of(record), carried)})
        if (folder / RECORD_FILE).is_file() and (folder / CARD_FILE).is_file():
            keep_words(folder / CARD_FILE, stage / CARD_FILE)
        return read_record(stage)


def _require_no_parent(folder: Path, composite: Composite) -> None:
    """Raise ``OutputExists`` if writing to ``folder`` would replace what the composite is made from."""
    for parent in composite.parents:
        if parent.origin.folder is not None and parent.origin.folder.resolve() == folder.resolve():
            raise OutputExists(
                f"{folder} is the folder of {parent.name}, which goes into the merge, so it is not replaced even with "
                "--force.",
                remedy="Choose another folder.",
            )


def require_room(composite: Composite, folder: Path) -> None:
    """Raise ``BudgetExceeded`` if the file would be too large for ``folder``: each module is padded to the one rank."""
    numbers = composite.rank * sum(sum(spec.shape) for spec in composite.modules.values())
    size = numbers * dtype_named(composite.dtype).itemsize + HEADER_BYTES * len(composite.modules)
    limits = budget()
    limits.require_bytes(size, f"A composite of rank {composite.rank} in every module")
    limits.require_disk(size, folder.parent, "The composite")


def require_rank_at_most(composite: Composite, max_rank: int | None) -> None:
    """Raise ``MergeError`` if ``composite`` has a module of a larger rank than a server, or whoever asks, accepts."""
    if max_rank is None or composite.rank <= max_rank:
        return
    largest = max(parent.rank for parent in composite.parents)
    if composite.profile == "peft":
        remedy = f"Leave out --profile peft and give --rank {max_rank}; here a rank is an average over the modules."
    elif composite.method.name == "sum" and composite.rank_asked is None and largest <= max_rank:
        remedy = f"Take --method svd, which has rank {largest} here, or give --rank {max_rank}."
    else:
        remedy = f"Give --rank {max_rank}."
    raise MergeError(f"The composite has rank {composite.rank}; --max-rank allows {max_rank}.", remedy=remedy)


def _require_proof(proof: Proof) -> None:
    if not proof.passed:
        failed = "; ".join(f"{entry.name}: {entry.detail}" for entry in proof.checks if not entry.passed)
        raise ProofFailed(
            f"The written composite is not what was asked for ({failed}).",
            remedy="Try --dtype float32; if that fails too, please report it.",
        )
