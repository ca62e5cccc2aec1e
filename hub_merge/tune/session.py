"""Tuning as the command line asks for it: a recipe and files of questions in, a proved composite out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hub_merge.evaluate import LanguageModel, QuestionSet
from hub_merge.evaluate.session import stated_base
from hub_merge.formats.output import get_format
from hub_merge.hub import Hub
from hub_merge.layout import OWN_CONTENT
from hub_merge.pipeline import run
from hub_merge.pipeline.recipes import base_of
from hub_merge.pipeline.saving import require_rank_at_most, write_composite
from hub_merge.recipe import MergeRecord, Recipe
from hub_merge.staging import require_free
from hub_merge.tune.learning import Steps
from hub_merge.tune.tuning import How, tune

__all__ = ["tune_to_folder"]

Progress = Callable[[str, int, int], None]


def tune_to_folder(
    recipe: Recipe,
    output: Path,
    sets: Sequence[QuestionSet],
    *,
    hub: Hub,
    model: str | None = None,
    how: How = "closed",
    steps: Steps | None = None,
    format: str = "peft",
    max_rank: int | None = None,
    force: bool = False,
    picture: bool = False,
    progress: Progress = lambda step, done, total: None,
    **loading: Any,
) -> MergeRecord:
    """Tune the merge that ``recipe`` asks for, write it to ``output`` and return its record.

    Args:
        recipe: Adapters, and what a merge of them may say beside method and weights. Without a rank the result has the
            largest one of the adapters.
        output: Folder to create.
        sets: Questions by domain.
        hub: Client to pull adapters with.
        model: Hub id, folder or GGUF file of the base; ``None`` takes the one that the adapters state.
        how: See ``tune``.
        steps: How to learn.
        format: Format of the files.
        max_rank: Largest rank that the result may have; told before the model is loaded.
        force: Replace a composite that is there.
        picture: Draw the scores too.
        progress: Told of each step.
        **loading: Settings of ``LanguageModel.load``.

    Raises:
        HubMergeError: An adapter, the model or the data cannot be used; see ``run`` and ``tune``.
    """
    output = output.expanduser()
    require_free(output, force, OWN_CONTENT)
    get_format(format).require_profile(recipe.profile)
    plain = run(recipe, hub=hub, progress=progress)
    if recipe.rank is None:
        plain = run(replace(recipe, rank=max(parent.rank for parent in plain.parents)), hub=hub)
    require_rank_at_most(plain, max_rank)
    loaded = LanguageModel.load(model or stated_base(plain.parents), **loading)
    tuned = tune(loaded, plain, sets, how=how, steps=steps, progress=progress)
    base = base_of(tuned, hub)
    return write_composite(tuned, output, format=format, force=force, picture=picture, base=base, progress=progress)
