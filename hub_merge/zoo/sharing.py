"""An index as a dataset repository of the Hub: shared, pulled, and updated by pull request."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub_merge.errors import RecipeError
from hub_merge.hub.references import is_model_id
from hub_merge.layout import CARD_FILE
from hub_merge.publish import Published, publish_folder
from hub_merge.zoo.index import DATA, MARK_FILE, Index
from hub_merge.zoo.sketch import SIZE, VERSION

if TYPE_CHECKING:
    from hub_merge.hub import Hub

__all__ = ["card", "fetch", "open_index", "pull", "push"]

ADDRESS = "hf://datasets/"
CARD = """---
tags:
- hub-merge
- lora
- adapter-zoo
configs:
- config_name: default
  data_files: {data}/*.parquet
---
# {title}

{count:,} LoRA adapters of the Hub by the geometry of what they change: for each a sketch of its whole delta
(TensorSketch of {size} numbers, version {version}), its exact norms, and what the Hub said of it. Made by
`hub-merge zoo`.

```bash
hub-merge zoo near OWNER/ADAPTER --index {repo_id}
hub-merge zoo complement OWNER/ADAPTER --index {repo_id}
```

| base model | adapters |
|---|--:|
{bases}

Of the rows with one `key` the one with the largest `indexed_at` counts. `sketch` and `start` are little-endian float16.
"""
MOST_BASES = 50


def push(
    folder: Path,
    repo_id: str,
    *,
    hub: Hub,
    private: bool | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    dry_run: bool = False,
) -> Published:
    """Publish an index as one commit of a dataset repository; files that it holds no longer are removed there.

    As a pull request nothing is removed: the files of both sides together are the united index.

    Args:
        folder: Folder of the index.
        repo_id: ``owner/name``; created if it does not exist.
        hub: Connection with a token that may write.
        private: Visibility of a new repository.
        create_pr: Open a pull request instead.
        commit_message: Title of the commit.
        dry_run: Look and compare only.

    Raises:
        PublishError: There is no right to write, or the Hub refused.
    """
    index = Index(folder)
    files = [f"{DATA}/{path.name}" for path in index.files]
    return publish_folder(
        folder,
        repo_id.removeprefix(ADDRESS),
        hub=hub,
        private=private,
        create_pr=create_pr,
        commit_message=commit_message or "Update the index of adapters with hub-merge",
        dry_run=dry_run,
        files=[MARK_FILE, *files],
        texts=lambda full_id, card_there: (
            {} if create_pr and card_there is not None else {CARD_FILE: card(index, full_id)}
        ),
        repo_type="dataset",
        mark=MARK_FILE,
        replaced=None if create_pr else f"{DATA}/",
    )


def card(index: Index, repo_id: str) -> str:
    """Return the dataset card of an index."""
    counts = Counter(index.table(["base"])["base"].to_pylist())
    bases = "\n".join(f"| {base or '(unknown)'} | {count:,} |" for base, count in counts.most_common(MOST_BASES))
    title = repo_id.rpartition("/")[2]
    return CARD.format(
        data=DATA, title=title, count=counts.total(), size=SIZE, version=VERSION, repo_id=repo_id, bases=bases
    )


def pull(repo_id: str, *, hub: Hub, revision: str | None = None) -> Path:
    """Download the index of a dataset repository to the cache and return its folder.

    Raises:
        AdapterNotFound: There is no such repository, or no right to see it.
        HubUnavailable: The Hub did not answer.
    """
    name = repo_id.removeprefix(ADDRESS)
    settings: dict[str, Any] = {"repo_type": "dataset", "revision": revision, "cache_dir": hub.cache_dir}
    wanted = [MARK_FILE, f"{DATA}/*.parquet"]
    if hub.offline:
        settings["local_files_only"] = True
        return Path(hub.api.snapshot_download(name, allow_patterns=wanted, **settings))
    return Path(hub.ask(lambda: hub.api.snapshot_download(name, allow_patterns=wanted, **settings), name))


def fetch(repo_id: str, folder: Path, *, hub: Hub) -> Index:
    """Put the files of a dataset's index into a folder, beside those that it holds already.

    Raises:
        OutputExists: The folder holds something else.
        HubMergeError: As ``pull``.
    """
    source = Index(pull(repo_id, hub=hub))
    index = Index.create(folder)
    with index.writing() as writer:
        for path in source.files:
            writer.copy(path)
        known = {search["base"] for search in index.searches}
        for search in source.searches:
            if search["base"] not in known:
                writer.remember(search)
    return index


def open_index(place: str, hub: Hub) -> Index:
    """Return the index in a folder, or in a dataset repository of the Hub.

    Raises:
        RecipeError: ``place`` holds no index.
        HubMergeError: As ``pull``.
    """
    name = place.removeprefix(ADDRESS)
    if Path(place).is_dir():
        return Index(Path(place))
    if "/" not in name or name.startswith((".", "/", "~")) or not is_model_id(name.partition("@")[0]):
        raise RecipeError(f"There is no index {place}.", remedy="Name a folder, or a dataset of the Hub as owner/name.")
    repo_id, _, revision = name.partition("@")
    return Index(pull(repo_id, hub=hub, revision=revision or None))
