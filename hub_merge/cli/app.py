"""The commands, in the order of the work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from hub_merge.cli.framework import Group, output_options, run_cli
from hub_merge.cli.output import Output

if TYPE_CHECKING:
    from hub_merge.hub import Hub

__all__ = ["cli", "main"]

token_option = click.option(
    "--token", help="Hub token. It stays in the shell's history: prefer HF_TOKEN or `hf auth login`."
)
weights_option = click.option(
    "--weights",
    help="One number an adapter, such as 1,0.5,-0.25; 1 each by default. Weights by module go into a recipe.",
)
base_option = click.option("--base", metavar="OWNER/NAME", help="The base model, where the adapters do not prove it.")
allow_option = click.option("--allow", multiple=True, metavar="CODE", help="Accept the finding of this code.")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hub-merge", prog_name="hub-merge")
def cli() -> None:
    """Find, check, score, merge, prove and publish LoRA adapters, without loading a base model.

    An adapter is a Hub id (owner/name, owner/name@revision:subfolder), an address, or a folder.
    """


def main() -> NoReturn:
    """Run the command line."""
    run_cli(cli)


def _hub(token: str | None) -> Hub:
    from hub_merge.hub import Hub

    return Hub(token=token)


def _numbers(weights: str | None) -> list[float] | None:
    if weights is None:
        return None
    try:
        return [float(number) for number in weights.split(",")]
    except ValueError as error:
        raise click.BadParameter("write numbers with commas between, such as 1,0.5", param_hint="--weights") from error


# --- find and look ----------------------------------------------------------------------------------------------------


@cli.command(
    examples=[
        "search HuggingFaceTB/SmolLM2-135M-Instruct",
        "search openai-community/gpt2 --search medical --license mit --limit 5",
    ]
)
@click.argument("base_model", required=False)
@click.option("--search", "text", help="Words in the name.")
@click.option("--author", help="User or organisation.")
@click.option("--task", help="PEFT task type, such as CAUSAL_LM.")
@click.option("--license", "license_", help="Licence identifier, such as apache-2.0.")
@click.option(
    "--sort",
    type=click.Choice(["downloads", "likes", "last_modified", "created_at", "trending_score"]),
    default="downloads",
    show_default=True,
)
@click.option("--limit", type=click.IntRange(1, 1000), default=30, show_default=True)
@token_option
@output_options
def search(
    out: Output,
    base_model: str | None,
    text: str | None,
    author: str | None,
    task: str | None,
    license_: str | None,
    sort: Any,
    limit: int,
    token: str | None,
) -> None:
    """Find public adapters, of one base model or of any."""
    from hub_merge.cli.show import listing_row

    found = _hub(token).search(
        base_model, text=text, author=author, task=task, license=license_, sort=sort, limit=limit
    )
    out.table(
        [listing_row(listing) for listing in found],
        ["id", "base_model", "task", "license", "downloads", "likes", "size", "last_modified"],
    )
    if len(found) > 1:
        out.hint(f"hub-merge check {found[0].repo_id} {found[1].repo_id}")


@cli.command(examples=["inspect someone/math-lora", "inspect ./my-adapter --json"])
@click.argument("adapter")
@click.option("--revision", help="Branch, tag or commit.")
@token_option
@output_options
def inspect(out: Output, adapter: str, revision: str | None, token: str | None) -> None:
    """Show what one adapter is, from its config and tensor headers alone."""
    from hub_merge.cli.show import print_inspection
    from hub_merge.sources import open_headers

    print_inspection(out, open_headers(adapter, revision=revision, hub=_hub(token)))


@cli.command(
    examples=["check someone/math-lora other/medicine-lora", "check ./a ./b --base openai-community/gpt2 --json"]
)
@click.argument("adapters", nargs=-1, required=True)
@base_option
@allow_option
@click.option("--full", is_flag=True, help="Download the weights too and look at their numbers.")
@token_option
@output_options
def check(
    out: Output, adapters: tuple[str, ...], base: str | None, allow: tuple[str, ...], full: bool, token: str | None
) -> None:
    """Tell whether adapters fit together: every problem and caution at once.

    Adapters of the Hub are judged by their config and tensor headers, which costs kilobytes. Exit code 1 when
    something blocks a merge.
    """
    from hub_merge.cli.show import print_compatibility
    from hub_merge.pipeline import check_references

    result = check_references(adapters, hub=_hub(token), base=base, allow=allow, full=full, progress=out.progress())
    print_compatibility(out, result)
    if not result.compatible:
        raise click.exceptions.Exit(1)


@cli.command(examples=["score ./math ./medicine ./finance", "score ./math ./medicine --plot scores.png"])
@click.argument("adapters", nargs=-1, required=True)
@weights_option
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw a heat map (PNG, SVG or PDF).")
@click.option("--modules", is_flag=True, help="Put the scores of every module into the JSON.")
@token_option
@output_options
def score(
    out: Output, adapters: tuple[str, ...], weights: str | None, plot: Path | None, modules: bool, token: str | None
) -> None:
    """Score how orthogonal the adapters' deltas are.

    The headline is the RMS cosine over modules, [0, 1]: 0 is orthogonal. Beside it stands what chance gives and
    whether the A factors share one initialisation. It describes geometry; it does not predict quality.
    """
    from hub_merge.cli.show import print_scores
    from hub_merge.pipeline import score_references

    scores = score_references(adapters, hub=_hub(token), weights=_numbers(weights), progress=out.progress())
    print_scores(out, scores, modules=modules)
    if plot is not None:
        from hub_merge.plots import heat_map

        heat_map(scores, plot)
        out.note(f"Picture: {plot}")


# --- merge and prove --------------------------------------------------------------------------------------------------


@cli.command(
    examples=[
        "merge someone/math-lora other/medicine-lora -o math-medicine",
        "merge ./math ./medicine --weights 1,0.5 --method lego --rank 8 -o out",
        "merge recipe.yaml -o out",
    ]
)
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER... | RECIPE.yaml")
@click.option("--method", help="Merge method; see `hub-merge methods`.  [default: sum]")
@weights_option
@click.option("--rank", type=click.IntRange(1), help="Rank of the result; the method's own by default.")
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="Option of the method.")
@click.option("--seed", type=click.IntRange(0), help="Seed of every random choice.  [default: 0]")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Default: widest of the sources.")
@base_option
@allow_option
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to create.")
@click.option("--force", is_flag=True, help="Replace the folder if it holds an adapter.")
@click.option("--plot", is_flag=True, help="Draw the orthogonality heat map into the card.")
@token_option
@output_options
def merge(
    out: Output, adapters: tuple[str, ...], output: Path, force: bool, plot: bool, token: str | None, **asked: Any
) -> None:
    """Merge adapters into one, prove the written file, and write record, recipe and model card beside it."""
    from hub_merge.cli.show import print_merge
    from hub_merge.pipeline import merge_to_folder
    from hub_merge.recipe import Recipe

    folder, recipe = Path(), None
    if len(adapters) == 1 and adapters[0].endswith((".yaml", ".yml")):
        given = [name for name, value in asked.items() if value not in (None, ())]
        if given:
            raise click.UsageError(f"A recipe says it all; leave out --{given[0].rstrip('s')} or edit the recipe.")
        path = Path(adapters[0])
        if not path.is_file():
            raise click.UsageError(f"There is no recipe {path}.")
        folder, recipe = path.parent, Recipe.from_yaml(path.read_text(encoding="utf-8"))
    recipe = recipe or _recipe(adapters, **asked)
    result = merge_to_folder(
        recipe, output, hub=_hub(token), sources_from=folder, force=force, picture=plot, progress=out.progress()
    )
    print_merge(out, output, result)


def _recipe(
    adapters: tuple[str, ...],
    *,
    method: str | None,
    weights: str | None,
    rank: int | None,
    options: tuple[str, ...],
    seed: int | None,
    dtype: str | None,
    base: str | None,
    allow: tuple[str, ...],
) -> Any:
    from hub_merge.recipe import Recipe, Source

    numbers = _numbers(weights) or [1.0] * len(adapters)
    if len(numbers) != len(adapters):
        raise click.BadParameter(
            f"there are {len(adapters)} adapters and {len(numbers)} weights", param_hint="--weights"
        )
    if wrong := [option for option in options if "=" not in option]:
        raise click.BadParameter(f"{wrong[0]!r} is not NAME=VALUE", param_hint="--option")
    return Recipe(
        merge_method=method or "sum",
        models=tuple(Source(model, weight) for model, weight in zip(adapters, numbers, strict=True)),
        base_model=base,
        rank=rank,
        options=dict(option.split("=", 1) for option in options),
        dtype=dtype,
        seed=seed or 0,
        allow=allow,
    )


@cli.command(examples=["verify someone/math-medicine", "verify ./math-medicine ./math ./medicine"])
@click.argument("composite")
@click.argument("parents", nargs=-1)
@token_option
@output_options
def verify(out: Output, composite: str, parents: tuple[str, ...], token: str | None) -> None:
    """Prove that a composite is the merge its record tells of: parents are fetched and merged again.

    PARENTS are folders of adapters that were local when the composite was made; they are recognised by their hashes.
    """
    from hub_merge.cli.show import print_proof
    from hub_merge.pipeline import verify as verify_composite

    proof = verify_composite(composite, parents=parents, hub=_hub(token), progress=out.progress())
    print_proof(out, composite, proof)
    if not proof.passed:
        raise click.exceptions.Exit(1)


# --- publish ----------------------------------------------------------------------------------------------------------


@cli.command(examples=["card ./math-medicine", "card ./math-medicine --write"])
@click.argument("composite", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--repo-id", metavar="OWNER/NAME", help="Name the repository in the usage section.")
@click.option("--write", is_flag=True, help="Write it to README.md; text outside our markers stays.")
def card(composite: Path, repo_id: str | None, write: bool) -> None:
    """Print the model card that a composite's record gives."""
    from hub_merge.pipeline import card_of

    text = card_of(composite, repo_id=repo_id, write=write)
    if not write:
        click.echo(text, nl=False)


