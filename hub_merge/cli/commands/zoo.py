"""An index of many adapters: build it, ask it, share it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hub_merge.cli.framework import Group
from hub_merge.cli.options import client, output_options, plot_option, token_option
from hub_merge.cli.output import Output

if TYPE_CHECKING:
    from hub_merge.zoo.asking import Question
    from hub_merge.zoo.engines import Engine
    from hub_merge.zoo.loaded import Loaded
    from hub_merge.zoo.reading import Access

__all__ = ["zoo"]

Function = TypeVar("Function", bound=Callable[..., Any])

index_option = click.option(
    "--index",
    metavar="INDEX",
    default="zoo",
    show_default=True,
    envvar="HUB_MERGE_ZOO",
    show_envvar=True,
    help="Folder of the index, or a dataset of the Hub that holds one (owner/name).",
)
folder_option = click.option(
    "--index",
    "folder",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    default="zoo",
    show_default=True,
    envvar="HUB_MERGE_ZOO",
    show_envvar=True,
    help="Folder of the index.",
)
base_option = click.option("--base", metavar="OWNER/NAME", help="Base model, where the adapter does not name one.")
license_option = click.option("--any-license", is_flag=True, help="Also what may not be shared together.")
exact_option = click.option(
    "--exact/--no-exact",
    default=True,
    help="Pull the adapters on top of the list and compare them exactly, or answer from the index alone.",
)


def engine_options(function: Function) -> Function:
    """Add the options that say where a build is done; the command gets ``engine``."""

    @functools.wraps(function)
    def wrapper(*args: Any, workers: int | None, ray: str | None, rate: float | None, **kwargs: Any) -> Any:
        if ray and workers:
            raise click.UsageError("--workers and --ray exclude each other.")
        return function(*args, engine=_engine(workers, ray, rate), **kwargs)

    for option in (
        click.option("--rate", metavar="N", type=click.FloatRange(0, min_open=True), help="Most requests a minute."),
        click.option("--ray", metavar="ADDRESS", help="A Ray cluster to build on, or auto for one on this machine."),
        click.option("--workers", metavar="N", type=click.IntRange(1), help="Processes.  [default: one a processor]"),
    ):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value]


def query_options(function: Function) -> Function:
    """Add what every question takes: adapter, index, how many, how exact."""
    for option in (
        output_options,
        token_option,
        base_option,
        exact_option,
        click.option("--limit", metavar="N", type=click.IntRange(1), default=10, show_default=True, help="How many."),
        index_option,
        click.argument("adapter"),
    ):
        function = option(function)
    return function


@click.group(cls=Group)
def zoo() -> None:
    """Index the geometry of many adapters, and ask which fit together.

    An index keeps a few kilobytes an adapter. It is a folder, or a dataset of the Hub. Cosines are estimated from
    sketches, give or take 0.016, and computed exactly for what is on top of a list.
    """


@zoo.command(
    examples=[
        "zoo build openai-community/gpt2",
        "zoo build openai-community/gpt2 --index gpt2-zoo --ray auto",
        "zoo build openai-community/gpt2 --job --to me/gpt2-zoo > build_zoo.py",
    ]
)
@click.argument("base_model")
@folder_option
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Most adapters, the most downloaded first.")
@click.option("--retry-failed", "retry", is_flag=True, help="Try again what could not be used.")
@engine_options
@click.option("--job", is_flag=True, help="Print a script that builds on the Hub's machines; see --submit.")
@click.option("--to", metavar="OWNER/NAME", help="With --job, the dataset to publish the index as.")
@click.option("--submit", is_flag=True, help="With --job, start it with your token; jobs cost money.")
@click.option("--flavor", metavar="NAME", help="With --job, the machine.  [default: cpu-upgrade]")
@click.option("--package", metavar="REQUIREMENT", help="With --job, what to install.  [default: hub-merge[zoo]]")
@click.option("--create-pr", is_flag=True, help="With --job, publish as a pull request.")
@token_option
@output_options
def build(
    out: Output,
    base_model: str,
    folder: Path,
    limit: int | None,
    retry: bool,
    engine: Engine,
    token: str | None,
    job: bool,
    **asked: Any,
) -> None:
    """Index every adapter that the Hub lists for a base model.

    A build that was stopped goes on where it was, and a later one reads only what is new or changed. An adapter that
    cannot be used is kept with the reason, and not read again at the same commit.
    """
    from hub_merge.cli.show.zoo import print_built
    from hub_merge.zoo.building import build as run

    if job:
        _job(out, base_model, limit, retry, token, **asked)
        return
    if given := [name for name, value in asked.items() if value]:
        raise click.UsageError(f"--{given[0].replace('_', '-')} belongs to --job.")
    built = run(
        folder, base_model, access=_access(token), engine=engine, limit=limit, retry=retry, progress=out.progress()
    )
    print_built(out, built, folder)


def _job(
    out: Output,
    base_model: str,
    limit: int | None,
    retry: bool,
    token: str | None,
    *,
    to: str | None,
    submit: bool,
    flavor: str | None,
    package: str | None,
    create_pr: bool,
) -> None:
    from hub_merge.cli.show.zoo import print_job
    from hub_merge.zoo import job as jobs

    if to is None:
        raise click.UsageError("--job needs --to OWNER/NAME, the dataset that keeps the index.")
    options = [*(["--limit", str(limit)] if limit else []), *(["--retry-failed"] if retry else [])]
    chosen = {"flavor": flavor or jobs.FLAVOR, **({"package": package} if package else {})}
    text = jobs.script(base_model, to, options=options, create_pr=create_pr, **chosen)
    submitted = jobs.submit(text, hub=client(out, token), flavor=chosen["flavor"]) if submit else None
    print_job(out, text, submitted)


@zoo.command(examples=["zoo add someone/math-lora ./my-adapter", "zoo add ./old --base openai-community/gpt2"])
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...")
@folder_option
@base_option
@engine_options
@token_option
@output_options
def add(
    out: Output, adapters: tuple[str, ...], folder: Path, base: str | None, engine: Engine, token: str | None
) -> None:
    """Index the adapters that are named, of the Hub or of this machine.

    Of a local adapter the index keeps the name and a hash, not the path. What cannot be used is left out with the
    reason; the exit code is 1 if that is all of them.
    """
    from hub_merge.cli.show.zoo import print_built
    from hub_merge.zoo.building import add as run
    from hub_merge.zoo.index import Index

    is_new = not folder.exists()
    index = Index.create(folder)
    try:
        built = run(index, adapters, access=_access(token), base=base, engine=engine, progress=out.progress())
    finally:
        if is_new:
            index.discard()
    print_built(out, built, folder)
    if not built.indexed and not built.unchanged:
        raise click.exceptions.Exit(1)


@zoo.command(examples=["zoo update", "zoo update --index gpt2-zoo --retry-failed"])
@folder_option
@click.option("--retry-failed", "retry", is_flag=True, help="Try again what could not be used.")
@engine_options
@token_option
@output_options
def update(out: Output, folder: Path, retry: bool, engine: Engine, token: str | None) -> None:
    """Index what is new or changed on the Hub since the index was built."""
    from hub_merge.cli.show.zoo import print_built
    from hub_merge.zoo.building import update as run

    built = run(folder, access=_access(token), engine=engine, retry=retry, progress=out.progress())
    print_built(out, built, folder)


@zoo.command(examples=["zoo stats", "zoo stats --index someone/gpt2-zoo --json"])
@index_option
@token_option
@output_options
def stats(out: Output, index: str, token: str | None) -> None:
    """Show what an index holds, and why adapters have no fingerprint."""
    from hub_merge.cli.show.zoo import print_stats
    from hub_merge.zoo.sharing import open_index
    from hub_merge.zoo.statistics import statistics

    print_stats(out, statistics(open_index(index, client(out, token))))


@zoo.command(examples=["zoo near someone/math-lora", "zoo near ./my-adapter --index someone/gpt2-zoo --no-exact"])
@query_options
def near(out: Output, adapter: str, index: str, token: str | None, **asked: Any) -> None:
    """Find what is most alike: the same file, re-uploads, other steps of a run; and what is most opposed."""
    _answer(out, "near", adapter, index, token, **asked)


@zoo.command(examples=["zoo far someone/math-lora --limit 5"])
@query_options
def far(out: Output, adapter: str, index: str, token: str | None, **asked: Any) -> None:
    """Find what is closest to orthogonal; where a sketch cannot tell, the larger norm comes first."""
    _answer(out, "far", adapter, index, token, **asked)


@zoo.command(examples=["zoo complement someone/math-lora", "zoo complement ./my-adapter --any-license --json"])
@license_option
@query_options
def complement(out: Output, adapter: str, index: str, token: str | None, **asked: Any) -> None:
    """Find partners for a merge: little overlap, a norm of the same order, a licence that fits."""
    _answer(out, "complement", adapter, index, token, **asked)


def _answer(
    out: Output,
    kind: str,
    adapter: str,
    index: str,
    token: str | None,
    *,
    limit: int,
    exact: bool,
    base: str | None,
    **options: Any,
) -> None:
    from hub_merge.cli.show.zoo import print_matches
    from hub_merge.zoo import queries
    from hub_merge.zoo.asking import ask_about

    loaded = _loaded(out, index, token)
    question = ask_about(loaded, adapter, hub=client(out, token), access=_access(token), base=base, exact=exact)
    found = getattr(queries, kind)(loaded, question.entry, limit=limit, exact=question.exact, **options)
    name = question.entry.argument if adapter.casefold() == question.entry.key.casefold() else adapter
    print_matches(out, found, kind, name, without_exact=_without_exact(exact, question))
    if not found:
        out.note(queries.why_none(loaded, question.entry))


def _without_exact(wanted: bool, question: Question) -> str | None:
    """Return why nothing was compared exactly; ``None`` if it was, as far as each adapter could be had."""
    if not wanted:
        return "--no-exact leaves out"
    return "cannot be made where this adapter is known from the index alone" if question.exact is None else None


@zoo.command(examples=["zoo families --plot map.png", "zoo families --base openai-community/gpt2 --json"])
@index_option
@click.option("--base", metavar="OWNER/NAME", help="Look at adapters of this base model only.")
@click.option(
    "--threshold",
    metavar="COSINE",
    type=click.FloatRange(0.1, 1),
    default=0.5,
    show_default=True,
    help="Estimated cosine from which two adapters are alike.",
)
@plot_option("a map")
@token_option
@output_options
def families(out: Output, index: str, base: str | None, threshold: float, plot: Path | None, token: str | None) -> None:
    """Find families: adapters whose deltas point the same way, as those of one run or of one task do."""
    from hub_merge.cli.show.zoo import print_families
    from hub_merge.zoo.families import families as run

    found = run(_loaded(out, index, token), base=base, threshold=threshold, progress=out.progress())
    if plot is not None:
        from hub_merge.zoo.picture import draw_map

        draw_map(found, plot)
    print_families(out, found)


@zoo.command(
    examples=[
        "zoo compose --skills math,medicine,code",
        "zoo compose --skills math,medicine -k 3 -o merged",
    ]
)
@index_option
@click.option("--skills", metavar="WORDS", required=True, help="Words in the adapters' names or tags, with commas.")
@click.option("-k", "count", metavar="N", type=click.IntRange(1), help="Adapters in all.  [default: one a skill]")
@click.option("--base", metavar="OWNER/NAME", help="Base model.  [default: the one that has most for these skills]")
@license_option
@exact_option
@click.option(
    "-o", "--output", metavar="FOLDER", type=click.Path(path_type=Path), help="Merge the set into this folder."
)
@token_option
@output_options
def compose(
    out: Output,
    index: str,
    skills: str,
    count: int | None,
    base: str | None,
    any_license: bool,
    exact: bool,
    output: Path | None,
    token: str | None,
) -> None:
    """Propose a set to merge, one adapter a skill, that disturb each other least.

    Fingerprints make the proposal; then the adapters are checked and scored exactly, and merged by their sum with -o.
    Of local adapters the index keeps no path: a set with one of them is only proposed.
    """
    from hub_merge.cli.show.zoo import merge_command, print_proposal
    from hub_merge.errors import MergeError
    from hub_merge.pipeline import check_references, merge_to_folder, score_references
    from hub_merge.recipe import Recipe, Source
    from hub_merge.zoo.composing import compose as propose

    words = [word for word in (part.strip() for part in skills.split(",")) if word]
    proposal = propose(_loaded(out, index, token), words, count, base=base, any_license=any_license)
    references = [entry.reference for entry in proposal.entries]
    scores = checked = None
    if (exact or output) and not proposal.has_local:
        hub = client(out, token)
        checked = check_references(references, hub=hub)
        scores = score_references(references, hub=hub, progress=out.progress()) if checked.compatible else None
    if output and checked and checked.compatible:
        merge_to_folder(
            Recipe("sum", tuple(map(Source, references))), output, hub=client(out, token), progress=out.progress()
        )
    merged = output if checked and checked.compatible else None
    print_proposal(out, proposal, checked, scores, merged)
    if checked is not None and not checked.compatible:
        raise click.exceptions.Exit(1)
    if output and proposal.has_local:
        raise MergeError(
            "The set was not merged: the index keeps no path of its local adapters.",
            remedy=merge_command(proposal, str(output)),
        )


@zoo.command(examples=["zoo push me/gpt2-zoo", "zoo push someone/gpt2-zoo --create-pr"])
@click.argument("repo_id", metavar="OWNER/NAME")
@folder_option
@click.option("--private/--no-private", default=None, help="Visibility of a new repository.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--commit-message", metavar="TEXT", help="Title of the commit.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent; change nothing.")
@token_option
@output_options
def push(out: Output, repo_id: str, folder: Path, token: str | None, dry_run: bool, **asked: Any) -> None:
    """Publish an index as a dataset of the Hub, so that others can ask and extend it."""
    from hub_merge.cli.show.publication import print_published
    from hub_merge.zoo.sharing import push as run

    published = run(folder, repo_id, hub=client(out, token), dry_run=dry_run, **asked)
    print_published(out, published, dry_run=dry_run, verifiable=False)


@zoo.command(examples=["zoo pull someone/gpt2-zoo"])
@click.argument("repo_id", metavar="OWNER/NAME")
@folder_option
@click.option("--if-there", is_flag=True, help="Do nothing if there is no such dataset.")
@token_option
@output_options
def pull(out: Output, repo_id: str, folder: Path, token: str | None, if_there: bool) -> None:
    """Get the index of a dataset, to extend it; what the folder holds already stays, and both are one index."""
    from hub_merge.errors import AdapterNotFound
    from hub_merge.zoo.sharing import fetch

    try:
        fetch(repo_id, folder, hub=client(out, token))
    except AdapterNotFound:
        if not if_there:
            raise
        out.note(f"There is no dataset {repo_id} yet.")
        return
    out.fields({"folder": str(folder)}, title="✓ Pulled")


def _loaded(out: Output, index: str, token: str | None) -> Loaded:
    from hub_merge.zoo.loaded import Loaded
    from hub_merge.zoo.sharing import open_index

    return Loaded.read(open_index(index, client(out, token)))


def _access(token: str | None) -> Access:
    from huggingface_hub import constants

    from hub_merge.zoo.reading import Access

    return Access(endpoint=constants.ENDPOINT, token=(token or "").strip() or None)


def _engine(workers: int | None, ray: str | None, rate: float | None) -> Engine:
    from hub_merge.zoo.engines import in_processes, on_ray

    spacing = 60 / rate if rate else 0.0
    if ray:
        return on_ray(ray, spacing)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return in_processes(workers or usable or 1, spacing)
