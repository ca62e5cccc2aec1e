"""Verifying a composite: its parents are had again and merged again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hub_merge.errors import HubMergeError
from hub_merge.hub import Hub
from hub_merge.pipeline.progress import Progress, counter, silent
from hub_merge.pipeline.recipes import carry_out, converted_parents, finder, mixtures_of
from hub_merge.proof import Proof, prove
from hub_merge.provenance import read_record, reopen, require_files
from hub_merge.sources import open_adapter

__all__ = ["verify"]


def verify(
    reference: str | Path, *, parents: Sequence[str | Path] = (), hub: Hub, progress: Progress = silent
) -> Proof:
    """Return what comparing a composite with its own record shows: its parents are opened and merged again.

    Args:
        reference: Composite on the Hub or in a folder.
        parents: Folders of parents that were local; they are recognised by their hashes.
        hub: Client to pull with.
        progress: Told of each module that is compared.

    Raises:
        ProofFailed: A file of the composite or of a parent is not the one that was recorded.
        AdapterNotFound: A parent is gone, or a local one was not given.
    """
    written = open_adapter(reference, hub=hub)
    folder = written.origin.folder
    if folder is None:
        raise HubMergeError("The composite is not on disk.")
    record = read_record(folder)
    require_files(written, record.output["files"], str(reference))
    weights = [source.convert.base_weights for source in record.recipe.models if source.convert]
    bases = {Path(place).name for place in weights if place and place.startswith(".")}
    local = [open_adapter(Path(parent), hub=hub) for parent in parents if Path(parent).name not in bases]
    found = [reopen(parent, local, hub) for parent in record.parents]
    adapters = converted_parents(record.recipe, found, hub, finder(parents), progress)
    asked = carry_out(record.recipe, adapters, mixtures=mixtures_of(record.recipe, folder))
    return prove(folder, written, asked, counter("prove", len(asked.modules), progress))
