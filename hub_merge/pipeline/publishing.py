"""Publishing a composite where its licences allow it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hub_merge.adapter import Adapter, Origin
from hub_merge.card import benchmark_files, published_card, render_card, update_card
from hub_merge.errors import HubMergeError, PublishError
from hub_merge.formats.peft import contained
from hub_merge.hub import Hub, Reference
from hub_merge.layout import CARD_FILE, PUBLISHED_FILES, RECORD_FILE
from hub_merge.licenses import LicenseVerdict, verdict_of
from hub_merge.notices import carried_names, carried_texts, notice_texts
from hub_merge.pipeline.documents import card_of, picture_in
from hub_merge.pipeline.saving import save
from hub_merge.provenance import read_record
from hub_merge.publish import Published, publish_folder
from hub_merge.recipe import MergeRecord, Parent
from hub_merge.sources import base_origin
from hub_merge.workspace import workspace

__all__ = ["is_open", "push", "push_folder", "require_lawful"]


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    hub: Hub,
    private: bool | None = None,
    accept_unknown_license: bool = False,
    **asked: Any,
) -> Published:
    """Publish the composite in ``folder`` as one commit; see ``publish.publish_folder`` for what else may be asked.

    A new repository is private unless said otherwise if a parent is private or gated. The published card names the
    repository, and keeps what was written into the repository's card around ours. The licence of the base is looked
    up where the merge did not.

    Args:
        folder: Folder of a composite.
        repo_id: ``owner/name``, or ``name`` in the user's own namespace.
        hub: Connection with a token that may write.
        private: Visibility of a new repository.
        accept_unknown_license: Publish although the licence of a source is not known, or its terms are not.
        **asked: Further arguments of ``publish_folder``.

    Raises:
        AdapterNotFound: The folder holds no composite.
        AdapterFormatError: A file of it is a link that leads out of it.
        PublishError: The licences do not allow it, the Hub refused, or the repository changed meanwhile.
    """
    recorded = read_record(folder)
    names = [*PUBLISHED_FILES, *carried_names(recorded)]
    files = [name for name in names if contained(folder, name).is_file()]
    record, added = _with_base(recorded, folder, hub)
    require_lawful(verdict_of(record), repo_id, accept_unknown=accept_unknown_license)
    if private is None and not all(is_open(parent, hub) for parent in record.parents):
        private = True
    return publish_folder(
        folder,
        repo_id,
        hub=hub,
        files=files,
        private=private,
        sources=[parent.repo_id for parent in record.parents if parent.repo_id],
        texts=lambda full_id, published: {
            **added,
            **benchmark_files(record),
            **_card_to_publish(folder, record, full_id, published),
        },
        **asked,
    )


def _with_base(record: MergeRecord, folder: Path, hub: Hub) -> tuple[MergeRecord, dict[str, str]]:
    """Return the record with the base's licence, asked for where the merge did not, and the texts that it changes."""
    if record.base_license is not None or record.base_license_details.texts or record.base_model is None or hub.offline:
        return record, {}
    base = base_origin(record.base_model, hub)
    if base is None:
        return record, {}
    record = replace(
        record, base_license=base.license, base_license_details=base.license_details, base_commit=base.commit
    )
    carried = carried_texts(record, base, [Origin()] * len(record.parents))
    kept = {name: contained(folder, name) for name in carried_names(record)}
    there = {name: path.read_text(encoding="utf-8") for name, path in kept.items() if path.is_file()}
    return record, {**carried, **notice_texts(verdict_of(record), {**there, **carried}), RECORD_FILE: record.to_json()}


def require_lawful(verdict: LicenseVerdict, repo_id: str, *, accept_unknown: bool) -> None:
    """Raise ``PublishError`` if the licences of the sources do not allow to share what was made as ``repo_id``."""
    blockers = verdict.blockers_for(repo_id, accept_unknown=accept_unknown)
    if not blockers:
        return
    told = "\n".join(f"  - [{found.code}] {found.problem} {found.remedy}" for found in blockers)
    raise PublishError(
        f"The licences of its sources do not let this be published as {repo_id} (no legal advice):\n{told}",
        remedy="It may stay where it is: only publishing is refused.",
    )


def _card_to_publish(folder: Path, record: MergeRecord, repo_id: str, published: str | None) -> dict[str, str]:
    """Return the folder's card as it is to stand in ``repo_id``, which has the card ``published`` if any."""
    path = contained(folder, CARD_FILE)
    if not path.is_file():
        return {}
    local = path.read_text(encoding="utf-8")
    if card_of(folder) == local:  # nobody has edited our part
        local = update_card(local, render_card(record, repo_id=repo_id, picture=picture_in(folder)))
    return {CARD_FILE: local if published is None else published_card(published, local)}


def is_open(source: Parent | Origin, hub: Hub) -> bool:
    """Whether anybody can read a source now; one that is gone or cannot be seen counts as closed."""
    if source.private or source.gated:
        return False
    if source.repo_id is None:
        return True
    try:
        now = hub.describe(Reference(source.repo_id, source.commit))
    except HubMergeError:
        return False
    return not (now.private or now.gated)


def push(adapter: Adapter, repo_id: str, *, token: str | bool | None = None, **asked: Any) -> Published:
    """Write ``adapter`` to a temporary folder and publish it; see ``push_folder`` for the arguments."""
    with workspace() as place:
        folder = save(adapter, place / "composite")
        return push_folder(folder, repo_id, hub=Hub(token=token), **asked)
