"""One evaluation as the command line asks for it: references in, measurements out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from hub_merge.adapter import Adapter, unique_names
from hub_merge.bases import read_base
from hub_merge.errors import EvaluationError
from hub_merge.evaluate.results import BASE
from hub_merge.evaluate.wearing import Wearable
from hub_merge.hub import Hub
from hub_merge.pipeline import merge
from hub_merge.pipeline.progress import Progress, silent
from hub_merge.sources import open_adapter

__all__ = ["Lineup", "line_up", "stated_base"]


@dataclass(frozen=True, slots=True)
class Lineup:
    """What is to be measured on which base.

    Attributes:
        base: Hub id, folder or GGUF file.
        composites: By name; the plain base first, then the adapters, then what was made of them.
    """

    base: str
    composites: dict[str, Wearable]


def line_up(
    references: Sequence[str],
    *,
    hub: Hub,
    base: str | None = None,
    methods: Sequence[str] = (),
    rank: int | None = None,
    allow: Sequence[str] = (),
    progress: Progress = silent,
) -> Lineup:
    """Open the adapters and merge them by each method: every pair, and all of them.

    Args:
        references: Adapters, none for the plain base alone.
        hub: Client to pull with.
        base: Hub id, folder or GGUF file of the base; ``None`` takes the one that the adapters state.
        methods: Merge methods.
        rank: Rank of the composites, ``None`` for each method's own.
        allow: Codes of findings that you accept.
        progress: Told of every adapter that is opened.

    Raises:
        EvaluationError: The base is not known, or there is nothing to merge.
        IncompatibleAdapters: The adapters do not fit together.
    """
    opened = []
    for done, reference in enumerate(references, 1):
        opened.append(open_adapter(reference, hub=hub))
        progress("open", done, len(references))
    adapters = unique_names(opened)
    if methods and len(adapters) < 2:
        raise EvaluationError("Merging takes two or more adapters.", remedy="Name them, or leave out --merge.")
    composites: dict[str, Wearable] = {BASE: None, **{adapter.name: adapter for adapter in adapters}}
    for parts in _combinations(adapters):
        for method in methods:
            name = f"{method} of {' + '.join(part.name for part in parts)}"
            composites[name] = merge(parts, method, rank=rank, base=_hub_id(base), allow=allow)
    return Lineup(base or stated_base(adapters), composites)


def _combinations(adapters: Sequence[Adapter]) -> list[tuple[Adapter, ...]]:
    """Return every pair, and all adapters if there are more than two."""
    pairs: list[tuple[Adapter, ...]] = list(combinations(adapters, 2))
    return pairs if len(adapters) <= 2 else [*pairs, tuple(adapters)]


def _hub_id(base: str | None) -> str | None:
    """Return ``base`` if it can be the name of what the adapters were trained on: weights in a file cannot."""
    return read_base(base).model_id if base and not Path(base).exists() else None


def stated_base(adapters: Sequence[Adapter]) -> str:
    """Return the Hub id of the base that all adapters state, or raise ``EvaluationError``."""
    stated = {found for adapter in adapters if (found := read_base(adapter.base_model).model_id)}
    if len(stated) != 1:
        named = " and ".join(sorted(stated)) or "none that is on the Hub"
        raise EvaluationError(f"The adapters state {named} as their base.", remedy="Name it: --base OWNER/NAME.")
    return stated.pop()
