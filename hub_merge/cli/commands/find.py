"""Find adapters, and look at them before a merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hub_merge.cli.framework import command
from hub_merge.cli.options import (
    NewFile,
    adapters_argument,
    allow_option,
    base_option,
    client,
    extras_option,
    filter_options,
    max_rank_option,
    numbers_of,
    output_options,
    pickle_option,
    plot_option,
    token_option,
    weights_option,
)
from hub_merge.cli.output import Output

__all__ = ["advise", "check", "inspect", "score", "search"]

BULK_PATIENCE = 400.0
"""Seconds to wait for the Hub where many adapters are looked at: its limits count over five minutes."""


@command(
    examples=[
        "search HuggingFaceTB/SmolLM2-135M-Instruct",
        "search openai-community/gpt2 --search medical --license mit --limit 5",
        "search --compatible-with someone/math-lora --max-rank 16",
    ]
)
@click.argument("base_model", required=False)
@filter_options
@click.option(
    "--limit", metavar="N", type=click.IntRange(1, 1000), default=30, show_default=True, help="Most adapters to list."
)
@click.option("--page", metavar="N", type=click.IntRange(1), default=1, help="Which --limit of them.  [default: 1]")
@click.option("--language", metavar="CODE", help="Language it is tagged with, such as en.")
@click.option("--min-downloads", metavar="N", type=click.IntRange(0), default=0, help="Least downloads a month.")
@click.option("--quantized", is_flag=True, help="Also those trained on quantised copies of the base model.")
@click.option(
    "--max-rank", metavar="N", type=click.IntRange(1), help="Largest rank it may have; reads the header of each."
)
@click.option(
    "--compatible-with",
    metavar="ADAPTER",
    help="List only what may be merged with ADAPTER, whose base model is taken if none is named; reads headers.",
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
    token: str | None,
    max_rank: int | None,
    compatible_with: str | None,
    **narrowed: Any,
) -> None:
    """Find adapters on the Hub, of one base model or of any.

    The base model is found by the tags of the adapters and by what their configurations name, under all its names.
    """
    from hub_merge.cli.show.adapters import print_listings

    hub = client(out, token)
    adapter = None
    if compatible_with is not None:
        from hub_merge.sources import open_headers
        from hub_merge.zoo.reading import stated_base

        adapter = open_headers(compatible_with, hub=hub).adapter
        base_model = base_model or stated_base(adapter, hub)
    filters: dict[str, Any] = {
        "text": text,
        "author": author,
        "task": task,
        "license": license_,
        "sort": sort or "downloads",
    }
    found = hub.search(base_model, **filters, **narrowed)
    if adapter is None and max_rank is None:
        print_listings(out, found)
        return
    from hub_merge.cli.show.zoo import print_fits
    from hub_merge.zoo.discovery import fitting

    print_fits(out, list(fitting(found, hub=hub, to=adapter, max_rank=max_rank)))


@command(examples=["inspect someone/math-lora", "inspect ./my-adapter --json", "inspect style.safetensors"])
@click.argument("adapter")
@click.option("--revision", metavar="REVISION", help="Branch, tag or commit.")
@pickle_option
@token_option
@output_options
def inspect(out: Output, adapter: str, revision: str | None, token: str | None, allow_pickle: bool) -> None:
    """Show what one adapter is, without its weights.

    Config and tensor headers tell it, which costs kilobytes, whatever the size of the adapter.
    """
    from hub_merge.cli.show.adapters import print_inspection
    from hub_merge.pipeline import inspect_reference

    hub = client(out, token, allow_pickle=allow_pickle)
    print_inspection(out, *inspect_reference(adapter, revision=revision, hub=hub))


@command(
    examples=[
        "check someone/math-lora other/medicine-lora",
        "check ./a ./b --base openai-community/gpt2 --json",
        "check --base openai-community/gpt2 --limit 200 --resume gpt2.jsonl",
    ]
)
@click.argument("adapters", nargs=-1, metavar="ADAPTER...")
@base_option
@allow_option
@extras_option
@click.option("--full", is_flag=True, help="Download the weights too and look at their numbers.")
@pickle_option
@filter_options
@click.option("--limit", metavar="N", type=click.IntRange(1, 1000), help="Most adapters to list.  [default: 200]")
@click.option(
    "--resume",
    metavar="FILE",
    type=NewFile(),
    help="Append verdicts to FILE, and leave out what it holds already.",
)
@token_option
@output_options
def check(
    out: Output,
    adapters: tuple[str, ...],
    base: str | None,
    allow: tuple[str, ...],
    extras: str | None,
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
    from hub_merge.cli.show.adapters import print_compatibility
    from hub_merge.pipeline import check_references

    if not adapters:
        if extras is not None:
            raise click.UsageError("--extras needs the names of adapters: it says what becomes of theirs in one merge.")
        _check_listed(out, base, allow, full or allow_pickle, token, **listed)
        return
    _refuse_given(listed, "belongs to a check of what the Hub lists: name no adapter")
    hub = client(out, token, allow_pickle=allow_pickle)
    asked: dict[str, Any] = {"base": base, "allow": allow, "extras": extras or "refuse"}
    result = check_references(adapters, hub=hub, full=full, progress=out.progress(), **asked)
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
    **filters: Any,
) -> None:
    """Check every adapter that the Hub lists for ``base``."""
    from hub_merge.bulk import check_listed
    from hub_merge.cli.show.adapters import print_verdicts

    if base is None:
        raise click.UsageError(
            "Missing argument 'ADAPTER...'. Name adapters, or a base model with --base to check what the Hub lists."
        )
    if whole:
        raise click.UsageError(
            "--full and --allow-pickle need the names of adapters: what the Hub lists is judged by headers alone."
        )
    hub = client(out, token, patience=BULK_PATIENCE)
    found = hub.search(base, license=license_, sort=sort or "downloads", limit=limit or 200, **filters)
    verdicts = check_listed(found, base, hub=hub, allow=allow, report=resume)
    print_verdicts(out, verdicts, listed=len(found), requests=lambda: hub.requests)


@command(examples=["score ./math ./medicine ./finance", "score ./math ./medicine --plot scores.png"])
@adapters_argument
@weights_option
@plot_option("a heat map")
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
    from hub_merge.cli.show.scores import print_scores
    from hub_merge.pipeline import score_references

    numbers = numbers_of(weights, adapters)
    scores = score_references(
        adapters,
        hub=client(out, token, allow_pickle=allow_pickle),
        weights=numbers,
        exact_signs=exact_signs,
        progress=out.progress(),
        tell=lambda found: out.warning(found.describe()),
    )
    if plot is not None:
        from hub_merge.plots import heat_map

        heat_map(scores, plot)
    print_scores(out, scores, modules=modules)


@command(
    examples=["advise ./math ./medicine ./finance", "advise someone/math-lora other/medicine-lora --max-rank 16 --json"]
)
@adapters_argument
@max_rank_option(
    default=64, show_default=True, help="Largest rank the composite may have, such as your server's limit."
)
@base_option
@allow_option
@extras_option
@pickle_option
@token_option
@output_options
def advise(
    out: Output,
    adapters: tuple[str, ...],
    max_rank: int,
    base: str | None,
    allow: tuple[str, ...],
    extras: str | None,
    token: str | None,
    allow_pickle: bool,
) -> None:
    """Suggest a method, weights and a rank, with reasons.

    The reasons are geometry: how far the deltas overlap, how their norms compare, and what a rank keeps. Whether the
    composite works well has to be measured. Heads and other tensors beside the factors do not count.
    """
    from hub_merge.cli.show.scores import print_advice
    from hub_merge.pipeline import advise_on_references

    hub = client(out, token, allow_pickle=allow_pickle)
    asked: dict[str, Any] = {"base": base, "allow": allow}
    advice = advise_on_references(
        adapters, hub=hub, extras=extras or "refuse", max_rank=max_rank, progress=out.progress(), **asked
    )
    print_advice(out, advice, adapters, extras=extras, **asked)
