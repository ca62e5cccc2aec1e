"""Options and arguments that several commands take, and what they become."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hub_merge.cli.output import OUTPUT_MODES, Output, OutputMode
from hub_merge.layout import FILE_FORMATS, PICTURE_FILE

if TYPE_CHECKING:
    from hub_merge.hub import Hub

__all__ = [
    "NewFile",
    "RankType",
    "accept_unknown_license_option",
    "adapters_argument",
    "allow_option",
    "base_option",
    "client",
    "dtype_option",
    "energy_option",
    "extras_option",
    "filter_options",
    "force_option",
    "max_rank_option",
    "numbers_of",
    "output_option",
    "output_options",
    "pickle_option",
    "picture_option",
    "plot_option",
    "profile_option",
    "token_option",
    "weights_option",
    "writing_options",
]

Function = TypeVar("Function", bound=Callable[..., Any])

SORT_KEYS = ("downloads", "likes", "last_modified", "created_at", "trending_score")

adapters_argument = click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...")
token_option = click.option(
    "--token",
    metavar="TOKEN",
    help="Hub token. It stays in the shell's history: prefer HF_TOKEN or `hf auth login`.",
)
max_rank_option = functools.partial(
    click.option,
    "--max-rank",
    metavar="N",
    type=click.IntRange(1),
    help="Refuse a result of a larger rank than this, such as your server's limit.",
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
extras_option = click.option(
    "--extras",
    metavar="POLICY",
    help="Heads, biases and token rows: refuse, keep:NAME of an adapter, average, or drop.  [default: refuse]",
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


class NewFile(click.Path):
    """A file to write when the work is done, into a folder that is there before."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not path.parent.is_dir():
            self.fail(f"There is no folder {str(path.parent)!r}. Create it first.", param, ctx)
        return path


def _drawable(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Refuse a picture that cannot be drawn before anything is done for it."""
    if value:
        from hub_merge.plots import require_drawing

        require_drawing(Path(PICTURE_FILE) if value is True else value)
    return value


picture_option = click.option(
    "--plot",
    is_flag=True,
    callback=_drawable,
    help="Put a heat map of the scores into the card (needs matplotlib).",
)


def plot_option(what: str) -> Callable[[Function], Function]:
    """Return the option ``--plot FILE`` of a command that draws ``what``."""
    return click.option(
        "--plot",
        metavar="FILE",
        type=NewFile(),
        callback=_drawable,
        help=f"Draw {what} (.png, .svg or .pdf; needs matplotlib).",
    )


class RankType(click.IntRange):
    """A whole number from 1, or ``auto``."""

    name = "rank"

    def __init__(self) -> None:
        super().__init__(min=1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number or ``auto``."""
        if value == "auto":
            return value
        if not str(value).lstrip("+-").isdecimal():
            self.fail(f"{value!r} is neither a whole number nor auto.", param, ctx)
        return super().convert(value, param, ctx)


def output_options(function: Function) -> Function:
    """Add ``--format``, ``--json``, ``-q`` and ``--no-truncate``; the command gets an ``Output`` as ``out``."""

    @functools.wraps(function)
    def wrapper(
        *args: Any, output_format: OutputMode | None, as_json: bool, quiet: bool, no_truncate: bool, **kwargs: Any
    ) -> Any:
        return function(*args, out=_output(output_format, as_json, quiet, no_truncate), **kwargs)

    help_text = "How to print.  [default: auto, which is agent for a coding agent, else human]"
    format_option = click.option("--format", "output_format", type=click.Choice(OUTPUT_MODES), help=help_text)
    return _with_options(wrapper, format_option)  # type: ignore[no-any-return]


def writing_options(function: Function) -> Function:
    """Add the output options to a command that writes an adapter: its ``--format`` also takes the files' format.

    The command gets that as ``file_format``, ``peft`` by default.
    """

    @functools.wraps(function)
    def wrapper(
        *args: Any, formats: tuple[str, ...], as_json: bool, quiet: bool, no_truncate: bool, **kwargs: Any
    ) -> Any:
        modes = [name for name in formats if name in OUTPUT_MODES]
        files = [name for name in formats if name in FILE_FORMATS]
        if len(files) > 1 or len(modes) > 1:
            raise click.UsageError("--format takes one format of files and one way to print.")
        mode: Any = modes[0] if modes else None
        out = _output(mode, as_json, quiet, no_truncate)
        return function(*args, out=out, file_format=files[0] if files else "peft", **kwargs)

    format_option = click.option(
        "--format",
        "formats",
        multiple=True,
        type=click.Choice((*FILE_FORMATS, *OUTPUT_MODES)),
        metavar="FORMAT",
        help=f"Format of the files: {', '.join(FILE_FORMATS)}; or how to print: {', '.join(OUTPUT_MODES)}.  "
        "[default: peft, auto]",
    )
    return _with_options(wrapper, format_option)  # type: ignore[no-any-return]


def _output(mode: OutputMode | None, as_json: bool, quiet: bool, no_truncate: bool) -> Output:
    if (mode is not None) + as_json + quiet > 1:
        raise click.UsageError("--format, --json and --quiet exclude each other.")
    return Output(mode or ("json" if as_json else "quiet" if quiet else "auto"), truncate=not no_truncate)


def _with_options(wrapper: Any, format_option: Callable[..., Any]) -> Any:
    for option in (
        click.option("--no-truncate", is_flag=True, help="Do not cut tables to the width of the terminal."),
        click.option("-q", "--quiet", is_flag=True, help="Print the main value only, one a line."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
        format_option,
    ):
        option(wrapper)
    return wrapper


def filter_options(function: Function) -> Function:
    """Add the options that narrow down what the Hub lists."""
    for option in (
        click.option("--sort", type=click.Choice(SORT_KEYS), help="What puts an adapter first.  [default: downloads]"),
        click.option("--license", "license_", metavar="ID", help="Licence identifier, such as apache-2.0."),
        click.option("--task", metavar="TYPE", help="PEFT task type, such as CAUSAL_LM."),
        click.option("--author", metavar="OWNER", help="User or organisation."),
        click.option("--search", "text", metavar="WORDS", help="Words in the name."),
    ):
        function = option(function)
    return function


def client(out: Output, token: str | None, **settings: Any) -> Hub:
    """Return the Hub's client as a command wants it."""
    from hub_merge.hub import Hub

    return Hub(token=(token or "").strip() or None, progress=out.animated, **settings)


def numbers_of(weights: str | None, adapters: tuple[str, ...]) -> list[float] | None:
    """Return the numbers of ``--weights``, one an adapter; ``None`` without the option."""
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
