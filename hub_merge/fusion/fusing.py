"""An adapter folded into its base: from references to a proved folder, and from that to the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hub_merge.adapter import Adapter
from hub_merge.bases import read_base
from hub_merge.card import published_card, update_card
from hub_merge.compat import check
from hub_merge.errors import MergeError, OutputExists, ProofFailed, RecipeError
from hub_merge.formats.checkpoints import MODEL_INDEX, Checkpoint, companion_files
from hub_merge.formats.peft import contained
from hub_merge.fusion.card import render_fused_card
from hub_merge.fusion.folding import Plan, fold_into, plan_fold
from hub_merge.fusion.proof import FusionProof, prove_fusion
from hub_merge.fusion.record import BaseModel, FusionRecord, is_fused, read_fusion
from hub_merge.hub import Hub
from hub_merge.layout import CARD_FILE, LICENSES_FOLDER, RECORD_FILE
from hub_merge.licenses import terms_files
from hub_merge.notices import FUSED, carried_names, notice_texts, write_texts
from hub_merge.parallel import map_modules
from hub_merge.pipeline import followers, is_open, require_compatible, require_lawful, save
from hub_merge.pipeline.progress import Progress, counter, silent
from hub_merge.provenance import parent_of, read_record
from hub_merge.publish import Published, publish_folder
from hub_merge.recipe import MergeRecord
from hub_merge.sources import file_digest, open_adapter, open_model, pinned_reference
from hub_merge.staging import require_free, staged
from hub_merge.workspace import workspace

__all__ = ["fuse", "push_fused"]

COARSE = 0.25
"""Share of the delta's norm from which what rounding takes is told as a caution."""


def fuse(
    adapter: Adapter | str | Path,
    output: str | Path,
    *,
    base: str | Path | None = None,
    allow: Sequence[str] = (),
    force: bool = False,
    hub: Hub | None = None,
    progress: Progress = silent,
) -> FusionRecord:
    """Fold an adapter into its base model and write the full model, whole or not at all.

    Each adapted weight becomes ``W + scaling * B @ A``, added in float64 and rounded once to the dtype of ``W``, in
    blocks of rows: neither model nor tensor is held in memory. Everything else is carried over as it is. What was
    written is read again and compared with base and adapter.

    Args:
        adapter: A composite or any adapter that can be merged: the value, a folder, or a Hub id.
        output: Folder to create.
        base: Full model in safetensors, a folder or a Hub id; the one that the adapter states by default.
        allow: Codes of findings that you accept, such as ``unknown_fields``.
        force: Replace a fused model that is there.
        hub: Client to pull with.
        progress: Told of each tensor that is written or compared.

    Raises:
        IncompatibleAdapters: The adapter holds more than its factors, which would be lost.
        MergeError: The adapter does not fit the base; every module is listed.
        CheckpointError: The base is quantised, or not in safetensors.
        OutputExists: ``output`` exists and ``force`` is not set, or it holds something else.
        ProofFailed: What was written is not base plus delta; nothing is left behind.
    """
    hub, output = hub or Hub(), Path(output).expanduser()
    require_free(output, force, _own_files(output))
    with _opened(adapter, hub) as opened:
        cautions = _accepted(opened, allow)
        model = _open_base(opened, base, hub)
        if model.folder.resolve() == output.resolve():
            raise OutputExists(f"{output} is the base itself.", remedy="Choose another folder.")
        if differs := _another_base(opened, model, hub):
            cautions.append(differs)
        plan = plan_fold(model, opened)
        with staged(output, force, _own_files(output)) as stage:
            proof = _write(plan, stage, progress)
            record = _with_notices(_record(plan, stage, proof, cautions), stage, _texts_of(opened))
            _document(record, stage, output / CARD_FILE if is_fused(output) else None)
    return record


