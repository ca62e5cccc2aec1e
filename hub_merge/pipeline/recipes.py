"""Carrying out a recipe: its adapters are found, opened, made plain where it says so, and merged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hub_merge.adapter import Adapter, Origin
from hub_merge.composite import Composite
from hub_merge.conversion import Place, converted
from hub_merge.errors import AdapterNotFound, RecipeError
from hub_merge.extras import checked_policy
from hub_merge.formats.output import get_format
from hub_merge.hub import Hub
from hub_merge.layout import OWN_CONTENT
from hub_merge.lineage import Follow
from hub_merge.methods import get_method
from hub_merge.mixtures import Mixtures, read_mixtures
from hub_merge.pipeline.merging import merge, require_choices
from hub_merge.pipeline.opening import followers, open_all
from hub_merge.pipeline.progress import Progress, silent
from hub_merge.pipeline.saving import require_rank_at_most, write_composite
from hub_merge.ranks import require_rank
from hub_merge.recipe import MergeRecord, Recipe
from hub_merge.sources import base_origin
from hub_merge.staging import require_free

__all__ = ["base_of", "carry_out", "converted_parents", "finder", "merge_to_folder", "mixtures_of", "run"]


def run(
    recipe: Recipe,
    *,
    hub: Hub | None = None,
    folder: Path = Path(),
    parents: Sequence[str | Path] = (),
    progress: Progress = silent,
) -> Composite:
    """Return the composite that ``recipe`` describes.

    Args:
        recipe: What to merge.
        hub: Client to pull adapters with; by default one with the stored login.
        folder: Folder that relative paths of the recipe start from.
        parents: Folders that stand for the local adapters of the same names, wherever they are now.
        progress: Told of each adapter that was opened.

    Raises:
        HubMergeError: An adapter cannot be had, or the merge cannot be carried out.
    """
    hub = hub or Hub()
    get_method(recipe.merge_method).parse_options(recipe.options)  # a typo is told before anything is downloaded
    require_choices(recipe.dtype, recipe.seed)
    require_rank(recipe.rank, recipe.energy, recipe.profile)
    checked_policy(recipe.extras)
    adapters = open_all(_references(recipe, folder, parents), hub, progress)
    adapters = converted_parents(recipe, adapters, hub, finder(parents, folder), progress)
    mixtures = mixtures_of(recipe, folder)
    return carry_out(recipe, adapters, *followers(hub), mixtures=mixtures)


def _references(recipe: Recipe, folder: Path, parents: Sequence[str | Path]) -> list[str | Path]:
    """Return where each adapter of the recipe is: on the Hub, among ``parents`` by name, or below ``folder``."""
    given = {Path(parent).name: Path(parent) for parent in parents}
    local = {source.model: Path(source.model).name for source in recipe.models if source.model.startswith(".")}
    if strange := given.keys() - local.values() - _helpers(recipe):
        raise RecipeError(
            f"The recipe has no local adapter called {min(strange)}.",
            remedy=f"Its local adapters: {', '.join(local.values()) or 'none'}.",
        )
    places = {model: given.get(name, folder / model) for model, name in local.items()}
    if folder != Path() and (absent := [path for path in places.values() if not path.exists()]):
        raise AdapterNotFound(
            f"{absent[0]}: There is no such folder or file.",
            remedy=f"Put it there, or name where it is: hub-merge merge RECIPE.yaml PATH/TO/{absent[0].name} -o FOLDER",
        )
    return [places.get(source.model, source.model) for source in recipe.models]


def _helpers(recipe: Recipe) -> set[str]:
    """Return the names of what conversions need beside the adapters: base weights and initial adapters."""
    return {Path(text).name for source in recipe.models if source.convert for text in source.convert.references()}


def finder(parents: Sequence[str | Path], folder: Path = Path()) -> Place:
    """Return what finds a local reference of a recipe: among ``parents`` by its name, else below ``folder``."""
    given = {Path(parent).name: Path(parent) for parent in parents}
    return lambda text: given.get(Path(text).name, folder / text) if text.startswith(".") else text


def converted_parents(
    recipe: Recipe, adapters: Sequence[Adapter], hub: Hub, place: Place, progress: Progress
) -> list[Adapter]:
    """Return the adapters made plain where the recipe says so."""
    return [
        converted(adapter, source.convert, hub=hub, place=place, progress=progress)
        for adapter, source in zip(adapters, recipe.models, strict=True)
    ]


def mixtures_of(recipe: Recipe, folder: Path) -> Mixtures | None:
    """Return the coefficients that the recipe merges with, from their file in ``folder``."""
    return None if recipe.mixtures is None else read_mixtures(folder, recipe.mixtures)


def carry_out(
    recipe: Recipe,
    adapters: Sequence[Adapter],
    canonical: Follow | None = None,
    original: Follow | None = None,
    *,
    mixtures: Mixtures | None = None,
) -> Composite:
    return merge(
        adapters,
        recipe.merge_method,
        weights=[source.weight for source in recipe.models],
        rank=recipe.rank,
        energy=recipe.energy,
        profile=recipe.profile,
        seed=recipe.seed,
        dtype=recipe.dtype,
        base=recipe.base_model,
        allow=recipe.allow,
        extras=recipe.extras,
        canonical=canonical,
        original=original,
        mixtures=mixtures,
        **recipe.options,
    )


def merge_to_folder(
    recipe: Recipe,
    output: Path,
    *,
    hub: Hub,
    sources_from: Path = Path(),
    parents: Sequence[str | Path] = (),
    format: str = "peft",
    max_rank: int | None = None,
    force: bool = False,
    picture: bool = False,
    progress: Progress = silent,
) -> MergeRecord:
    """Carry out ``recipe``, write the composite to ``output`` and return its record; see ``run`` and ``save``.

    A composite of a larger rank than ``max_rank`` is refused with ``MergeError`` before any of it is computed.
    """
    output = output.expanduser()
    require_free(output, force, OWN_CONTENT)
    get_format(format).require_profile(recipe.profile)  # told before anything is downloaded
    composite = run(recipe, hub=hub, folder=sources_from, parents=parents, progress=progress)
    require_rank_at_most(composite, max_rank)
    return write_composite(
        composite,
        output,
        format=format,
        force=force,
        picture=picture,
        base=base_of(composite, hub),
        progress=progress,
    )


def base_of(composite: Composite, hub: Hub) -> Origin | None:
    """Return where the base is; asked only where the Hub was needed anyway, and never a reason to fail."""
    asked = not hub.offline and any(parent.origin.repo_id for parent in composite.parents)
    return base_origin(composite.base_model, hub) if asked and composite.base_model else None
