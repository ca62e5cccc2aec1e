"""What every command shares: examples in the help, suggestions for typos, the output options, and how errors end."""

from __future__ import annotations

import difflib
import functools
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import click

from hub_merge.cli.output import OUTPUT_MODES, Output, OutputMode, program_name, tell
from hub_merge.errors import HubMergeError
from hub_merge.layout import FILE_FORMATS

__all__ = ["Command", "Group", "RankType", "filter_options", "output_options", "run_cli", "writing_options"]

Function = TypeVar("Function", bound=Callable[..., Any])

INTERRUPTED = 130
SORT_KEYS = ("downloads", "likes", "last_modified", "created_at", "trending_score")


class Command(click.Command):
    """A command with examples."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples below the options, as the reader would type them."""
        _write_examples(ctx, formatter, self.examples)


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


class Group(click.Group):
    """The group of commands: suggests the nearest one for a typo and shows an example of each."""

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options before the command; one that belongs behind it is told so."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            owners = [
                name
                for name, command in self.commands.items()
                if any(error.option_name in param.opts for param in command.params)
            ]
            if not owners:
                raise
            raise click.UsageError(
                f"{error.option_name} is an option of the commands: write it after one of {', '.join(owners)}.", ctx
            ) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the one that was probably meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = difflib.get_close_matches(args[0], self.commands, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"Commands: {', '.join(self.commands)}."
            raise click.UsageError(f"There is no command {args[0]!r}. {hint}", ctx) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Keep the order of the work: find, look, merge, publish."""
        return list(self.commands)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the first example of each command."""
        _write_examples(ctx, formatter, [c.examples[0] for c in self.commands.values() if isinstance(c, Command)])
        formatter.write_paragraph()
        formatter.write_text(f"Options and more examples of a command: {ctx.info_name} COMMAND --help")


def _write_examples(ctx: click.Context, formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"  $ {ctx.find_root().info_name} {example}\n")


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


def run_cli(group: click.Group) -> NoReturn:
    """Run the command line and end the process: 0 done, 1 refused or failed, 2 usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    color = False if os.environ.get("NO_COLOR") else None
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _tell_warning
            code = group.main(prog_name=program_name(), standalone_mode=False, windows_expand_args=False, color=color)
    except click.ClickException as error:
        code = _show_usage_error(error)
    except (click.Abort, KeyboardInterrupt):
        tell("Interrupted.")
        code = INTERRUPTED
    except Exception as error:
        code = _explain(error)
    sys.exit(code or 0)


def _tell_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning without the file and line that raised it."""
    tell(f"Warning: {message}")


def _show_usage_error(error: click.ClickException) -> int:
    text = io.StringIO()
    error.show(text)
    tell(text.getvalue().rstrip())
    return error.exit_code


def _explain(error: Exception) -> int:
    """Tell an error and the way out of it; with HF_DEBUG, where it came from too."""
    if os.environ.get("HF_DEBUG", "").upper() in ("1", "ON", "YES", "TRUE"):
        tell(traceback.format_exc())
    problem, remedy = _problem(error)
    tell(f"Error: {problem}")
    if remedy:
        tell(f"Try: {remedy}")
    return 1


def _problem(error: Exception) -> tuple[str, str | None]:
    match error:
        case HubMergeError():
            return error.problem, error.remedy
        case OSError() if error.strerror:
            place = f"{error.filename}: " if error.filename else ""
            return f"{place}{error.strerror}.", "Check the path, the right to write there, and the free space."
    return (
        f"Unexpected {type(error).__name__}: {error}",
        "Set HF_DEBUG=1 to see the traceback, and report it: this is a bug in hub-merge.",
    )