@contextmanager
def _opened(adapter: Adapter | str | Path, hub: Hub) -> Iterator[Adapter]:
    """Yield the adapter as it is on disk; one that is only in memory is saved first, with record and proof."""
    if not isinstance(adapter, Adapter):
        yield open_adapter(adapter, hub=hub)
    elif adapter.origin.folder is not None:
        yield adapter
    else:
        with workspace() as place:
            yield open_adapter(save(adapter, place / adapter.name), hub=hub)


def _accepted(adapter: Adapter, allow: Sequence[str]) -> list[str]:
    """Return what was found and accepted.

    Raises:
        IncompatibleAdapters: Something was found that has not been accepted.
    """
    report = check([adapter], allow=allow).report
    require_compatible(report)
    return [found.describe() for found in report.findings if found.code in allow]


def _open_base(adapter: Adapter, base: str | Path | None, hub: Hub) -> Checkpoint:
    if base is not None:
        return open_model(base, hub=hub)
    stated = read_base(adapter.base_model)
    if stated.model_id is None:
        raise MergeError(
            f"{adapter.name} states no base model on the Hub ({stated.label}).",
            remedy="Name the model that it was trained on: --base OWNER/NAME, or a folder.",
        )
    return open_model(stated.model_id, revision=adapter.base_revision or stated.revision, hub=hub)


def _another_base(adapter: Adapter, model: Checkpoint, hub: Hub) -> str | None:
    """Return a sentence if the adapter states a base on the Hub and was folded into another."""
    stated, used = read_base(adapter.base_model).model_id, model.origin.repo_id
    if stated is None or used is None or stated.lower() == used.lower():
        return None
    canonical, _ = followers(hub)
    if canonical is not None and canonical(stated) == used:
        return None
    return f"The adapter states the base {stated}; it was folded into {used}, as asked."


# --- writing ----------------------------------------------------------------------------------------------------------


def _own_files(folder: Path) -> Sequence[str]:
    """Return the files that an earlier fusion wrote to ``folder``."""
    if not is_fused(folder):
        return ()
    try:
        files = read_fusion(folder).output["files"]
    except RecipeError:
        return ()
    return CARD_FILE, RECORD_FILE, f"{LICENSES_FOLDER}/", *(str(file["name"]) for file in files)


def _write(plan: Plan, stage: Path, progress: Progress) -> FusionProof:
    total = len(plan.folds)
    fold_into(plan, stage, counter("write", total, progress))
    for name in _carried(plan.base):
        if not (stage / name).exists():
            shutil.copyfile(plan.base.folder / name, stage / name)
    proof = prove_fusion(plan, stage, counter("prove", total, progress))
    if not proof.passed:
        failed = "; ".join(f"{entry.name}: {entry.detail}" for entry in proof.checks if not entry.passed)
        raise ProofFailed(
            f"The written model is not base plus delta ({failed}).",
            remedy="Look for NaN or infinity in base and adapter, and for an overflow of float16.",
        )
    return proof


def _carried(base: Checkpoint) -> list[str]:
    names = [path.name for path in base.folder.iterdir() if path.is_file()]
    index = [MODEL_INDEX] if len(base.shards) > 1 and MODEL_INDEX in names else []
    return [*companion_files(names, base.config), *index]


def _record(plan: Plan, stage: Path, proof: FusionProof, cautions: list[str]) -> FusionRecord:
    base, merged = plan.base, _merge_record(plan.adapter)
    used = [*plan.base.shards, *_carried(base)]
    written = sorted(path.name for path in stage.iterdir())
    paths = [*(base.folder / name for name in used), *(stage / name for name in written)]
    digests = [asdict(digest) for digest in map_modules(file_digest, paths)]
    origin, name = base.origin, base.label
    changed = [fold for fold in plan.folds if fold.module is not None]
    return FusionRecord(
        base=BaseModel(
            name=name,
            model=pinned_reference(origin, name),
            repo_id=origin.repo_id,
            commit=origin.commit,
            license=origin.license,
            license_details=origin.license_details,
            gated=origin.gated,
            private=origin.private,
            files=tuple(digests[: len(used)]),
        ),
        adapter=parent_of(plan.adapter, 1.0),
        parents=merged.parents if merged else (),
        recipe=merged.recipe.to_dict() if merged else None,
        output={
            "dtypes": sorted({fold.info.dtype for fold in changed}),
            "tensors": len(plan.folds),
            "untied": plan.untied,
            "files": digests[len(used) :],
        },
        cautions=(*cautions, *_cautions(plan, proof)),
        proof=proof.to_dict(),
        versions={package: version(package) for package in ("hub-merge", "numpy", "ml_dtypes")},
    )


