"""The commands, in the order of the work."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from hub_merge.cli.framework import Group, RankType, filter_options, output_options, run_cli, writing_options
from hub_merge.cli.output import Output

if TYPE_CHECKING:
    from hub_merge.hub import Hub
    from hub_merge.ranks import Profile, Rank
    from hub_merge.recipe import Conversion, MergeRecord, Recipe

__all__ = ["cli", "main"]

BULK_PATIENCE = 400.0
"""Seconds to wait for the Hub where many adapters are looked at: its limits count over five minutes."""

RECIPE_SUFFIXES = (".yaml", ".yml")

adapters_argument = click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...")
token_option = click.option(
    "--token",
    metavar="TOKEN",
    help="Hub token. It stays in the shell's history: prefer HF_TOKEN or `hf auth login`.",
)
pickle_option = click.option(
    "--allow-pickle", is_flag=True, help="Read adapter_model.bin, a pickle, too; none of it is run."
)
weights_option = click.option(
    "--weights",
    metavar="NUMBERS",
    help="One number an adapter, such as 1,0.5,-0.25.  [default: 1 each]",
)
base_option = click.option("--base", metavar="OWNER/NAME", help="The base model, where the adapters do not prove it.")
allow_option = click.option(
    "--allow", multiple=True, metavar="CODE", help="Accept the finding of this code; may be repeated."
)
accept_unknown_license_option = click.option(
    "--accept-unknown-license",
    is_flag=True,
    help="Publish although the licence of a source is not known, or its terms are not.",
)
output_option = click.option(
    "-o", "--output", required=True, metavar="FOLDER", type=click.Path(path_type=Path), help="Folder to create."
)
energy_option = click.option(
    "--energy",
    metavar="SHARE",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the squared norm that --rank auto keeps.  [default: 0.99]",
)
profile_option = click.option(
    "--profile",
    type=click.Choice(["portable", "peft"]),
    help="One rank for all modules, or one for each, which only PEFT and transformers read: vLLM, llama.cpp's "
    "converter and others need portable.  [default: portable]",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Dtype of the result.  [default: the widest of the adapters']",
)
force_option = click.option("--force", is_flag=True, help="Replace the folder if it holds a composite.")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hub-merge", message="%(prog)s %(version)s")
def cli() -> None:
    """Find, check, score, merge, prove and publish LoRA adapters, without loading a base model.

    An adapter is a Hub id (owner/name, owner/name@revision:subfolder), the address of its page, a folder, or a file.
    It may be in the format of PEFT, kohya and LyCORIS, diffusers, MLX-LM or llama.cpp.
    """


def main() -> NoReturn:
    """Run the command line."""
    run_cli(cli)


def _hub(out: Output, token: str | None, **settings: Any) -> Hub:
    from hub_merge.hub import Hub

    return Hub(token=(token or "").strip() or None, progress=out.animated, **settings)


def _numbers(weights: str | None, adapters: tuple[str, ...]) -> list[float] | None:
    if weights is None:
        return None
    try:
        numbers = [float(number) for number in weights.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise click.BadParameter(
            f"{weights!r} is not numbers with commas between, such as 1,0.5.", param_hint="--weights"
        )
    if len(numbers) != len(adapters):
        raise click.BadParameter(
            f"{len(numbers)} given for {len(adapters)} adapters; give one an adapter.", param_hint="--weights"
        )
    return numbers


# --- find and look ----------------------------------------------------------------------------------------------------


@cli.command(
    examples=[
        "search HuggingFaceTB/SmolLM2-135M-Instruct",
        "search openai-community/gpt2 --search medical --license mit --limit 5",
    ]
)
@click.argument("base_model", required=False)
@filter_options
@click.option(
    "--limit", metavar="N", type=click.IntRange(1, 1000), default=30, show_default=True, help="Most adapters to list."
)
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
    """Find adapters on the Hub, of one base model or of any."""
    from hub_merge.cli.show import print_listings

    found = _hub(out, token).search(
        base_model, text=text, author=author, task=task, license=license_, sort=sort or "downloads", limit=limit
    )
    print_listings(out, found)


@cli.command(examples=["inspect someone/math-lora", "inspect ./my-adapter --json", "inspect style.safetensors"])
@click.argument("adapter")
@click.option("--revision", metavar="REVISION", help="Branch, tag or commit.")
@pickle_option
@token_option
@output_options
def inspect(out: Output, adapter: str, revision: str | None, token: str | None, allow_pickle: bool) -> None:
    """Show what one adapter is, without its weights.

    Config and tensor headers tell it, which costs kilobytes, whatever the size of the adapter.
    """
    from hub_merge.cli.show import print_inspection
    from hub_merge.pipeline import inspect_reference

    hub = _hub(out, token, allow_pickle=allow_pickle)
    print_inspection(out, *inspect_reference(adapter, revision=revision, hub=hub))


@cli.command(
    examples=[
        "check someone/math-lora other/medicine-lora",
        "check ./a ./b --base openai-community/gpt2 --json",
        "check --base openai-community/gpt2 --limit 200 --resume gpt2.jsonl",
    ]
)
@click.argument("adapters", nargs=-1, metavar="ADAPTER...")
@base_option
@allow_option
@click.option("--full", is_flag=True, help="Download the weights too and look at their numbers.")
@pickle_option
@filter_options
@click.option("--limit", metavar="N", type=click.IntRange(1, 1000), help="Most adapters to list.  [default: 200]")
@click.option(
    "--resume",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Append verdicts to FILE, and leave out what it holds already.",
)
@token_option
@output_options
def check(
    out: Output,
    adapters: tuple[str, ...],
    base: str | None,
    allow: tuple[str, ...],
    full: bool,
    token: str | None,
    allow_pickle: bool,
    **listed: Any,
) -> None:
    """Tell whether adapters fit together: every problem at once.

    Adapters of the Hub are judged by their config and tensor headers, which costs kilobytes. The exit code is 1 when
    something blocks a merge.

    Without an ADAPTER, every adapter that the Hub lists for --base is judged alone: a verdict and its reason a line, as
    they come (with --json one document a line), and at the end what was read. --search to --resume belong to this.
    """
    from hub_merge.cli.show import print_compatibility
    from hub_merge.pipeline import check_references

    if not adapters:
        _check_listed(out, base, allow, full or allow_pickle, token, **listed)
        return
    _refuse_given(listed, "belongs to a check of what the Hub lists: name no adapter")
    hub = _hub(out, token, allow_pickle=allow_pickle)
    result = check_references(adapters, hub=hub, base=base, allow=allow, full=full, progress=out.progress())
    print_compatibility(out, result, adapters)
    if not result.compatible:
        raise click.exceptions.Exit(1)


def _refuse_given(listed: dict[str, Any], why: str) -> None:
    if given := [name for name, value in listed.items() if value is not None]:
        options = {param.name: param.opts[-1] for param in click.get_current_context().command.params}
        raise click.UsageError(f"{options[given[0]]} {why}.")


def _check_listed(
    out: Output,
    base: str | None,
    allow: tuple[str, ...],
    whole: bool,
    token: str | None,
    *,
    limit: int | None,
    resume: Path | None,
    sort: Any,
    license_: str | None,
    **filters: str | None,
) -> None:
    """Check every adapter that the Hub lists for ``base``."""
    from hub_merge.bulk import check_listed
    from hub_merge.cli.show import print_verdicts

    if base is None:
        raise click.UsageError(
            "Missing argument 'ADAPTER...'. Name adapters, or a base model with --base to check what the Hub lists."
        )
    if whole:
        raise click.UsageError(
            "--full and --allow-pickle need the names of adapters: what the Hub lists is judged by headers alone."
        )
    hub = _hub(out, token, patience=BULK_PATIENCE)
    found = hub.search(base, license=license_, sort=sort or "downloads", limit=limit or 200, **filters)
    verdicts = check_listed(found, base, hub=hub, allow=allow, report=resume)
    print_verdicts(out, verdicts, listed=len(found), requests=lambda: hub.requests)


@cli.command(examples=["score ./math ./medicine ./finance", "score ./math ./medicine --plot scores.png"])
@adapters_argument
@weights_option
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw a heat map (.png, .svg or .pdf; needs matplotlib).",
)
@click.option("--modules", is_flag=True, help="With --json, add the scores of every module.")
@pickle_option
@click.option("--exact-signs", is_flag=True, help="Count conflicts of signs entry by entry; takes much longer.")
@token_option
@output_options
def score(
    out: Output,
    adapters: tuple[str, ...],
    weights: str | None,
    plot: Path | None,
    modules: bool,
    exact_signs: bool,
    token: str | None,
    allow_pickle: bool,
) -> None:
    """Score how orthogonal the deltas of adapters are.

    The headline is the RMS cosine over modules, [0, 1]: 0 is orthogonal. Beside it stands what chance gives and
    whether the A factors share one initialisation. It describes geometry; it does not predict quality.
    """
    from hub_merge.cli.show import print_scores
    from hub_merge.pipeline import score_references

    numbers = _numbers(weights, adapters)
    scores = score_references(
        adapters,
        hub=_hub(out, token, allow_pickle=allow_pickle),
        weights=numbers,
        exact_signs=exact_signs,
        progress=out.progress(),
        tell=lambda found: out.warning(found.describe()),
    )
    if plot is not None:
        from hub_merge.plots import heat_map

        heat_map(scores, plot)
    print_scores(out, scores, modules=modules)


@cli.command(
    examples=["advise ./math ./medicine ./finance", "advise someone/math-lora other/medicine-lora --max-rank 16 --json"]
)
@adapters_argument
@click.option(
    "--max-rank",
    metavar="N",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Largest rank the composite may have, such as your server's limit.",
)
@base_option
@allow_option
@pickle_option
@token_option
@output_options
def advise(
    out: Output,
    adapters: tuple[str, ...],
    max_rank: int,
    base: str | None,
    allow: tuple[str, ...],
    token: str | None,
    allow_pickle: bool,
) -> None:
    """Suggest a method, weights and a rank, with reasons.

    The reasons are geometry: how far the deltas overlap, how their norms compare, and what a rank keeps. Whether the
    composite works well has to be measured.
    """
    from hub_merge.cli.show import print_advice
    from hub_merge.pipeline import advise_on_references

    hub = _hub(out, token, allow_pickle=allow_pickle)
    advice = advise_on_references(adapters, hub=hub, base=base, allow=allow, max_rank=max_rank, progress=out.progress())
    print_advice(out, advice, adapters, base=base, allow=allow)


# --- merge and prove --------------------------------------------------------------------------------------------------


@cli.command(
    examples=[
        "merge someone/math-lora other/medicine-lora -o math-medicine",
        "merge ./math ./medicine --weights 1,0.5 --method lego --rank 8 -o out",
        "merge ./math ./medicine --rank auto --energy 0.95 -o out",
        "merge style.safetensors other/style-lora --format kohya -o out",
        "merge recipe.yaml -o out",
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
@profile_option
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="Option of the method; may be repeated.")
@click.option("--seed", metavar="N", type=click.IntRange(0), help="Seed of every random choice.  [default: 0]")
@dtype_option
@base_option
@allow_option
@click.option(
    "--extras",
    metavar="POLICY",
    help="Heads, biases and token rows: refuse, keep:NAME of an adapter, average, or drop.  [default: refuse]",
)
@click.option(
    "--materialize", is_flag=True, default=None, help="Form DoRA deltas from the base's weights, with a stated error."
)
@click.option(
    "--base-weights", metavar="FOLDER_OR_REPO", help="Where those weights are.  [default: the base that is stated]"
)
@click.option(
    "--materialize-rank",
    metavar="N",
    type=click.IntRange(1),
    help="Rank of a DoRA adapter's new factors.  [default: four times its rank]",
)
@click.option(
    "--initial",
    multiple=True,
    metavar="ADAPTER=REFERENCE",
    help="A PiSSA, OLoRA, CorDA or LoRA-GA adapter as it was before training; may be repeated.",
)
@click.option("--plot", is_flag=True, help="Put a heat map of the scores into the card (needs matplotlib).")
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
    **asked: Any,
) -> None:
    """Merge adapters into one, and prove the written file.

    Record, recipe and model card are written beside it. A recipe says everything itself, weights by module too, and
    stands in place of adapters and options; folders after it say where its local adapters are now.
    """
    from hub_merge.cli.show import print_merge
    from hub_merge.pipeline import merge_to_folder

    path = _recipe_path(adapters, asked)
    result = merge_to_folder(
        _recipe(adapters, **asked) if path is None else _read_recipe(path),
        output,
        hub=_hub(out, token, allow_pickle=allow_pickle),
        format=file_format,
        sources_from=path.parent if path else Path(),
        parents=adapters[1:] if path else (),
        force=force,
        picture=plot,
        progress=out.progress(),
    )
    print_merge(out, output, result)


def _recipe_path(adapters: tuple[str, ...], asked: dict[str, Any]) -> Path | None:
    """Return the recipe that was named in place of adapters, ``None`` if none was."""
    paths = [Path(name) for name in adapters if name.endswith(RECIPE_SUFFIXES) and not Path(name).is_dir()]
    if not paths:
        return None
    if adapters[0] != str(paths[0]) or len(paths) > 1:
        raise click.UsageError("Name one recipe, first; only folders of its local adapters may follow.")
    options = {param.name: param.opts[-1] for param in click.get_current_context().command.params}
    if given := [options[name] for name, value in asked.items() if value not in (None, ())]:
        raise click.UsageError(f"{paths[0]} says it all: leave out {', '.join(given)}, or edit the recipe.")
    if not paths[0].is_file():
        raise click.UsageError(f"There is no recipe {paths[0]}.")
    return paths[0]


def _read_recipe(path: Path) -> Recipe:
    from hub_merge.errors import RecipeError
    from hub_merge.recipe import Recipe

    try:
        return Recipe.from_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: it is not text in UTF-8.", remedy="Save it as UTF-8.") from error
    except RecipeError as error:
        raise RecipeError(f"{path}: {error.problem}", remedy=error.remedy) from error


def _recipe(
    adapters: tuple[str, ...],
    *,
    method: str | None,
    weights: str | None,
    rank: Rank | None,
    energy: float | None,
    profile: Profile | None,
    options: tuple[str, ...],
    seed: int | None,
    dtype: str | None,
    base: str | None,
    allow: tuple[str, ...],
    extras: str | None = None,
    **conversion: Any,
) -> Recipe:
    from hub_merge.recipe import Recipe, Source

    if twice := [name for name in adapters if adapters.count(name) > 1]:
        raise click.UsageError(f"{twice[0]} is named twice: name it once, with a larger number in --weights.")
    if wrong := [option for option in options if "=" not in option]:
        raise click.BadParameter(f"{wrong[0]!r} is not NAME=VALUE.", param_hint="--option")
    _require_auto(rank, energy)
    numbers = _numbers(weights, adapters) or [1.0] * len(adapters)
    conversions = _conversions(adapters, **conversion)
    return Recipe(
        merge_method=method or "sum",
        models=tuple(map(Source, adapters, numbers, conversions)),
        base_model=base,
        rank=rank,
        energy=energy,
        profile=profile or "portable",
        options=dict(option.split("=", 1) for option in options),
        dtype=dtype,
        seed=seed or 0,
        allow=allow,
        extras=extras or "refuse",
    )


def _conversions(
    adapters: tuple[str, ...],
    *,
    materialize: bool | None = None,
    base_weights: str | None = None,
    materialize_rank: int | None = None,
    initial: tuple[str, ...] = (),
) -> list[Conversion | None]:
    """Return how each adapter is made plain if it has to be."""
    from hub_merge.recipe import STATED, Conversion

    if not materialize and (base_weights or materialize_rank):
        raise click.UsageError("--base-weights and --materialize-rank say how to --materialize: add that too.")
    plain = Conversion(base_weights=base_weights or STATED, rank=materialize_rank) if materialize else None
    conversions = [plain] * len(adapters)
    for entry in initial:
        name, _, reference = entry.partition("=")
        places = [place for place, adapter in enumerate(adapters) if name in (adapter, Path(adapter).name)]
        if len(places) != 1 or not reference:
            raise click.BadParameter(
                f"{entry!r} is not ADAPTER=REFERENCE with one of the adapters to merge.", param_hint="--initial"
            )
        conversions[places[0]] = Conversion(initial=reference)
    return conversions


def _require_auto(rank: Rank | None, energy: float | None) -> None:
    if energy is not None and rank != "auto":
        raise click.UsageError("--energy says what --rank auto keeps: add --rank auto, or leave out --energy.")


@cli.command(
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
@profile_option
@dtype_option
@base_option
@allow_option
@force_option
@pickle_option
@token_option
@writing_options
def compress(out: Output, adapter: str, output: Path, **asked: Any) -> None:
    """Write an adapter at a smaller rank, and prove the written file.

    It is as close to the adapter as that rank allows (truncated SVD). Record, recipe and model card are written beside
    it, as for a merge.
    """
    from hub_merge.cli.show import print_compression

    print_compression(out, output, _write_one(out, adapter, output, method="svd", **asked))


@cli.command(
    examples=[
        "convert style.safetensors -o style --format diffusers",
        "convert someone/mlx-lora -o math",
        "convert loha.safetensors -o small --rank 32 --format kohya",
    ]
)
@click.argument("adapter")
@output_option
@click.option("--rank", metavar="N", type=click.IntRange(1), help="Truncate to this rank, with the least error.")
@dtype_option
@base_option
@allow_option
@force_option
@pickle_option
@token_option
@writing_options
def convert(out: Output, adapter: str, output: Path, **asked: Any) -> None:
    """Write one adapter in another format, and prove the written file.

    Every delta stays what it is: the error that is shown is the relative distance of what was written to what was read,
    0 where not even rounding changed it. LoHa and LoKr are expanded exactly; --rank truncates.
    """
    from hub_merge.cli.show import print_conversion

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
    method: str | None = None,
    **asked: Any,
) -> MergeRecord:
    """Write one adapter alone to ``output`` and return its record."""
    from hub_merge.pipeline import merge_to_folder

    return merge_to_folder(
        _recipe((adapter,), method=method, weights=None, options=(), seed=None, **asked),
        output,
        hub=_hub(out, token, allow_pickle=allow_pickle),
        format=file_format,
        force=force,
        progress=out.progress(),
    )


@cli.command(examples=["verify someone/math-medicine", "verify ./math-medicine ./math ./medicine"])
@click.argument("composite")
@click.argument("parents", nargs=-1, metavar="[PARENT]...")
@pickle_option
@token_option
@output_options
def verify(out: Output, composite: str, parents: tuple[str, ...], token: str | None, allow_pickle: bool) -> None:
    """Prove that a composite is the merge its record tells of.

    Its parents are fetched at their recorded commits and merged again. PARENT is the folder or file of one that was
    local when the composite was made; it is recognised by its hashes. The exit code is 1 when the proof fails.
    """
    from hub_merge.cli.show import print_proof
    from hub_merge.pipeline import verify as verify_composite

    hub = _hub(out, token, allow_pickle=allow_pickle)
    proof = verify_composite(composite, parents=parents, hub=hub, progress=out.progress())
    print_proof(out, composite, proof)
    if not proof.passed:
        raise click.exceptions.Exit(1)


# --- full models ------------------------------------------------------------------------------------------------------


@cli.command(
    examples=[
        "fuse ./math-medicine -o full",
        "fuse me/math-medicine --base HuggingFaceTB/SmolLM2-135M-Instruct -o full --push me/math-medicine-full",
    ]
)
@click.argument("adapter", metavar="COMPOSITE")
@click.option("--base", metavar="MODEL", help="Full model: a Hub id or a folder.  [default: the one it states]")
@click.option(
    "-o", "--output", required=True, metavar="FOLDER", type=click.Path(path_type=Path), help="Folder to create."
)
@click.option("--push", "repo_id", metavar="OWNER/NAME", help="Publish the model too, as one commit.")
@click.option(
    "--private/--no-private",
    default=None,
    help="Visibility of a new repository.  [default: private if a source is gated or private]",
)
@accept_unknown_license_option
@allow_option
@click.option("--force", is_flag=True, help="Replace the folder if it holds a fused model.")
@token_option
@output_options
def fuse(
    out: Output,
    output: Path,
    repo_id: str | None,
    private: bool | None,
    accept_unknown_license: bool,
    token: str | None,
    **asked: Any,
) -> None:
    """Fold a composite into its base, which gives a full model.

    COMPOSITE is any adapter that can be merged. Tensors stream through in blocks, so a model larger than memory can be
    fused; each weight keeps its dtype, tokenizer and licence files are carried over, and what was written is read again
    and compared.
    """
    from hub_merge.cli.show import print_fusion, print_published
    from hub_merge.fusion import fuse as fuse_adapter
    from hub_merge.fusion import push_fused

    hub = _hub(out, token)
    record = fuse_adapter(output=output, hub=hub, progress=out.progress(), **asked)
    if repo_id is None:
        print_fusion(out, output, record)
    else:
        published = push_fused(output, repo_id, hub=hub, private=private, accept_unknown_license=accept_unknown_license)
        print_published(out, published, dry_run=False, fused=True)


@cli.command(
    examples=[
        "extract me/tuned-model HuggingFaceTB/SmolLM2-135M-Instruct --rank 16 -o lora",
        "extract ./tuned ./base --rank 64 --energy 0.9 --exclude lm_head -o lora",
    ]
)
@click.argument("tuned")
@click.argument("base")
@click.option("--rank", required=True, metavar="N", type=click.IntRange(1), help="Largest rank of the adapter.")
@click.option(
    "--energy",
    metavar="SHARE",
    type=click.FloatRange(0, 1, min_open=True),
    help="Take the smallest rank that keeps this share of the squared norm.",
)
@click.option("--include", multiple=True, metavar="PART", help="Only modules with this in their name; repeatable.")
@click.option("--exclude", multiple=True, metavar="PART", help="No modules with this in their name; repeatable.")
@click.option(
    "-o", "--output", required=True, metavar="FOLDER", type=click.Path(path_type=Path), help="Folder to create."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Dtype of the adapter.",
)
@click.option(
    "--seed", metavar="N", type=click.IntRange(0), default=0, show_default=True, help="Seed of random choices."
)
@click.option("--force", is_flag=True, help="Replace the folder if it holds a composite.")
@token_option
@output_options
def extract(out: Output, output: Path, token: str | None, **asked: Any) -> None:
    """Extract a LoRA adapter from a tuned full model and its base.

    It is the closest of its rank to the difference, module by module. How much it keeps, and what it cannot hold, is
    told; embeddings, norms and biases are not carried.
    """
    from hub_merge.cli.show import print_extraction
    from hub_merge.extraction import extract as extract_adapter

    print_extraction(
        out, output, extract_adapter(output=output, hub=_hub(out, token), progress=out.progress(), **asked)
    )


# --- publish ----------------------------------------------------------------------------------------------------------

composite_argument = click.argument("composite", type=click.Path(exists=True, file_okay=False, path_type=Path))


@cli.command(examples=["card ./math-medicine", "card ./math-medicine --repo-id me/math-medicine --write"])
@composite_argument
@click.option("--repo-id", metavar="OWNER/NAME", help="Repository to name in the usage section.")
@click.option("--write", is_flag=True, help="Write it to README.md; text outside our markers stays.")
def card(composite: Path, repo_id: str | None, write: bool) -> None:
    """Print the model card that a composite's record gives."""
    from hub_merge.pipeline import card_of

    text = card_of(composite, repo_id=repo_id, write=write)
    if write:
        click.echo(f"Wrote {composite / 'README.md'}", err=True)
    else:
        click.echo(text, nl=False)


