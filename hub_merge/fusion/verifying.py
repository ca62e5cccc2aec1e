"""Verifying a fused model: base and adapter are had again, and every number is compared with their sum."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hub_merge.adapter import FileDigest
from hub_merge.errors import AdapterFormatError, AdapterNotFound, CheckpointError, HubMergeError, RecipeError
from hub_merge.formats.checkpoints import MODEL_CONFIG, Checkpoint
from hub_merge.formats.peft import contained
from hub_merge.fusion.folding import Plan, plan_fold
from hub_merge.fusion.proof import FusionProof, prove_fusion
from hub_merge.fusion.record import BaseModel, FusionRecord, is_fused, read_fusion
from hub_merge.hub import Hub, parse_reference
from hub_merge.layout import CONFIG_FILE, NOTICE_FILE, RECORD_FILE
from hub_merge.parallel import map_modules
from hub_merge.pipeline import verify as verify_composite
from hub_merge.pipeline.progress import Progress, counter, silent
from hub_merge.reopening import reopen
from hub_merge.sources import file_digest, open_model
from hub_merge.verification import Difference, Missing, Verification, changed_files, failed_checks

__all__ = ["verify", "verify_fused"]


def verify(
    reference: str | Path, *, parents: Sequence[str | Path] = (), hub: Hub | None = None, progress: Progress = silent
) -> Verification[Any]:
    """Return whether a composite or fused model is what its record tells of: it is made again and compared.

    Args:
        reference: Composite or fused model, on the Hub or in a folder.
        parents: Folders or files of those adapters and of the base that were local.
        hub: Client to pull with; by default one with the stored login.
        progress: Told of each module or tensor that is compared.

    Raises:
        AdapterNotFound: There is no such repository or folder, or it has no record.
        RecipeError: The record is damaged, or of a newer version.
        HubUnavailable: The Hub did not answer, so that nothing can be said.
    """
    hub = hub or Hub()
    folder = _fused_folder(reference, hub)
    if folder is None:
        return verify_composite(reference, parents=parents, hub=hub, progress=progress)
    return verify_fused(folder, parents=parents, hub=hub, progress=progress)


def _fused_folder(reference: str | Path, hub: Hub) -> Path | None:
    """Return the folder of a fused model, downloaded where it is on the Hub; ``None`` for anything else."""
    path = Path(reference).expanduser()
    if path.exists() or isinstance(reference, Path):
        return path if path.is_dir() and is_fused(path) else None
    try:
        pinned = hub.resolve(parse_reference(reference))
    except RecipeError:
        return None
    if RECORD_FILE not in pinned.names():
        return None
    folder = hub.pull(pinned, [RECORD_FILE])
    if not is_fused(folder):
        return None
    wanted = {str(file["name"]) for file in read_fusion(folder).output["files"]} & pinned.names()
    return hub.pull(pinned, [RECORD_FILE, *map(glob.escape, sorted(wanted))])


def verify_fused(
    folder: Path, *, parents: Sequence[str | Path] = (), hub: Hub, progress: Progress = silent
) -> Verification[FusionProof]:
    """Return whether the fused model in ``folder`` is base plus delta, and all else of it that of the base.

    A number may be off by as much as rounding once to its dtype explains. See ``verify`` for the arguments.
    """
    record = read_fusion(folder)
    bases = [Path(place) for place in parents if _is_model(Path(place))]
    found = changed_files(_digests(folder, record.output["files"]), record.output["files"])
    again = reopen([record.adapter], [place for place in parents if Path(place) not in bases], hub)
    found += again.differences
    base, missing = _base_again(record.base, bases, hub, found)
    gone = (*missing, *again.missing)
    if base is None or again.adapters is None:
        return Verification(None, tuple(found), gone, None)
    try:
        plan = plan_fold(base, again.adapters[0])
    except HubMergeError:
        if not found:
            raise
        return Verification(None, tuple(found), gone, None)  # what has changed need not fit any more
    proof = prove_fusion(plan, folder, counter("prove", len(plan.folds), progress))
    if proof.differing:
        told = f"{len(proof.differing)} tensors are not what base and adapter give"
        found.append(Difference("", "", proof.differing, told))
    found += [*failed_checks(proof), *_companions(plan, record, folder)]
    return Verification(False, tuple(found), (), proof)


def _digests(folder: Path, recorded: Iterable[Mapping[str, Any]]) -> Iterator[FileDigest]:
    """Return the digests of those recorded files that are in ``folder``."""
    names = [str(file["name"]) for file in recorded]
    paths = {name: contained(folder, name) for name in names}
    return map_modules(
        lambda name: replace(file_digest(paths[name]), name=name), [name for name in names if paths[name].is_file()]
    )


def _is_model(place: Path) -> bool:
    return (place / MODEL_CONFIG).is_file() and not (place / CONFIG_FILE).is_file()


def _base_again(
    base: BaseModel, given: Iterable[Path], hub: Hub, found: list[Difference]
) -> tuple[Checkpoint | None, tuple[Missing, ...]]:
    """Return the base, or what is to be told of its absence; what has changed in it goes to ``found``."""
    try:
        model = open_model(base.model, hub=hub) if base.repo_id else _local_base(base, given, hub)
    except AdapterNotFound as error:
        return None, (Missing(base.name, base.model, error.problem, error.remedy),)
    except (AdapterFormatError, CheckpointError) as error:
        found.append(Difference(base.name, "", (), error.problem))
        return None, ()
    found += changed_files(_digests(model.folder, base.files), base.files, base.name)
    return model, ()


def _local_base(base: BaseModel, given: Iterable[Path], hub: Hub) -> Checkpoint:
    """Return the given folder that holds the recorded base: the one of its name, or the only one."""
    places = list(given)
    named = [place for place in places if place.resolve().name == base.name] or places
    if len(named) != 1:
        raise AdapterNotFound(
            f"The base {base.name} was a local folder, and it was not given.",
            remedy=f"Name it: hub-merge verify MODEL PATH/TO/{base.name}",
        )
    return open_model(named[0], hub=hub)


def _companions(plan: Plan, record: FusionRecord, folder: Path) -> list[Difference]:
    """Return which of the files beside the weights are not those of the base."""
    ours = {str(file["name"]): file["sha256"] for file in record.output["files"]}
    base = {str(file["name"]): file["sha256"] for file in record.base.files}
    rewritten = {*plan.shards, NOTICE_FILE, *([MODEL_CONFIG] if plan.config is not None else [])}
    differing = [name for name in sorted(ours.keys() & base.keys() - rewritten) if ours[name] != base[name]]
    if plan.config is not None and _json(folder / MODEL_CONFIG) != plan.config:
        differing.append(MODEL_CONFIG)
    return [Difference("", name, (), "not the file of the base") for name in differing]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