def _texts_of(adapter: Adapter) -> dict[str, str]:
    """Return the licence texts that came with the adapter, and with its parents, by their names in the fused model."""
    folder, merged = adapter.origin.folder, _merge_record(adapter)
    if folder is None:
        return {}
    kept = [contained(folder, name) for name in (carried_names(merged) if merged else ())]
    texts = {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in kept if path.is_file()}
    return {f"{LICENSES_FOLDER}/adapter/{name}": text for name, text in (terms_files(folder) | texts).items()}


def _with_notices(record: FusionRecord, stage: Path, carried: Mapping[str, str]) -> FusionRecord:
    """Write what the licences of the sources ask for beside the model, and return the record with these files."""
    texts = {**carried, **notice_texts(record.license, {**carried, **terms_files(stage)}, FUSED)}
    write_texts(stage, texts)
    files = {str(file["name"]): file for file in record.output["files"]}
    files |= {name: {**asdict(file_digest(stage / name)), "name": name} for name in texts}
    return replace(record, output={**record.output, "files": [files[name] for name in sorted(files)]})


def _merge_record(adapter: Adapter) -> MergeRecord | None:
    """Return the record of the merge that the adapter came from, if it tells of one that can be read."""
    folder = adapter.origin.folder
    if folder is None or not (folder / RECORD_FILE).is_file():
        return None
    try:
        return read_record(folder)
    except RecipeError:
        return None


def _cautions(plan: Plan, proof: FusionProof) -> Iterator[str]:
    if plan.untied:
        yield (
            "The base ties input embedding and head and the adapter changes one of them, so they are two tensors here "
            "(tie_word_embeddings is false)."
        )
    if proof.rounding is not None and proof.rounding > COARSE:
        yield f"Rounding takes {proof.rounding:.0%} of the norm of the delta; the adapter on the base is more exact."


def _document(record: FusionRecord, stage: Path, replaced: Path | None) -> None:
    """Write record and card; what the user wrote around our part of a card that is replaced stays."""
    (stage / RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
    card = render_fused_card(record)
    if replaced is not None and replaced.is_file():
        card = update_card(replaced.read_text(encoding="utf-8"), card)
    (stage / CARD_FILE).write_text(card, encoding="utf-8")


# --- publishing -------------------------------------------------------------------------------------------------------


def push_fused(
    folder: Path,
    repo_id: str,
    *,
    hub: Hub,
    private: bool | None = None,
    accept_unknown_license: bool = False,
    **asked: Any,
) -> Published:
    """Publish the fused model in ``folder`` as one commit; see ``publish.publish_folder`` for ``asked``.

    A new repository is private unless said otherwise if base, adapter or one of its parents is private or gated.

    Raises:
        PublishError: The repository is that of base or adapter, the licences do not allow it, the Hub refused, or the
            repository changed meanwhile.
    """
    record = read_fusion(folder)
    require_lawful(record.license, repo_id, accept_unknown=accept_unknown_license)
    if private is None and not all(is_open(source, hub) for source in record.sources):
        private = True
    names = [name for name in _own_files(folder) if (folder / name).is_file()]

    written = (folder / CARD_FILE).read_text(encoding="utf-8")

    def texts(full_id: str, published: str | None) -> dict[str, str]:
        local = update_card(written, render_fused_card(record, repo_id=full_id))
        return {CARD_FILE: local if published is None else published_card(published, local)}

    sources = [source.repo_id for source in record.sources if source.repo_id]
    return publish_folder(folder, repo_id, hub=hub, files=names, private=private, texts=texts, sources=sources, **asked)
