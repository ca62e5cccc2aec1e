"""Merge adapters and prove the result; write one adapter smaller or in another format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hub_merge.cli.framework import command
from hub_merge.cli.options import (
    RankType,
    allow_option,
    base_option,
    client,
    dtype_option,
    energy_option,
    extras_option,
    force_option,
    max_rank_option,
    output_option,
    pickle_option,
    picture_option,
    profile_option,
    token_option,
    weights_option,
    writing_options,
)
from hub_merge.cli.output import Output
from hub_merge.cli.recipes import conversion_options, read_recipe, recipe_of, recipe_path
from hub_merge.cli.tuning import take_tuning, tuned, tuning_options

if TYPE_CHECKING:
    from hub_merge.recipe import MergeRecord

__all__ = ["compress", "convert", "merge"]


@command(
    examples=[
        "merge someone/math-lora other/medicine-lora -o math-medicine",
        "merge ./math ./medicine --weights 1,0.5 --method lego --rank 8 -o out",
        "merge ./math ./medicine --rank auto --energy 0.95 --max-rank 64 -o out",
        "merge style.safetensors other/style-lora --format kohya -o out",
        "merge recipe.yaml -o out",
        "merge ./math ./medicine --rank 4 --tune math=math.jsonl --tune medicine=medicine.jsonl -o out",
    ]
)
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER... | RECIPE.yaml [FOLDER]...")
@output_option
@click.option("--method", metavar="NAME", help="Merge method; the command `methods` lists them.  [default: sum]")
@weights_option
@click.option(
    "--rank",
    metavar="N|auto",
    type=RankType(),
    help="Rank of the result; auto is the smallest that keeps --energy of the sum.  [default: the method's own]",
)
@energy_option
@max_rank_option()
@profile_option
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="Option of the method; may be repeated.")
@click.option("--seed", metavar="N", type=click.IntRange(0), help="Seed of every random choice.  [default: 0]")
@dtype_option
@base_option
@allow_option
@extras_option
@conversion_options
@tuning_options
@picture_option
@force_option
@pickle_option
@token_option
@writing_options
def merge(
    out: Output,
    adapters: tuple[str, ...],
    output: Path,
    force: bool,
    plot: bool,
    token: str | None,
    allow_pickle: bool,
    file_format: str,
    max_rank: int | None,
    **asked: Any,
) -> None:
    """Merge adapters into one, and prove the written file.

    Record, recipe and model card are written beside it. A recipe says everything itself, weights by module too, and
    stands in place of adapters and options; folders after it say where its local adapters are now.

    --tune chooses the merge by measurement (extra: eval): it finds how each unit of the result is best put together
    from the adapters' units, and keeps what it found in a file beside the recipe. On these questions the result is
    never worse than the plain sum of the same rank; measure it on others.
    """
    from hub_merge.cli.show.merges import print_merge
    from hub_merge.pipeline import merge_to_folder

    path = recipe_path(adapters, asked)
    tuning = take_tuning(asked)
    recipe = recipe_of(adapters, **asked) if path is None else read_recipe(path)
    writing: dict[str, Any] = {
        "hub": client(out, token, allow_pickle=allow_pickle),
        "format": file_format,
        "max_rank": max_rank,
        "force": force,
        "picture": plot,
        "progress": out.progress(),
    }
    if tuning:
        result = tuned(recipe, output, token=token, **tuning, **writing)
    else:
        sources_from, parents = (path.parent, adapters[1:]) if path else (Path(), ())
        result = merge_to_folder(recipe, output, sources_from=sources_from, parents=parents, **writing)
    print_merge(out, output, result)


@command(
    examples=[
        "compress someone/math-lora -o small",
        "compress ./math --rank auto --energy 0.95 --profile peft -o small",
        "compress ./math --rank 4 --dtype bfloat16 -o small",
    ]
)
@click.argument("adapter")
@output_option
@click.option(
    "--rank",
    metavar="N|auto",
    type=RankType(),
    default="auto",
    show_default=True,
    help="Rank of the result; auto is the smallest that keeps --energy.",
)
@energy_option
@max_rank_option()
@profile_option
@dtype_option
@base_option
@allow_option
@extras_option
@conversion_options
@force_option
@pickle_option
@token_option
@writing_options
def compress(out: Output, adapter: str, output: Path, **asked: Any) -> None:
    """Write an adapter at a smaller rank, and prove the written file.

    It is as close to the adapter as that rank allows (truncated SVD). Record, recipe and model card are written beside
    it, as for a merge.
    """
    from hub_merge.cli.show.merges import print_compression

    print_compression(out, output, _write_one(out, adapter, output, method="svd", **asked))


@command(
    examples=[
        "convert style.safetensors -o style --format diffusers",
        "convert someone/mlx-lora -o math",
        "convert loha.safetensors -o small --rank 32 --format kohya",
        "convert someone/dora-lora --materialize -o plain",
    ]
)
@click.argument("adapter")
@output_option
@click.option("--rank", metavar="N", type=click.IntRange(1), help="Truncate to this rank, with the least error.")
@dtype_option
@base_option
@allow_option
@extras_option
@conversion_options
@force_option
@pickle_option
@token_option
@writing_options
def convert(out: Output, adapter: str, output: Path, **asked: Any) -> None:
    """Write one adapter in another format, and prove the written file.

    Every delta stays what it is: the error that is shown is the relative distance of what was written to what was read,
    0 where not even rounding changed it. LoHa and LoKr are expanded exactly; --rank truncates. --materialize and
    --initial write an adapter that needs its base or its start as a plain one.
    """
    from hub_merge.cli.show.merges import print_conversion

    print_conversion(out, output, _write_one(out, adapter, output, energy=None, profile=None, **asked))


def _write_one(
    out: Output,
    adapter: str,
    output: Path,
    *,
    force: bool,
    token: str | None,
    allow_pickle: bool,
    file_format: str,
    max_rank: int | None = None,
    method: str | None = None,
    **asked: Any,
) -> MergeRecord:
    """Write one adapter alone to ``output`` and return its record."""
    from hub_merge.pipeline import merge_to_folder

    return merge_to_folder(
        recipe_of((adapter,), method=method, weights=None, options=(), seed=None, **asked),
        output,
        hub=client(out, token, allow_pickle=allow_pickle),
        format=file_format,
        max_rank=max_rank,
        force=force,
        progress=out.progress(),
    )
