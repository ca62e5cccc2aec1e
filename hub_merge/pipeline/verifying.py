"""Verifying a composite: its parents are had again at their commits and merged again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from hub_merge.adapter import Adapter
from hub_merge.composite import Composite
from hub_merge.errors import HubMergeError
from hub_merge.formats.output import get_format
from hub_merge.formats.peft import contained
from hub_merge.formats.strict_json import read_bounded
from hub_merge.hub import Hub
from hub_merge.layout import RECIPE_FILE
from hub_merge.pipeline.progress import Progress, counter, silent
from hub_merge.pipeline.recipes import carry_out, converted_parents, finder, mixtures_of
from hub_merge.pipeline.saving import require_room
from hub_merge.proof import Proof, prove
from hub_merge.provenance import MAX_RECORD, read_record
from hub_merge.recipe import MergeRecord, Recipe
from hub_merge.reopening import reopen
from hub_merge.sources import digests, open_adapter
from hub_merge.verification import Difference, Verification, changed_files, differing_tensors, failed_checks
from hub_merge.workspace import workspace

__all__ = ["verify"]


def verify(
    reference: str | Path, *, parents: Sequence[str | Path] = (), hub: Hub, progress: Progress = silent
) -> Verification[Proof]:
    """Return whether the record of a composite makes the same composite again.

    Every parent is opened at its commit and compared with the hashes that were recorded. They are merged again as the
    recipe says, and the result compared with the composite: bit by bit for a linear combination without truncation,
    such as ``sum``; by the tolerance of the proof for what an SVD or a search makes, whose last bits depend on the
    processor. A recipe that lies beside the record has to ask for the same merge, however it is written.

    Args:
        reference: Composite on the Hub or in a folder.
        parents: Folders or files of parents that were local; they are recognised by their hashes, else by their names.
        hub: Client to pull with.
        progress: Told of each module that is written or compared.

    Raises:
        AdapterNotFound: There is no such composite, or it has no record.
        RecipeError: The record is damaged, or of a newer version.
        HubUnavailable: The Hub did not answer, so that nothing can be said.
    """
    written = open_adapter(reference, hub=hub)
    folder = written.origin.folder
    if folder is None:
        raise HubMergeError("The composite is not on disk.")
    record = read_record(folder)
    bases = [source.convert.base_weights for source in record.recipe.models if source.convert]
    helpers = {Path(place).name for place in bases if place and place.startswith(".")}
    again = reopen(record.parents, [path for path in parents if Path(path).name not in helpers], hub)
    changed = changed_files(digests(written), record.output["files"])
    differences = [*changed, *_changed_recipe(folder, record.recipe), *again.differences]
    if again.adapters is None:
        return Verification(None, tuple(differences), again.missing, None)
    try:
        adapters = converted_parents(record.recipe, again.adapters, hub, finder(parents), progress)
        asked = carry_out(record.recipe, adapters, mixtures=mixtures_of(record.recipe, folder))
        return _compared(record, written, asked, differences, progress)
    except HubMergeError:
        if not differences:
            raise
        return Verification(None, tuple(differences), (), None)  # what has changed need not fit together any more


def _changed_recipe(folder: Path, recorded: Recipe) -> list[Difference]:
    """Return a difference if the recipe in ``folder`` asks for another merge than ``recorded``; it may be absent."""
    if not (folder / RECIPE_FILE).is_file():
        return []
    try:
        text = read_bounded(contained(folder, RECIPE_FILE), most=MAX_RECORD).decode()
        present, wanted = Recipe.from_yaml(text).to_dict(), recorded.to_dict()
    except (UnicodeDecodeError, HubMergeError):
        return [Difference("", RECIPE_FILE, (), "no recipe that can be read")]
    others = [name for name in {**wanted, **present} if present.get(name) != wanted.get(name)]
    return [Difference("", RECIPE_FILE, (), f"not the recipe that was recorded: {', '.join(others)}")] if others else []


def _compared(
    record: MergeRecord, written: Adapter, asked: Composite, known: Sequence[Difference], progress: Progress
) -> Verification[Proof]:
    """Compare the composite with the merge made again; ``known`` is what differs from the record already."""
    weights = Path(str(written.origin.folder)) / written.origin.files[-1]
    total = len(asked.modules)
    proof = prove(weights.parent, written, asked, counter("prove", total, progress))
    exact = asked.is_linear and not any(parent.converted for parent in asked.parents)
    found = [*known, *failed_checks(proof, weights.name)]
    if exact or found:
        other = _differing(record, weights, asked, counter("write", total, progress))
        if other:
            found.append(Difference("", weights.name, other, f"{len(other)} tensors are not what the parents give"))
    return Verification(exact, tuple(found), (), proof)


def _differing(
    record: MergeRecord, weights: Path, asked: Composite, progress: Callable[[str], None]
) -> tuple[str, ...]:
    """Return the tensors of the composite that are not, bit by bit, those that writing it again gives."""
    target = get_format(record.output.get("format", "peft"))
    with workspace() as place:
        require_room(asked, place / weights.name)
        base, rank = asked.base_model, asked.uniform_rank
        target.write(asked, place, base_model=base, dtype=asked.dtype, rank=rank, progress=progress)
        return differing_tensors(weights, place / target.files[-1])