@cli.command(
    examples=[
        "push ./math-medicine me/math-medicine --private",
        "push ./math-medicine org/lora --create-pr --dry-run",
        "push ./math-medicine me/math-medicine --branch rank-8 --tag v1.0 --collection 'My merges'",
    ]
)
@composite_argument
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option(
    "--private/--no-private",
    default=None,
    help="Visibility of a new repository.  [default: private if a parent is gated or private]",
)
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--branch", metavar="NAME", help="Branch to commit to; created if there is none of that name.")
@click.option("--tag", metavar="NAME", help="Tag to give the commit.")
@click.option(
    "--collection",
    metavar="SLUG|TITLE",
    help="Collection that shall list the repository; one of a new title is created.",
)
@click.option("--commit-message", metavar="TEXT", help="Title of the commit.")
@accept_unknown_license_option
@click.option("--dry-run", is_flag=True, help="Show what would be sent; change nothing.")
@click.option("--force", is_flag=True, help="Write into a repository that hub-merge did not make.")
@token_option
@output_options
def push(out: Output, composite: Path, repo_id: str, token: str | None, **asked: Any) -> None:
    """Publish a composite, or a fused model, as one commit on the Hub.

    Everything is checked first, the licences of base and parents too, and a new repository is created last. What is
    there already is not sent again.
    """
    from hub_merge.cli.show import print_published
    from hub_merge.fusion import is_fused, push_fused
    from hub_merge.pipeline import push_folder

    fused = is_fused(composite)
    published = (push_fused if fused else push_folder)(composite, repo_id, hub=_hub(out, token), **asked)
    print_published(out, published, dry_run=asked["dry_run"], fused=fused)


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
