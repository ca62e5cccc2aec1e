"""Which files of a repository make an adapter, and what to say when they do not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from hub_merge.errors import AdapterFormatError, AdapterNotFound, HubMergeError, UnsupportedAdapter
from hub_merge.hub.failures import offline
from hub_merge.hub.repositories import PinnedRepo
from hub_merge.layout import CARD_FILE, CONFIG_FILE, INDEX_FILE, RECIPE_FILE, RECORD_FILE, TERMS_FILES, WEIGHTS_FILE

__all__ = ["adapter_files", "matching_files", "weight_files"]

SHARD = re.compile(r"adapter_model-\d+-of-(\d+)\.safetensors")
COMPANIONS = (
    CARD_FILE,
    *TERMS_FILES,
    "tokenizer_config.json",
    "added_tokens.json",
    RECORD_FILE,
    RECIPE_FILE,
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
CONVERT = (
    "Ask its author for safetensors, or load it with peft where you trust it and save it again: "
    "`model.save_pretrained(folder, safe_serialization=True)`."
)
WITH_CONFIG = (
    ("pytorch_lora_weights.safetensors", "a LoRA written by diffusers"),
    ("adapters.safetensors", "an adapter written by MLX"),
    ("*.gguf", "a file for llama.cpp"),
)
"""Files of other tools by pattern, recognised even beside an ``adapter_config.json``."""
WITHOUT_CONFIG = (
    ("model*.safetensors", "a full model"),
    ("pytorch_model*.bin", "a full model"),
    ("*.safetensors", "a file of another tool"),
)
MOST_NAMED = 8


def weight_files(pinned: PinnedRepo) -> tuple[str, ...]:
    """Return the names of the safetensors files that hold the adapter's weights.

    Raises:
        AdapterNotFound: The folder holds no adapter.
        UnsupportedAdapter: It holds something else, or the weights as a pickle only.
        AdapterFormatError: Some of its shards are missing.
        HubUnavailable: The cache holds a part of it only.
    """
    names = pinned.names()
    weights = (WEIGHTS_FILE,) if WEIGHTS_FILE in names else _shards(pinned, names)
    if CONFIG_FILE in names and weights:
        return weights
    raise offline(pinned.label) if pinned.from_cache else _explanation(pinned, names)


def adapter_files(pinned: PinnedRepo) -> tuple[str, ...]:
    """Return the names of all files that are wanted of an adapter, the weights last.

    Raises:
        HubMergeError: As ``weight_files``.
    """
    weights = weight_files(pinned)
    index = () if WEIGHTS_FILE in weights else (INDEX_FILE,)
    return (CONFIG_FILE, *matching_files(pinned, COMPANIONS), *index, *weights)


def matching_files(pinned: PinnedRepo, patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the folder's files that match a pattern and are no pickles, sorted."""
    wanted = tuple(patterns)
    return tuple(sorted(name for name in pinned.names() if _matches(name, wanted) and not _matches(name, PICKLES)))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _shards(pinned: PinnedRepo, names: frozenset[str]) -> tuple[str, ...]:
    found = sorted((match[0], int(match[1])) for match in map(SHARD.fullmatch, names) if match)
    if not found or INDEX_FILE not in names:
        return ()
    total = found[0][1]
    if len(found) == total:
        return tuple(name for name, _ in found)
    if pinned.from_cache:
        raise offline(pinned.label)
    raise AdapterFormatError(
        f"{pinned.label} holds {len(found)} of the {total} files of its weights.",
        remedy="Take a revision at which all are uploaded.",
    )


def _explanation(pinned: PinnedRepo, names: frozenset[str]) -> HubMergeError:
    has_config = CONFIG_FILE in names
    folders = sorted(path.removesuffix(f"/{CONFIG_FILE}") for path in pinned.files if path.endswith(f"/{CONFIG_FILE}"))
    if folders and not has_config:
        return _elsewhere(pinned, folders)
    foreign = _first_foreign(names, WITH_CONFIG if has_config else (*WITH_CONFIG, *WITHOUT_CONFIG))
    if foreign:
        return UnsupportedAdapter(
            f"{pinned.label} holds {foreign}, not a LoRA adapter in PEFT format.",
            remedy=f"Convert it to {CONFIG_FILE} and {WEIGHTS_FILE}, or take another repository.",
        )
    pickles = sorted(name for name in names if _matches(name, PICKLES))
    if pickles:
        return UnsupportedAdapter(
            f"{pinned.label} holds its weights as a pickle only ({', '.join(pickles[:MOST_NAMED])}), "
            "which can run any code when it is opened; it was not downloaded.",
            remedy=CONVERT,
        )
    return AdapterNotFound(
        f"{pinned.label} has no {WEIGHTS_FILE if has_config else CONFIG_FILE} in {_place(pinned)}.",
        remedy="Name the repository, folder and revision of a LoRA adapter in PEFT format.",
    )


def _elsewhere(pinned: PinnedRepo, folders: list[str]) -> AdapterNotFound:
    revision = f"@{pinned.revision}" if pinned.revision else ""
    named = [f"{pinned.repo_id}{revision}:{folder}" for folder in folders[:MOST_NAMED]]
    more = f" and {len(folders) - MOST_NAMED} more" if len(folders) > MOST_NAMED else ""
    return AdapterNotFound(
        f"{pinned.label} has no {CONFIG_FILE} in {_place(pinned)}, but in other folders.",
        remedy=f"Choose one: {', '.join(named)}{more}.",
    )


def _first_foreign(names: frozenset[str], formats: Iterable[tuple[str, str]]) -> str | None:
    others = sorted(name for name in names if not name.startswith("adapter_model"))
    found = ((name, what) for pattern, what in formats for name in others if fnmatchcase(name, pattern))
    return next((f"{what} ({name})" for name, what in found), None)


def _place(pinned: PinnedRepo) -> str:
    return f"the folder {pinned.subfolder!r}" if pinned.subfolder else "its root"