@cli.command(
    examples=["push ./math-medicine me/math-medicine --private", "push ./math-medicine org/lora --create-pr --dry-run"]
)
@click.argument("composite", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option(
    "--private/--no-private",
    default=None,
    help="Visibility of a new repository; private if a parent is gated or private.",
)
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--commit-message", help="Title of the commit.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent; change nothing.")
@click.option("--force", is_flag=True, help="Write into a repository that hub-merge did not make.")
@token_option
@output_options
def push(out: Output, composite: Path, repo_id: str, token: str | None, **asked: Any) -> None:
    """Publish a composite as one commit; the repository is created last."""
    from hub_merge.cli.show import print_published
    from hub_merge.pipeline import push_folder

    print_published(out, push_folder(composite, repo_id, hub=_hub(token), **asked), dry_run=asked["dry_run"])


# --- methods ----------------------------------------------------------------------------------------------------------


@cli.command(examples=["methods", "methods lego", "methods --json"])
@click.argument("name", required=False)
@output_options
def methods(out: Output, name: str | None) -> None:
    """List the merge methods, or explain one."""
    from hub_merge.cli.show import print_method, print_methods
    from hub_merge.methods import get_method, list_methods

    if name:
        print_method(out, get_method(name))
    else:
        print_methods(out, list_methods())
