"""Which files of a repository make an adapter, and what to say when they do not."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from hub_merge.choice import FULL_MODELS, PICKLES, Choice, choose, peft_weights, pickled
from hub_merge.errors import AdapterError, AdapterFormatError, AdapterNotFound, HubMergeError, UnsupportedAdapter
from hub_merge.hub.failures import offline
from hub_merge.hub.repositories import PinnedRepo
from hub_merge.layout import (
    CARD_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    MIXTURES_FILE,
    RECIPE_FILE,
    RECORD_FILE,
    TERMS_FILES,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
)

__all__ = ["Contents", "adapter_files", "contents", "matching_files"]

COMPANIONS = (
    CARD_FILE,
    *TERMS_FILES,
    *TOKENIZER_FILES,
    RECORD_FILE,
    RECIPE_FILE,
    MIXTURES_FILE,
)
MOST_NAMED = 8


@dataclass(frozen=True, slots=True)
class Contents:
    """The files that make the adapter in a repository's folder.

    Attributes:
        config: The config, if one belongs to it.
        index: The index of its shards, if it has some.
        weights: What holds its tensors.
        is_peft: Whether it is in PEFT's format.
    """

    config: tuple[str, ...]
    index: tuple[str, ...]
    weights: tuple[str, ...]
    is_peft: bool

    @property
    def has_headers(self) -> bool:
        """Whether the weights begin with a header that tells what is in them."""
        return all(name.endswith(".safetensors") for name in self.weights)


def contents(pinned: PinnedRepo, *, allow_pickle: bool = False) -> Contents:
    """Return the files that make the adapter.

    Args:
        pinned: Repository at a commit.
        allow_pickle: Take PEFT's weights as a pickle where there are no others.

    Raises:
        AdapterNotFound: The folder holds no adapter.
        UnsupportedAdapter: It holds something else, or the weights as a pickle only.
        AdapterFormatError: Some of its shards are missing, or several files could be meant.
        HubUnavailable: The cache holds a part of it only.
    """
    names = pinned.names()
    chosen = _choice(pinned, names)
    if not chosen.is_peft:
        return Contents((CONFIG_FILE,) * chosen.has_config, (), (chosen.file,), False)
    weights = peft_weights(names, allow_pickle=allow_pickle)
    _require_all(weights, pinned, names)
    if CONFIG_FILE in names and weights:
        index = () if WEIGHTS_FILE in weights else tuple({INDEX_FILE} & names)
        return Contents((CONFIG_FILE,), index, weights, True)
    raise offline(pinned.label) if pinned.from_cache else _explanation(pinned, names)


def _choice(pinned: PinnedRepo, names: frozenset[str]) -> Choice:
    try:
        return choose(names, pinned.file, lambda name: str(replace(pinned.asked, file=name)))
    except AdapterError as error:
        if pinned.from_cache and isinstance(error, AdapterNotFound):
            raise offline(pinned.label) from error
        raise type(error)(f"{pinned.label}: {error.problem}", remedy=error.remedy) from error


def adapter_files(pinned: PinnedRepo, *, allow_pickle: bool = False) -> tuple[str, ...]:
    """Return the names of all files that are wanted of an adapter, the weights last.

    Raises:
        HubMergeError: As ``contents``.
    """
    found = contents(pinned, allow_pickle=allow_pickle)
    return (*found.config, *matching_files(pinned, COMPANIONS), *found.index, *found.weights)


def matching_files(pinned: PinnedRepo, patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the folder's files that match a pattern and are no pickles, sorted."""
    wanted = tuple(patterns)
    return tuple(sorted(name for name in pinned.names() if _matches(name, wanted) and not name.endswith(PICKLES)))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _require_all(weights: Collection[str], pinned: PinnedRepo, names: frozenset[str]) -> None:
    if names.issuperset(weights):
        return
    if pinned.from_cache:
        raise offline(pinned.label)
    raise AdapterFormatError(
        f"{pinned.label} holds {len(names.intersection(weights))} of the {len(weights)} files of its weights.",
        remedy="Take a revision at which all are uploaded.",
    )


def _explanation(pinned: PinnedRepo, names: frozenset[str]) -> HubMergeError:
    has_config = CONFIG_FILE in names
    folders = sorted(path.removesuffix(f"/{CONFIG_FILE}") for path in pinned.files if path.endswith(f"/{CONFIG_FILE}"))
    if folders and not has_config:
        return _elsewhere(pinned, folders)
    full = sorted(name for name in names if _matches(name, (*FULL_MODELS, "pytorch_model*.bin")))
    if full and not has_config:
        return UnsupportedAdapter(
            f"{pinned.label} holds a full model ({full[0]}), not a LoRA adapter.",
            remedy="Take another repository.",
        )
    if refusal := pickled(names):
        return UnsupportedAdapter(f"{pinned.label}: {refusal.problem}", remedy=refusal.remedy)
    return AdapterNotFound(
        f"{pinned.label} has no {WEIGHTS_FILE if has_config else CONFIG_FILE} in {_place(pinned)}.",
        remedy="Name the repository, folder and revision of a LoRA adapter, in PEFT format or one that is known.",
    )


def _elsewhere(pinned: PinnedRepo, folders: list[str]) -> AdapterNotFound:
    revision = f"@{pinned.revision}" if pinned.revision else ""
    named = [f"{pinned.repo_id}{revision}:{folder}" for folder in folders[:MOST_NAMED]]
    more = f" and {len(folders) - MOST_NAMED} more" if len(folders) > MOST_NAMED else ""
    return AdapterNotFound(
        f"{pinned.label} has no {CONFIG_FILE} in {_place(pinned)}, but in other folders.",
        remedy=f"Choose one: {', '.join(named)}{more}.",
    )


def _place(pinned: PinnedRepo) -> str:
    return f"the folder {pinned.subfolder!r}" if pinned.subfolder else "its root"
